"""How a stage tells a person where it is; a run without a watcher is silent."""

from typing import Protocol


class Watcher(Protocol):
    """Hears about stages and progress. It may draw a bar; it must not raise."""

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage begins: `total` pieces of work, of which `done` were finished in an earlier session."""
        ...

    def tokens(self, num_tokens: int) -> None:
        """So many tokens were generated or scored since the last call."""
        ...

    def advance(self, amount: int) -> None:
        """So many more pieces are finished and stored."""
        ...

    def note(self, text: str) -> None:
        """A sentence that the user should read."""
        ...


class Silent:
    """A watcher that says nothing."""

    def start(self, stage: str, total: int, done: int) -> None:
        """Ignore."""

    def tokens(self, num_tokens: int) -> None:
        """Ignore."""

    def advance(self, amount: int) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""
