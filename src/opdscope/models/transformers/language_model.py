"""A loaded causal language model with its tokenizer: what the sampler, the scorer and the pipeline need to know about it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from opdscope.errors import ModelError
from opdscope.models.base import Sampler, Scorer
from opdscope.models.transformers.head import OutputHead
from opdscope.models.vocabulary import tokenizer_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions by name."""

_HASH_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model in evaluation mode, without gradients, and its tokenizer: a :class:`~opdscope.models.base.Model`.

    Made by :func:`load_language_model`.
    """

    engine = "transformers"

    model: Any
    """The `transformers` model, with the shared-prefix attention registered; plain `model(input_ids)` works as usual. On a CPU its
    linear layers may hold packed weights, which are not among its parameters."""
    tokenizer: Any
    """The `transformers` tokenizer."""
    vocab_size: int
    """Entries of the tokenizer; output rows of the model beyond it are padding and are cut."""
    name: str
    """The name or path it was asked for by."""
    dtype: str
    """Type of weights and activations: "float32", "bfloat16" or "float16"."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end a response, ascending: the generation config's and the tokenizer's."""
    num_parameters: int
    """Number of weights, tied ones counted once."""
    files: tuple[Path, ...] = field(repr=False)
    """Weight files and configuration that determine the model's function, in a fixed order."""
    revision: str | None = None
    """Commit of the hub repository; None for a local model."""
    _heads: dict[str, OutputHead] = field(default_factory=dict[str, OutputHead], init=False, repr=False)

    @property
    def device(self) -> Any:
        """The `torch.device` that holds the weights."""
        return self.model.device

    def output_head(self, dtype: str | None = None) -> OutputHead:
        """The output head computed in a precision, by default the model's own; made at the first request for it."""
        dtype = self.dtype if dtype is None else dtype
        if dtype not in self._heads:
            self._heads[dtype] = OutputHead(self.model, self.vocab_size, DTYPES[dtype])
        return self._heads[dtype]

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights; upper estimate with a copy of the output head in the model's precision and one in float32."""
        head = self.model.get_output_embeddings().weight.shape[1] * self.vocab_size
        itemsize = DTYPES[self.dtype].itemsize
        return self.num_parameters * itemsize + head * sum({itemsize, 4})

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values that a token of a sampled row occupies: those of all layers in the model's type, of one also in float32."""
        layout = self.model.config.get_text_config()
        heads = getattr(layout, "num_key_value_heads", None) or layout.num_attention_heads
        width = getattr(layout, "head_dim", None) or layout.hidden_size // layout.num_attention_heads
        itemsize = DTYPES[self.dtype].itemsize
        return 2 * heads * width * (layout.num_hidden_layers * itemsize + (4 if itemsize < 4 else 0))

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the contents of weight files and configuration, and the hub commit. Reads all files."""
        digest = hashlib.sha256((self.revision or "").encode())
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(_HASH_BLOCK_BYTES):
                    digest.update(block)
        return digest.hexdigest()

    @property
    def token_to_id(self) -> dict[str, int]:
        """The vocabulary, special and added tokens included."""
        return dict(self.tokenizer.get_vocab())

    @property
    def tokenizer_hash(self) -> str:
        """Hex SHA-256 over the sorted token-to-id map and the special token ids."""
        return tokenizer_hash(self.token_to_id, self.tokenizer.all_special_ids)

    def render_prompt(self, user: str, system: str | None = None) -> tuple[str, tuple[int, ...]]:
        """The text that the model is shown for a question, and its token ids.

        With a chat template: the template's rendering of the messages, ending where the assistant's answer begins. Without one: system and
        user text as they are (joined by a blank line), with the tokenizer's own special tokens in front.

        Args:
            user: The question.
            system: System message; None for none.

        Returns:
            Rendered text and token ids.

        Raises:
            ModelError: If the chat template refuses the messages (some allow no system message), or the prompt cannot be encoded or has no tokens.
        """
        if not self.tokenizer.chat_template:
            text = user if system is None else f"{system}\n\n{user}"
            return text, self._encode(text, add_special_tokens=True)
        messages = [{"role": "user", "content": user}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2 raises its own types, and templates raise what they like
            raise ModelError(
                f"The chat template of {self.name!r} refuses the prompt ({error}). Try it without a system message."
            ) from error
        return text, self._encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special tokens skipped. For verifiers and people; never encoded again."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def sampler(self, max_rows: int) -> Sampler:
        """A sampler over the model."""
        from opdscope.models.transformers.sampler import TransformersSampler

        return TransformersSampler(self, max_rows)

    def scorer(self) -> Scorer:
        """A scorer over the model."""
        from opdscope.models.transformers.scorer import TransformersScorer

        return TransformersScorer(self)

    def token_text(self, token_id: int) -> str:
        """Text of one token, special tokens shown by name."""
        return self.tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        try:
            token_ids = tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))
        except Exception as error:  # tokenizers raises plain exceptions, for example where it has no token for a character
            raise ModelError(
                f"The tokenizer of {self.name!r} cannot encode the prompt {text[:200]!r} ({error}). Write one that this model was trained on into "
                "the configuration's section prompt."
            ) from error
        if not token_ids:
            raise ModelError(f"The prompt {text!r} has no tokens under the tokenizer of {self.name!r}; give the question some text.")
        return token_ids
