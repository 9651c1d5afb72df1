"""The record of a watched training run: append-only Parquet parts, put together now and then so that reading stays quick."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from opdscope.errors import RunDirectoryError
from opdscope.records import TRAINING_SCHEMAS
from opdscope.store.parts import read_part, write_part

_MOST_PARTS = 64
_WHOLE = "-whole"
"""End of the name of a part that holds all earlier ones too. It sorts after them and before the plain part of its own step."""
_READ_ATTEMPTS = 5


class TrainingLog:
    """What was recorded while a student trained, in any directory."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        """The directory; made with the first write."""

    def table(self, name: str) -> pa.Table:
        """All rows of a table of :data:`opdscope.records.TRAINING_SCHEMAS`, in the order of steps; empty if nothing is stored.

        Raises:
            RunDirectoryError: If a part cannot be read, or was written by another version of opdscope.
        """
        for _ in range(_READ_ATTEMPTS):
            paths = self._parts(name)
            try:
                return self._joined(name, paths)
            except RunDirectoryError:
                if all(path.exists() for path in paths):  # else they were put together while they were read
                    raise
        raise RunDirectoryError(f"{self.path / name} changes faster than it can be read; try again")

    def _parts(self, name: str) -> list[Path]:
        return sorted((self.path / name).glob("*.parquet"))

    def _joined(self, name: str, paths: list[Path]) -> pa.Table:
        schema, tables = TRAINING_SCHEMAS[name], list[pa.Table]()
        for path in reversed(paths):
            part = read_part(path)
            if part.schema.names != schema.names:
                raise RunDirectoryError(f"{path} was written by another version of opdscope; read it with that one")
            tables.append(part.cast(schema))
            if path.stem.endswith(_WHOLE):
                break
        return pa.concat_tables(reversed(tables)) if tables else schema.empty_table()

    def tables(self) -> dict[str, pa.Table]:
        """Every table by name."""
        return {name: self.table(name) for name in TRAINING_SCHEMAS}

    def write(self, name: str, step: int, table: pa.Table) -> None:
        """Store the rows up to a step as one part; a part of the same step is replaced.

        Raises:
            RunDirectoryError: If the disk is full or the directory cannot be written.
        """
        target = self.path / name / f"{step:09d}.parquet"
        earlier = [path for path in self._parts(name) if path != target]
        if len(earlier) >= _MOST_PARTS:
            self._replace(name, earlier, step, self._joined(name, earlier))
        write_part(target, table)

    def _replace(self, name: str, parts: list[Path], step: int, table: pa.Table) -> None:
        """Put one part in the place of others; a kill between the two leaves parts that nothing reads any more."""
        target = self.path / name / f"{step:09d}{_WHOLE}.parquet"
        write_part(target, table)
        for path in parts:
            if path != target:
                path.unlink()

    def rewind(self, step: int) -> None:
        """Forget what is about steps after this one, because training goes on from there."""
        for name in TRAINING_SCHEMAS:
            parts = self._parts(name)
            if parts and _step_of(parts[-1]) > step:
                self._replace(name, parts, step, self._joined(name, parts).filter(pc.field("step") <= step))


def _step_of(path: Path) -> int:
    return int(path.stem.removesuffix(_WHOLE))


def is_watched(path: str | Path) -> bool:
    """True if the directory holds the record of a training run."""
    return any((Path(path) / name).is_dir() for name in TRAINING_SCHEMAS)


def open_training_log(path: str | Path) -> TrainingLog:
    """A stored training log for reading.

    Raises:
        RunDirectoryError: If there is none.
    """
    if not is_watched(path):
        raise RunDirectoryError(f"{path} holds no record of a training run; give the directory that the callback was told to log to")
    return TrainingLog(path)
