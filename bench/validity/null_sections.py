"""A strong teacher beside its nulls: what the first step promises and what the run brings."""

from typing import Any

from configurations import STEP_SIZES, Configuration
from correlation import seed_mean
from page import Section
from record_names import GRID, NULLS
from run_records import Records


def null_sections(records: Records) -> list[Section]:
    """One section, if there are runs."""
    rows = records.rows(NULLS)
    table: list[list[Any]] = []
    for student in dict.fromkeys(row["student"] for row in rows):
        own = [row for row in rows if row["student"] == student]
        foretold = own[0]["foretold"]
        for teacher in ("strong", "sharpened", "entropy null"):
            name = (
                f"student at temperature {own[0]['temperature']:.2f}, the strong teacher's entropy"
                if teacher == "entropy null"
                else teacher
            )
            trained = own if teacher == "entropy null" else _grid(records, Configuration(student, teacher).name)
            cells: list[str] = []
            for size in STEP_SIZES:
                changes = [row["change"] for row in trained if row["step_size"] == size]
                mean = seed_mean(changes) if changes else None
                cells.append("—" if mean is None else f"{mean.value:+.3f} ± {mean.error:.3f} ({mean.num_seeds})")
            gain, per_push = foretold[teacher]
            table.append([student, name, f"{gain:+.2f}", f"{per_push:+.2f}", *cells])
    if not table:
        return []
    text = (
        "A teacher has to beat its nulls by natural gain, which is a rate at the first step. The student sharpened to the strong teacher's "
        "entropy has the "
        "larger one, also per size of its push; trained like a teacher it is soon at the student's greedy responses and has nothing more to "
        "give. Screening "
        "gain, gain / √KL, and realised change with one standard error over seeds."
    )
    head = ["student", "trained towards", "gain", "gain / √KL", *(f"realised, {size} steps" for size in STEP_SIZES)]
    return [Section("A teacher and its nulls", text, head, table)]


def _grid(records: Records, configuration: str) -> list[dict[str, Any]]:
    return [row for row in records.rows(GRID) if row["configuration"] == configuration]
