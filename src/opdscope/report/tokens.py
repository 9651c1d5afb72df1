"""Text of tokens for people: from the student's tokenizer where one can be read, else from what the run stored."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from opdscope.records import TAIL


class TokenTexts:
    """Token ids as text. Without a tokenizer only candidate tokens are known, and any other is shown by its number."""

    def __init__(self, strata: pa.Table, decode: Callable[[Sequence[int]], str] | None) -> None:
        """Take the texts that a run stored.

        Args:
            strata: The run's table of that name.
            decode: From token ids to text, special tokens shown; None if there is no tokenizer.
        """
        self._known = dict(zip(strata["token_id"].to_pylist(), strata["token_text"].to_pylist(), strict=True))
        # a tokenizer that says something else of a token than the run does is another one
        same = decode is not None and all(decode([token]) == text for token, text in self._known.items() if token != TAIL)
        self._decode = decode if same else None
        self._known[TAIL] = "other tokens"

    @property
    def has_tokenizer(self) -> bool:
        """Whether every token has a text."""
        return self._decode is not None

    def one(self, token_id: int) -> str:
        """Text of one token."""
        if token_id not in self._known:
            self._known[token_id] = f"⟨{token_id}⟩" if self._decode is None else self._decode([token_id])
        return self._known[token_id]

    def joined(self, token_ids: Sequence[int]) -> str:
        """Text of tokens in a row."""
        return "".join(map(self.one, token_ids)) if self._decode is None else self._decode(token_ids)
