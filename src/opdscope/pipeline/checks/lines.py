"""What a check of a setup consists of: lines, each with a state, what was measured and what to do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from opdscope.pipeline.plan import Plan


class State(StrEnum):
    """What a line says."""

    PASS = "pass"
    """As it should be."""
    WARN = "warn"
    """A run is possible, and its numbers are worse or mean something else than they seem to."""
    FAIL = "fail"
    """A run would break off, or its numbers would be wrong."""


@dataclass(frozen=True)
class CheckLine:
    """One thing that was looked at."""

    name: str
    """What."""
    state: State
    """How it is."""
    value: str
    """What was measured, in words with units."""
    remedy: str = ""
    """What to do; empty where nothing has to be done."""


@dataclass(frozen=True)
class CheckReport:
    """Everything that `opdscope check` found."""

    lines: tuple[CheckLine, ...]
    """In the order in which things were looked at."""
    prompts: Mapping[str, str]
    """The rendered prompt of the first question by who is shown it: `student`, and every teacher."""
    plan: Plan | None
    """What a diagnosis would cost; None where questions or models could not be loaded."""

    @property
    def failed(self) -> bool:
        """True if any line fails."""
        return any(line.state is State.FAIL for line in self.lines)


def graded(name: str, size: float, value: str, warn_above: float, fail_above: float, remedy: str) -> CheckLine:
    """A line whose state follows from a size: fail above one limit or where it is NaN, warn above a smaller one.

    Example:
        >>> graded("drift", 0.1, "0.1 nats", 0.01, 0.5, "use float32").state
        <State.WARN: 'warn'>
    """
    state = State.PASS if size <= warn_above else State.WARN if size <= fail_above else State.FAIL
    return CheckLine(name, state, value, "" if state is State.PASS else remedy)


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of them, quoted, and how many more there are.

    Example:
        >>> some(["a", "b", "c", "d"])
        "'a', 'b', 'c' and 1 more"
    """
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(map(repr, listed[:most])) + (f" and {rest} more" if rest > 0 else "")
