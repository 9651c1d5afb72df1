"""A strong teacher's null, the student sharpened to the teacher's entropy, trained like a teacher: does what wins the first step win the run?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from configurations import SEEDS, STEP_SIZES, STUDENTS, Configuration
from record_names import NULLS
from run_records import Records
from short_training import train_once
from token_weights import diagnosed

from opdscope.config import same_entropy_name
from opdscope.summary.teachers import screen_questions


def run_entropy_nulls(records: Records, models: Path, work: Path, go_on: Callable[[], bool]) -> None:
    """Train what has no record yet."""
    for student in list(STUDENTS)[:3]:
        for size, rate in STEP_SIZES.items():
            for seed in SEEDS:
                key = f"{NULLS} | {student} | {size} | {seed}"
                if key in records:
                    continue
                if not go_on():
                    return
                found, temperature = foretold(student, models, work)
                run = train_once(Configuration(student, "sharpened"), rate, seed, models, teacher_temperature=temperature)
                labels = {"student": student, "step_size": size, "seed": seed, "temperature": temperature, "foretold": found}
                records.add(NULLS, key, {**labels, **run})
                print(f"{key}: {run['change']:+.3f}", flush=True)


def foretold(student: str, models: Path, work: Path) -> tuple[dict[str, list[float]], float]:
    """Screening gain and gain per push of the strong teacher and of its nulls, and the temperature of the one at its entropy."""
    tables = diagnosed(Configuration(student, "strong"), models, work)[0].tables()
    screened = screen_questions(tables)
    own = same_entropy_name("strong")
    found: dict[str, list[float]] = {}
    for label, name in (("strong", "strong"), ("sharpened", "sharpened"), ("entropy null", own)):
        gains = screened[name, "reverse_kl"]
        gain, kl = float(np.nanmean(gains.natural_gain)), float(np.nanmean(gains.reverse_kl))
        found[label] = [round(gain, 4), round(gain / np.sqrt(kl), 4)]
    return found, next(row["strength"] for row in tables["nulls"].to_pylist() if row["teacher"] == own)
