"""What the pipeline asks of a model and its engine: a Sampler that produces tokens and a Scorer that produces probabilities.

The two are separate on purpose. Engines sample fast and are imprecise about probabilities; every probability that enters a result comes
from one Scorer with a full-vocabulary softmax. Token ids go in and token ids come out: nothing is decoded and encoded again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from opdscope.errors import ModelError


@dataclass(frozen=True)
class SampleRequest:
    """Continuations wanted from one prefix. Requests with an equal `trunk` share one prefill of it."""

    trunk: tuple[int, ...]
    """Prompt, or prompt and a path's response tokens."""
    length: int
    """How many tokens of `trunk` belong to the prefix, 1 ≤ length ≤ len(trunk): different nodes of one path differ only here."""
    forced: tuple[int, ...]
    """Tokens put after the prefix before sampling starts: the candidate at a node; empty for an ordinary rollout."""
    seeds: tuple[int, ...]
    """One 64-bit seed per continuation; the k-th sampled token of a continuation uses `core.randomness.uniforms(seed, k)`."""
    max_new_tokens: int
    """Most tokens to sample after `forced`; 0 returns an empty, unfinished continuation at once."""
    mirrored: tuple[bool, ...] = ()
    """Which continuations draw with one minus each uniform of their seed: beside one with the same seed that does not, an antithetic pair.
    Empty: none."""

    def __post_init__(self) -> None:
        if self.mirrored and len(self.mirrored) != len(self.seeds):
            raise ValueError(f"expected one entry of mirrored for each of the {len(self.seeds)} seeds or none, got {len(self.mirrored)}")


@dataclass(frozen=True)
class Sample:
    """One continuation: the sampled tokens after prefix and forced tokens."""

    token_ids: tuple[int, ...]
    """Sampled tokens; the end-of-sequence token is included where it was drawn (it is a token like any other, with a gradient)."""
    finished: bool
    """True if an end-of-sequence token was drawn, False if the length limit ended it."""
    logprobs: Float[np.ndarray, "token"] | None = field(default=None, compare=False, repr=False)
    """What the engine drew each token with: natural logs at the temperature of the call, in the engine's own precision. No part of any
    result; `opdscope check` holds them against the scorer's. None if the engine does not tell."""


class Sampler(Protocol):
    """Draws continuations from the student's full softmax at a temperature (no top-p, no top-k)."""

    def sample(self, requests: Sequence[SampleRequest], temperature: float, progress: "Progress | None" = None) -> list[list[Sample]]:
        """One list of samples per request, in the order of the request's seeds.

        The result depends on the requests and seeds alone: not on their order, on the batch size, or on what else is in the batch (up to
        floating-point ties of the inverse-CDF draw, of the order of the engine's rounding error per token).
        """
        ...


class Progress(Protocol):
    """Called with the number of tokens generated since the last call."""

    def __call__(self, num_tokens: int) -> None:
        """Advance by `num_tokens`."""
        ...


@dataclass(frozen=True)
class ScoreRequest:
    """Next-token distributions wanted along one response."""

    prompt_ids: tuple[int, ...]
    """The prompt this model is shown (a teacher's may hold a privileged context), and after it any response tokens that several requests have in
    common. Requests with an equal prompt share its prefill."""
    response_ids: tuple[int, ...]
    """The response tokens, the student's own, token for token."""
    positions: tuple[int, ...]
    """Which positions t, 0 ≤ t ≤ len(response_ids): row t is the distribution after the prompt and response_ids[:t]."""


class Encoding(Protocol):
    """Hidden states at the requested positions, from which log-probability rows are made chunk by chunk and never kept."""

    num_rows: int
    """Sum of `len(positions)` over the requests; rows are in the order of requests, then positions."""

    def logprobs(self, start: int, stop: int, temperature: float) -> Any:
        """Full-vocabulary float32 log-probabilities of rows [start, stop): array [stop - start, vocab_size], on the model's device.

        A softmax of logits / temperature; padded vocabulary rows are cut. Any array of the array API standard (numpy, torch).
        """
        ...


class Scorer(Protocol):
    """Computes next-token distributions; numerically the only source of p and q."""

    vocab_size: int
    """Entries of the tokenizer's vocabulary: padded rows of the model's output are not counted."""

    def encode(self, requests: Sequence[ScoreRequest], progress: "Progress | None" = None) -> Encoding:
        """Run the model over the requests' tokens; costs one teacher-forced pass, keeps hidden states only."""
        ...


class Model(Protocol):
    """A model with its tokenizer, whatever engine runs it."""

    @property
    def name(self) -> str:
        """The name or path it was asked for by."""
        ...

    @property
    def engine(self) -> str:
        """What computes it."""
        ...

    @property
    def dtype(self) -> str:
        """Type of weights and activations."""
        ...

    @property
    def revision(self) -> str | None:
        """Commit of the hub repository; None for a local model."""
        ...

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, copies of the output head included."""
        ...

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values that a token of a sampled row occupies."""
        ...

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a response, ascending."""
        ...

    @property
    def token_to_id(self) -> Mapping[str, int]:
        """The vocabulary."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what determines the model's function."""
        ...

    @property
    def tokenizer_hash(self) -> str:
        """Hex SHA-256 of the tokenizer."""
        ...

    def render_prompt(self, user: str, system: str | None = None) -> tuple[str, tuple[int, ...]]:
        """The text that the model is shown for a question, and its token ids."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special tokens skipped. For verifiers and people; never encoded again."""
        ...

    def token_text(self, token_id: int) -> str:
        """Text of one token, special tokens shown by name."""
        ...

    def sampler(self, max_rows: int) -> Sampler:
        """A sampler over the model, of at most so many rows at a time."""
        ...

    def scorer(self) -> Scorer:
        """A scorer over the model."""
        ...


def require_same_vocabulary(student: Model, teacher: Model) -> None:
    """Refuse a pair whose tokenizers map tokens to ids differently.

    Args:
        student: The model that samples.
        teacher: The model that scores the student's tokens.

    Raises:
        ModelError: If the token-to-id maps differ in any entry.
    """
    if student.token_to_id == teacher.token_to_id:
        return
    theirs = teacher.token_to_id
    differing = [token for token, index in student.token_to_id.items() if theirs.get(token) != index]
    differing += [token for token in theirs if token not in student.token_to_id]
    raise ModelError(
        f"The teacher {teacher.name!r} ({teacher.vocab_size} tokens) and the student {student.name!r} ({student.vocab_size} tokens) have "
        f"different vocabularies: {len(differing)} tokens differ, for example {differing[0]!r}. Their probabilities cannot be compared "
        "token by token. Choose a teacher of the student's own family (equal tokenizer), or the student itself shown a context."
    )
