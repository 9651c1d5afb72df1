"""Finished training runs, one line of JSON each: a killed bench goes on after the last of them."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Records:
    """An append-only file of records with unique keys."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that was torn by a kill is cut off."""
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                path.write_bytes(whole)
            for line in whole.decode().splitlines():
                row = json.loads(line)
                self._rows[row["key"]] = row

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def rows(self, study: str) -> list[dict[str, Any]]:
        """Of one study, in the order in which they were finished."""
        return [row for row in self._rows.values() if row["study"] == study]

    def add(self, study: str, key: str, values: Mapping[str, Any]) -> None:
        """Store one finished run.

        Raises:
            KeyError: If it is stored already.
        """
        if key in self._rows:
            raise KeyError(f"record {key!r} is stored already")
        row = {"study": study, "key": key, **values}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._rows[key] = row


def missing(records: Records, keys: Iterable[str]) -> list[str]:
    """Keys without a record, in order."""
    return [key for key in keys if key not in records]
