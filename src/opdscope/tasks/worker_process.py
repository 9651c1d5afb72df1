"""One worker process, as the parent sees it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from opdscope.records import Outcome
from opdscope.tasks.base import VerifierSpec

_OUTCOMES = {json.dumps(outcome.value).encode("ascii"): outcome for outcome in Outcome}
_STDERR_LIMIT = 1 << 20


class WorkerDiedError(Exception):
    """The process ended, or broke the protocol; the text is the end of its standard error."""


class WorkerProcess:
    """A running `opdscope.tasks.worker`; starting it does not wait until it is ready.

    It is a session of its own, so that Ctrl-C in the terminal reaches the parent alone, and so that what a verifier started dies with it.
    """

    def __init__(self, spec: VerifierSpec, deadline_seconds: float) -> None:
        self.is_ready = False
        """True once it has said so; only then may chunks be sent."""
        self.error: str | None = None
        """Why the verifier cannot be built, if it said so."""
        self._unread = b""
        self._stderr = tempfile.TemporaryFile(mode="a+b")  # noqa: SIM115 - closed in close()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "opdscope.tasks.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0, env=environment, start_new_session=True,
        )  # fmt: skip
        with suppress(BrokenPipeError):  # it will be seen to have died when it is read
            self._write({"spec": asdict(spec), "deadline_seconds": deadline_seconds})

    @property
    def process_id(self) -> int:
        """Its process id."""
        return self._process.pid

    def fileno(self) -> int:
        """The pipe to wait on until there is something to read."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, items: Sequence[tuple[str, str, str]]) -> None:
        """Give it a chunk of (response, answer, metadata).

        Raises:
            WorkerDiedError: If it is gone.
        """
        if os.fstat(self._stderr.fileno()).st_size > _STDERR_LIMIT:
            os.ftruncate(self._stderr.fileno(), 0)
        try:
            self._write(items)
        except BrokenPipeError as error:
            raise WorkerDiedError(self._stderr_tail()) from error

    def read(self) -> list[Outcome]:
        """The outcomes that have arrived; blocks only if nothing has.

        Raises:
            WorkerDiedError: If it is gone, or wrote something else.
        """
        received = os.read(self.fileno(), 1 << 16)
        if not received:
            raise WorkerDiedError(self._stderr_tail())
        *lines, self._unread = (self._unread + received).split(b"\n")
        try:
            if lines and not self.is_ready:
                self.error = json.loads(lines.pop(0)).get("error")
                self.is_ready = self.error is None
            return [_OUTCOMES[line] for line in lines]
        except (KeyError, ValueError, AttributeError) as error:
            raise WorkerDiedError(f"it broke the protocol with {lines[:1]}") from error

    def close(self) -> None:
        """Kill it, with everything that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                pipe.close()

    def _write(self, value: object) -> None:
        assert self._process.stdin is not None
        data = memoryview(json.dumps(value).encode("ascii") + b"\n")
        while data:  # an unbuffered pipe may take a part
            data = data[self._process.stdin.write(data) or 0 :]

    def _stderr_tail(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        tail = os.pread(self._stderr.fileno(), 2_000, max(0, size - 2_000)).decode("utf-8", "replace").strip()
        return tail or "it wrote nothing to standard error"
