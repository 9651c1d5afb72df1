"""A formula made wrong."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One replacement in the package, which tests must notice."""

    what: str
    path: str
    """Module, relative to the package."""
    old: str
    """Stands there once."""
    new: str
    tests: str
    """Names of test files, without `test_`, that have to fail."""
