"""The run directory: append-only Parquet parts, each written once by atomic rename, so that nothing paid for is lost or paid for twice.

A part belongs to a *unit* of work whose contents follow from the configuration alone. A unit is done when its part exists. An interrupted unit
leaves nothing behind but a temporary file, and is done again from its seeds with the same result.
"""

import contextlib
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from opdscope.config import Config, differences, load_config
from opdscope.errors import ConfigError, RunDirectoryError
from opdscope.records import SCHEMA_VERSION, SCHEMAS
from opdscope.store.parts import LatestParts, write_text

_CONFIG, _PROVENANCE, _TIMINGS, _LOCK = "config.yaml", "provenance.json", "timings.jsonl", ".lock"
_LIBRARIES = ("numpy", "scipy", "pyarrow", "torch", "transformers", "tokenizers", "gguf", "reasoning-gym", "math-verify")


class Run:
    """A run directory: reads tables, writes parts, keeps config and provenance. Reading needs no torch."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        """The directory."""
        self.config = config
        """The resolved configuration that it was made with."""
        self._parts = LatestParts()

    def __repr__(self) -> str:
        """Path and number of rows of each table that has any."""
        counts = ", ".join(f"{name} {table.num_rows}" for name, table in self.tables().items() if table.num_rows)
        return f"Run({str(self.path)!r}: {counts or 'empty'})"

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a table as Arrow (`.to_pandas()` works), in the order of units; empty if nothing is stored.

        Args:
            name: Which table.
            columns: Those to read, in this order, which takes less time; None reads all.

        Raises:
            KeyError: If there is no such table or column.
            RunDirectoryError: If a part cannot be read.
        """
        schema = SCHEMAS[name] if columns is None else pa.schema([SCHEMAS[name].field(column) for column in columns])
        parts = [self._parts.read(path, columns) for path in sorted((self.path / name).glob("*.parquet"))]
        return pa.concat_tables(parts).select(schema.names).cast(schema) if parts else schema.empty_table()

    def unit(self, name: str, unit: str) -> pa.Table:
        """The rows that one unit stored in a table.

        Raises:
            RunDirectoryError: If the unit is not done, or its part cannot be read.
        """
        return self._parts.read(self._part(name, unit))

    def tables(self) -> dict[str, pa.Table]:
        """Every table by name."""
        return {name: self.table(name) for name in SCHEMAS}

    def has(self, name: str, unit: str) -> bool:
        """True if the unit's part of a table is stored."""
        return self._part(name, unit).exists()

    def write(self, name: str, unit: str, table: pa.Table) -> None:
        """Store a unit's part of a table: all of it or nothing, even if the power goes.

        Raises:
            RunDirectoryError: If the disk is full or the directory cannot be written; the unit then counts as not done.
        """
        self._parts.write(self._part(name, unit), table)

    def provenance(self) -> dict[str, Any]:
        """Package and library versions, models with their fingerprints, engine and host, as recorded when the run was started."""
        return json.loads((self.path / _PROVENANCE).read_text(encoding="utf-8"))

    def record_models(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """Record what the models are, or check that they are still the same.

        Raises:
            RunDirectoryError: If a model of this run had other weights or another tokenizer before.
        """
        known = self.provenance()
        for role, facts in models.items():
            before = known["models"].get(role)
            for key in ("fingerprint", "tokenizer_hash"):
                if before is not None and before[key] != facts[key]:
                    raise RunDirectoryError(
                        f"{self.path}: the {key.replace('_', ' ')} of model {role!r} has changed since this run was started "
                        f"({before[key][:12]}… then, {facts[key][:12]}… now); use another run directory"
                    )
        known["models"] = {**known["models"], **models}
        write_text(self.path / _PROVENANCE, json.dumps(known, indent=2, sort_keys=True) + "\n")

    def record_time(self, stage: str, unit: str, seconds: float, num_tokens: int) -> None:
        """Note what a unit took; for estimates and the summary's times only."""
        line = json.dumps({"stage": stage, "unit": unit, "seconds": round(seconds, 4), "num_tokens": num_tokens})
        with (self.path / _TIMINGS).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def times(self) -> list[dict[str, Any]]:
        """What :meth:`record_time` noted; a line that a power cut tore is left out."""
        path = self.path / _TIMINGS
        found: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Hold the directory for writing.

        Raises:
            RunDirectoryError: If another process holds it.
        """
        with (self.path / _LOCK).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunDirectoryError(f"{self.path} is in use by another process; wait for it or use another run directory") from error
            self._clear_torn()
            yield

    def _part(self, name: str, unit: str) -> Path:
        return self.path / name / f"{unit}.parquet"

    def _clear_torn(self) -> None:
        # Only the holder of the lock may do this: what is unfinished or unreadable now will never be finished, and its unit is done again.
        for name in SCHEMAS:
            for temporary in (self.path / name).glob(".*.parquet.*"):
                temporary.unlink()
            for part in (self.path / name).glob("*.parquet"):
                try:
                    pq.read_metadata(part)
                except (OSError, pa.ArrowInvalid):
                    part.unlink()


def is_run(path: str | Path) -> bool:
    """True if the directory is that of a diagnosis, whatever its version."""
    return (Path(path) / _CONFIG).is_file() and (Path(path) / _PROVENANCE).is_file()


def open_run(path: str | Path) -> Run:
    """A stored run for reading.

    Raises:
        RunDirectoryError: If the path is not a run directory, or one of another schema version.
    """
    directory = Path(path)
    if not is_run(directory):
        raise RunDirectoryError(f"{directory} is not a run directory (no {_CONFIG} in it); `opdscope diagnose CONFIG` makes one")
    try:
        provenance = json.loads((directory / _PROVENANCE).read_text(encoding="utf-8"))
        config = load_config(directory / _CONFIG)
    except (json.JSONDecodeError, ConfigError) as error:
        raise RunDirectoryError(f"{directory} was made by another version of opdscope or is damaged: {error}") from error
    if provenance.get("schema_version") != SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{directory} has schema version {provenance.get('schema_version')}, this opdscope reads version {SCHEMA_VERSION}; "
            f"it was written by opdscope {provenance.get('opdscope')}: use that version, or run the diagnosis again"
        )
    return Run(directory, config)


def start_run(path: str | Path, config: Config) -> Run:
    """A run directory for writing: made if it does not exist, resumed if it holds the same configuration.

    Settings that do not change what is measured (engine, analysis, name) may differ; the new ones are kept. A directory in which nothing
    was stored, since a model was missing for example, is taken over.

    Raises:
        RunDirectoryError: If the directory holds another configuration (the text lists what differs) or something else altogether.
    """
    directory = Path(path)
    is_run = (directory / _CONFIG).is_file() and (directory / _PROVENANCE).is_file()
    if is_run and _holds_results(directory):
        existing = open_run(directory)
        changed = differences(existing.config.identity(), config.identity())
        if changed:
            raise RunDirectoryError(
                f"{directory} holds a run of another configuration; what differs: {'; '.join(changed)}. "
                "Use another directory (--run-dir), or the configuration that it was made with"
            )
    elif directory.exists() and not is_run and (not directory.is_dir() or any(directory.iterdir())):
        raise RunDirectoryError(f"{directory} exists and is not a run directory; use another one (--run-dir)")
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / _PROVENANCE, json.dumps(_provenance(), indent=2, sort_keys=True) + "\n")
    write_text(directory / _CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    return Run(directory, config)


def remove_run(path: str | Path) -> None:
    """Delete a run directory, and only a run directory.

    Raises:
        RunDirectoryError: If the path is not one.
    """
    open_run(path)
    shutil.rmtree(path)


def _holds_results(directory: Path) -> bool:
    return any((directory / name).is_dir() and any((directory / name).iterdir()) for name in SCHEMAS)


def _provenance() -> dict[str, Any]:
    versions: dict[str, str] = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return {
        "schema_version": SCHEMA_VERSION,
        "opdscope": metadata.version("opdscope"),
        "libraries": versions,
        "python": platform.python_version(),
        "host": {"system": platform.system(), "machine": platform.machine(), "processor": platform.processor(), "cores": os.cpu_count()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": {},
    }
