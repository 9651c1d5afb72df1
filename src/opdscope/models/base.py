"""What the pipeline asks of an inference engine: a Sampler that produces tokens and a Scorer that produces probabilities.

The two are separate on purpose. Engines sample fast and are imprecise about probabilities; every probability that enters a result comes
from one Scorer with a full-vocabulary softmax. Token ids go in and token ids come out: nothing is decoded and encoded again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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


@dataclass(frozen=True)
class Sample:
    """One continuation: the sampled tokens after prefix and forced tokens."""

    token_ids: tuple[int, ...]
    """Sampled tokens; the end-of-sequence token is included where it was drawn (it is a token like any other, with a gradient)."""
    finished: bool
    """True if an end-of-sequence token was drawn, False if the length limit ended it."""


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
    """The prompt this model is shown (a teacher's may hold a privileged context). Requests with an equal prompt share its prefill."""
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
