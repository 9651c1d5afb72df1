"""The process in which verifiers run: `python -m opdscope.tasks.worker`, JSON lines in and out.

In: first a line with the spec, then one line per chunk, a list of [response, answer, metadata]. Out: first `{"ready": true}` or
`{"error": text}`, then one line per item with its outcome, written as soon as it is known, so that the parent knows which item hangs.
The process ends when its input ends. What verifiers print goes to standard error, never between the protocol's lines.
"""

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from typing import TextIO

from opdscope.errors import OpdscopeError
from opdscope.records import Outcome
from opdscope.tasks.base import VerifierSpec
from opdscope.tasks.verifiers import Verifier, build_verifier

_WATCH_SECONDS = 1.0


def main() -> None:
    """Serve until the input ends."""
    commands, results = _claim_channels()
    opening = json.loads(commands.readline())
    _watch_parent(os.getppid(), stuck_seconds=float(opening["deadline_seconds"]) + 10.0)
    try:
        verify = build_verifier(VerifierSpec(**opening["spec"]))
    except OpdscopeError as error:
        _write(results, {"error": str(error)})
        return
    _write(results, {"ready": True})
    for line in commands:
        for response, answer, metadata in json.loads(line):
            _write(results, _judge(verify, response, answer, metadata))


def _judge(verify: Verifier, response: str, answer: str, metadata: str) -> Outcome:
    try:
        return verify(response, answer, metadata)
    except BaseException:  # a verifier's fault, even a SystemExit, says nothing about the response
        traceback.print_exc(limit=-2)
        sys.stderr.flush()
        return Outcome.UNVERIFIABLE


def _claim_channels() -> tuple[TextIO, int]:
    """Keep the pipes for the protocol and give verifiers an empty input and standard error for their prints."""
    commands = os.fdopen(os.dup(0), encoding="ascii")
    results = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, results


def _write(channel: int, value: object) -> None:
    os.write(channel, json.dumps(value).encode("ascii") + b"\n")


def _watch_parent(parent: int, stuck_seconds: float) -> None:
    """End the process when the parent is gone, even in the middle of an item that never ends.

    A thread looks every second. An item that holds the interpreter lock stops that thread; then the timer of faulthandler, which needs no
    lock and is set back at every look, ends the process.
    """

    def look() -> None:
        while os.getppid() == parent:
            faulthandler.dump_traceback_later(stuck_seconds, exit=True)
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    main()
