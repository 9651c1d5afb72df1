"""Parquet parts on disk: written once, by atomic rename, and read whole."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from opdscope.errors import RunDirectoryError


def write_part(target: Path, table: pa.Table) -> None:
    """Store a table as one file, whole or not at all.

    Raises:
        RunDirectoryError: If the disk is full or the directory cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunDirectoryError(f"cannot store {target}: {error}; free some space and run the same command again, it resumes") from error


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A stored table, or some of its columns.

    Raises:
        RunDirectoryError: If it cannot be read.
    """
    try:
        return pq.ParquetFile(path).read(None if columns is None else list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise RunDirectoryError(f"{path} cannot be read ({error}); run the same diagnosis again, it redoes that part") from error


class LatestParts:
    """Parts that this process wrote or read last, up to a number of bytes: the same file is the same table, since a part is never changed."""

    def __init__(self, most_bytes: int = 1 << 26) -> None:
        """Hold nothing yet."""
        self._most, self._size = most_bytes, 0
        self._held: dict[Path, tuple[tuple[int, int], pa.Table]] = {}

    def write(self, target: Path, table: pa.Table) -> None:
        """As :func:`write_part`."""
        write_part(target, table)
        self._hold(target, table)

    def read(self, path: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """As :func:`read_part`."""
        stamp, table = self._held.get(path, (None, None))
        if table is None or stamp != _stamp(path):
            table = read_part(path, columns)
            if columns is None:
                self._hold(path, table)
        return table if columns is None else table.select(list(columns))

    def _hold(self, path: Path, table: pa.Table) -> None:
        self._size -= self._held.pop(path)[1].nbytes if path in self._held else 0
        self._held[path], self._size = (_stamp(path), table), self._size + table.nbytes
        while self._size > self._most:
            self._size -= self._held.pop(next(iter(self._held)))[1].nbytes


def _stamp(path: Path) -> tuple[int, int]:
    """What another file under the same name would not have."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def write_text(path: Path, text: str) -> None:
    """Store a text, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
