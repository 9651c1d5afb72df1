"""Verifying many responses in processes with a deadline.

Verifiers can hang and can crash: math-verify does, and so may a function of your own. So they run in worker processes, and the parent
keeps the time of every single item. An item that passes its deadline costs its worker, is UNVERIFIABLE, and holds up nothing else.
"""

import math
import selectors
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from opdscope.errors import TaskError
from opdscope.records import Outcome
from opdscope.tasks.base import VerifierSpec
from opdscope.tasks.worker_process import WorkerDiedError, WorkerProcess

_CHUNK_ITEMS = 256
_CHUNK_CHARACTERS = 1 << 20
_START_SECONDS = 120.0
_MAX_DEATHS, _MAX_FAILED_STARTS = 10, 3
"""Deaths without a verdict in between before the pool gives up. An item that its worker dies of twice is UNVERIFIABLE."""


@dataclass(frozen=True)
class VerifyItem:
    """A finished response and what it is compared with."""

    response: str
    """Decoded text, without the end of sequence."""
    answer: str
    """`Question.answer`."""
    metadata: str = "{}"
    """`Question.metadata`."""


@dataclass
class _Post:
    """A worker and the items that it has not answered yet, in order."""

    worker: WorkerProcess
    pending: deque[int] = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)
    """When the worker was started, or its current item was."""


class VerifierPool:
    """Worker processes that verify; a context manager. They start with the first call, serve all later ones, and die with the parent.

    Not to be used by two threads at once.
    """

    def __init__(self, spec: VerifierSpec, num_workers: int = 2, deadline_seconds: float = 10.0) -> None:
        self._spec = spec
        self._num_workers = num_workers
        self._deadline_seconds = deadline_seconds
        self._posts: list[_Post] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """The processes that are running now."""
        return [post.worker.process_id for post in self._posts]

    def close(self) -> None:
        """End the workers; a later `verify` starts new ones."""
        while self._posts:
            self._posts.pop().worker.close()

    def verify(self, items: Sequence[VerifyItem]) -> list[Outcome]:
        """One outcome per item, in order. Equal items are verified once.

        UNVERIFIABLE means that the verifier could not read the reference answer, failed, took longer than the deadline, or killed its
        process; never that the response is wrong.

        Raises:
            TaskError: If the verifier cannot be built, or its processes keep dying without a verdict.
        """
        distinct = list(dict.fromkeys(items))
        call = _Call(self._spec, self._num_workers, self._deadline_seconds, self._posts, distinct)
        try:
            call.run()
        except BaseException:  # what is under way would be taken for the next call's results
            self.close()
            raise
        outcomes = dict(zip(distinct, call.outcomes, strict=True))
        return [outcomes[item] for item in items]


class _Call:
    """The state of one `verify`."""

    def __init__(
        self, spec: VerifierSpec, num_workers: int, deadline_seconds: float, posts: list[_Post], items: Sequence[VerifyItem]
    ) -> None:  # fmt: skip
        self.outcomes = [Outcome.UNVERIFIABLE] * len(items)
        self._spec, self._deadline_seconds, self._posts, self._items = spec, deadline_seconds, posts, items
        self._chunks = deque(_chunks(items, num_workers))
        self._num_workers = min(num_workers, len(self._chunks))
        self._died_of: set[int] = set()
        self._num_deaths = 0

    def run(self) -> None:
        while self._chunks or any(post.pending for post in self._posts):
            while len(self._posts) < self._num_workers:
                self._posts.append(_Post(WorkerProcess(self._spec, self._deadline_seconds)))
            for post in list(self._posts):
                if post.worker.is_ready and not post.pending and self._chunks:
                    self._send(post, self._chunks.popleft())
            self._await()

    def _send(self, post: _Post, chunk: list[int]) -> None:
        post.pending.extend(chunk)
        texts = [(item.response, item.answer, item.metadata) for item in (self._items[index] for index in chunk)]
        try:
            post.worker.send(texts)
        except WorkerDiedError as error:
            self._bury(post, str(error))
        post.since = time.monotonic()

    def _await(self) -> None:
        """Take what arrives before the next deadline; then see to the posts that have passed theirs."""
        busy = [post for post in self._posts if post.pending or not post.worker.is_ready]
        with selectors.DefaultSelector() as selector:
            for post in busy:
                selector.register(post.worker, selectors.EVENT_READ, post)
            ready = selector.select(max(0.0, min((self._expiry(post) for post in busy), default=0.0) - time.monotonic()))
        for key, _ in ready:
            self._receive(key.data)
        now = time.monotonic()
        for post in [post for post in self._posts if (post.pending or not post.worker.is_ready) and self._expiry(post) <= now]:
            self._expire(post)

    def _expiry(self, post: _Post) -> float:
        return post.since + (self._deadline_seconds if post.worker.is_ready else _START_SECONDS)

    def _receive(self, post: _Post) -> None:
        try:
            outcomes = post.worker.read()
        except WorkerDiedError as error:
            self._bury(post, str(error))
            return
        if post.worker.error is not None:
            raise TaskError(post.worker.error)
        for outcome in outcomes:
            self.outcomes[post.pending.popleft()] = outcome
            self._num_deaths = 0
        post.since = time.monotonic()

    def _expire(self, post: _Post) -> None:
        if not post.worker.is_ready:
            self._bury(post, f"it was not ready after {_START_SECONDS:g} seconds")
            return
        post.pending.popleft()  # stays UNVERIFIABLE
        self._remove(post)

    def _bury(self, post: _Post, reason: str) -> None:
        """Go on after a death. The item at hand is tried once more; if its worker dies again, it is UNVERIFIABLE."""
        self._num_deaths += 1
        if self._num_deaths >= (_MAX_DEATHS if post.worker.is_ready else _MAX_FAILED_STARTS):
            raise TaskError(
                f"the processes of verifier {self._spec.target or self._spec.kind!r} ended {self._num_deaths} times in a row without a "
                f"verdict; the last one said: {reason}"
            )
        if post.pending and post.pending[0] in self._died_of:
            post.pending.popleft()
        elif post.pending:
            self._died_of.add(post.pending[0])
        self._remove(post)

    def _remove(self, post: _Post) -> None:
        if post.pending:
            self._chunks.appendleft(list(post.pending))
        self._posts.remove(post)
        post.worker.close()


def _chunks(items: Sequence[VerifyItem], num_workers: int) -> Iterator[list[int]]:
    """Indices in chunks that are small enough for all workers to have some, and not larger than a pipe likes."""
    limit = min(_CHUNK_ITEMS, math.ceil(len(items) / (4 * num_workers)))
    chunk: list[int] = []
    characters = 0
    for index, item in enumerate(items):
        if chunk and (len(chunk) == limit or characters > _CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(index)
        characters += len(item.response) + len(item.answer) + len(item.metadata)
    if chunk:
        yield chunk
