"""The page, made of stored records and predictions alone."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configurations import BATCH_SIZE, GENTLE_BATCH, HELD_OUT_QUESTIONS, SEEDS, STEP_SIZES, STEPS
from outcomes_table import spent
from run_records import Records

sys.path.append(str(Path(__file__).parents[1] / "truth"))  # tables are written as on docs/truth.md


def head(records: Records) -> str:
    """What was done, and how much of it is finished."""
    used = spent(records)
    rates = ", ".join(f"{name} {rate:g}" for name, rate in STEP_SIZES.items())
    return f"""# Do predictions come true?

Written by `make bench-validity` from the stored records of finished training runs; every figure on this page is computed by that command.

Embedded transformers of about 0.1 M parameters on two tasks are distilled on-policy with TRL's `DistillationTrainer`, {STEPS} Adam steps of
{BATCH_SIZE} questions, at two learning rates ({rates}) and {len(SEEDS)} seeds; *gentle* is the small rate with {GENTLE_BATCH} questions a step
and a warm-up. The realised change is measured on {HELD_OUT_QUESTIONS:,} held-out questions a seed,
paired with the starting student under the same random numbers. Predictions come from a diagnosis of the starting student,
before anything is trained. {used["runs"]:,} finished runs of the grid took {used["training_hours"]:.1f} hours of
training; the studies below have runs of their own.

These are tiny models on synthetic arithmetic: the page shows that the numbers mean what they say, not how large effects are elsewhere.

"""


def _stored(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_page(records: Records, predictions_path: Path, real_predictions_path: Path, root: Path) -> None:
    """Print the page, and write docs/validity.md and bench/results/validity.json."""
    from collapse_sections import collapse_sections
    from grid_sections import grid_sections
    from null_sections import null_sections
    from page import to_markdown
    from real_sections import real_sections
    from study_sections import study_sections

    predictions, real = _stored(predictions_path), _stored(real_predictions_path)
    sections = [
        *grid_sections(records, predictions),
        *null_sections(records),
        *study_sections(records),
        *collapse_sections(records),
        *real_sections(records, real),
    ]
    checks = [check for section in sections for check in section.checks]
    reading = (Path(__file__).parent / "reading.md").read_text(encoding="utf-8")
    foot = f"## In all\n\nGoals met: {sum(met for _, met in checks)} of {len(checks)}.\n"
    page = head(records) + reading + "\n" + "\n".join(map(to_markdown, sections)) + "\n" + foot
    print(page)
    (root / "docs" / "validity.md").write_text(page, encoding="utf-8")
    results = root / "bench" / "results"
    results.mkdir(exist_ok=True)
    data = {"sections": [asdict(section) for section in sections]}
    text = json.dumps(data, indent=2, ensure_ascii=False, default=lambda number: number.item())
    (results / "validity.json").write_text(text, encoding="utf-8")
