"""The continuations that are being sampled: what each has read and drawn, as arrays, so that a step costs no Python loop over rows."""

from dataclasses import dataclass

import numpy as np

from opdscope.core.randomness import uniforms


@dataclass(frozen=True)
class Job:
    """One continuation that is wanted."""

    request: int
    """Index of its request."""
    sample: int
    """Index of its seed in the request."""
    length: int
    """Tokens of the trunk that belong to its prefix."""
    forced: tuple[int, ...]
    """Tokens read before sampling starts."""
    seed: int
    """Seed of its uniforms."""
    mirrored: bool
    """Whether these are taken from one."""
    max_new_tokens: int
    """Most tokens to sample, at least 1."""


class ActiveRows:
    """The batch: up to `capacity` continuations, the first `count` of them live.

    A row's stream is its forced tokens and then its drawn ones. `known` of them exist and `read` of them lie in the cache as its suffix; a
    live row has read < known, or has just been admitted and draws its first token from the trunk's own logits.
    """

    def __init__(self, capacity: int, width: int) -> None:
        """Make room for rows whose forced and drawn tokens together are at most `width`."""
        self.capacity, self.count = capacity, 0
        self.jobs: list[Job] = []
        self._fields = np.zeros(
            capacity,
            dtype=[(name, np.int64) for name in ("trunk", "length", "known", "read", "num_forced", "limit")]
            + [("seed", np.uint64), ("mirrored", bool), ("ended", bool)],
        )
        self._streams = np.zeros((capacity, width), dtype=np.int64)
        self._logprobs = np.zeros((capacity, width), dtype=np.float32)

    def field(self, name: str) -> np.ndarray:
        """A view of one field over the live rows, [count]."""
        return self._fields[name][: self.count]

    def add(self, job: Job, trunk: int) -> None:
        """Admit a continuation whose trunk lies in slot `trunk`."""
        num_forced = len(job.forced)
        row = (trunk, job.length, num_forced, 0, num_forced, num_forced + job.max_new_tokens, job.seed, job.mirrored, False)
        self._fields[self.count] = row
        self._streams[self.count, :num_forced] = job.forced
        self.jobs.append(job)
        self.count += 1

    def next_tokens(self) -> np.ndarray:
        """The next unread token of every live row, [count]."""
        return self._streams[np.arange(self.count), self.field("read")]

    def uniforms(self, rows: np.ndarray) -> np.ndarray:
        """The uniform number of the next draw of each of `rows`."""
        fields = self._fields[rows]
        return uniforms(fields["seed"], fields["known"] - fields["num_forced"], fields["mirrored"])

    def append(self, rows: np.ndarray, token_ids: np.ndarray, logprobs: np.ndarray, eos_token_ids: np.ndarray) -> None:
        """Append a drawn token to each of `rows` and note which of them that ends."""
        places = self._fields["known"][rows]
        self._streams[rows, places], self._logprobs[rows, places] = token_ids, logprobs
        self._fields["known"][rows] += 1
        self._fields["ended"][rows] = np.isin(token_ids, eos_token_ids)

    def live(self) -> np.ndarray:
        """Which of the first `count` rows are to go on, boolean [count]."""
        return ~self.field("ended") & (self.field("known") < self.field("limit"))

    def drawn(self, row: int) -> tuple[tuple[int, ...], bool, np.ndarray]:
        """Tokens drawn by a row, whether an end-of-sequence token ended it, and the tokens' log-probabilities."""
        fields = self._fields[row]
        own = slice(fields["num_forced"], fields["known"])
        return tuple(self._streams[row, own].tolist()), bool(fields["ended"]), self._logprobs[row, own].copy()

    def keep(self, moves: "Moves") -> None:
        """Close the gaps that ended rows left."""
        self._fields[moves.targets] = self._fields[moves.sources]
        self._streams[moves.targets] = self._streams[moves.sources]
        self._logprobs[moves.targets] = self._logprobs[moves.sources]
        for source, target in zip(moves.sources, moves.targets, strict=True):
            self.jobs[target] = self.jobs[source]
        del self.jobs[moves.count :]
        self.count = moves.count


@dataclass(frozen=True)
class Moves:
    """Which slots move where so that the kept ones fill the first `count`: as few as there are gaps."""

    sources: np.ndarray
    targets: np.ndarray
    count: int

    @classmethod
    def closing_gaps(cls, kept: np.ndarray) -> "Moves":
        """The moves for a boolean array that is True where a slot is kept."""
        count = int(kept.sum())
        return cls(np.flatnonzero(kept[count:]) + count, np.flatnonzero(~kept[:count]), count)
