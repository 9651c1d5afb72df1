"""Tables of the trainings of a real small language model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from correlation import seed_mean, spearman
from page import Section, fixed
from record_names import REAL
from run_records import Records

_NUMBERS = ("gain", "gain / √KL", "accuracy gap", "reverse KL")


def real_sections(records: Records, predictions: Mapping[str, Mapping[str, float]]) -> list[Section]:
    """One section, if there are runs."""
    by: dict[str, list[dict[str, Any]]] = {}
    for row in records.rows(REAL):
        by.setdefault(row["teacher"], []).append(row)
    if not by:
        return []
    table: list[list[Any]] = []
    realised: dict[str, float] = {}
    for name, runs in by.items():
        own, change = predictions[name], seed_mean([run["change"] for run in runs])
        of_questions = float(np.sqrt(np.sum([run["change_error"] ** 2 for run in runs])) / len(runs))
        error = max(of_questions, change.error) if len(runs) > 1 else of_questions
        realised[name] = change.value
        gain = f"{own['gain']:+.2f} ± {own['gain error']:.2f}"
        others = [f"{own[key]:+.2f}" if key in own else "—" for key in _NUMBERS[1:]]
        table.append([name, gain, *others, f"{change.value:+.3f} ± {error:.3f}", len(runs)])
    right = sum(np.sign(predictions[name]["gain"]) == np.sign(value) for name, value in realised.items())
    ranks = ", ".join(
        f"{key} {fixed(spearman(np.array([predictions[name].get(key, np.nan) for name in realised]), np.array(list(realised.values()))))}"
        for key in _NUMBERS
    )
    first = next(iter(by.values()))[0]
    text = (
        "SmolLM2-135M-Instruct adds two numbers of one or two digits (reasoning-gym) within 32 tokens, at temperature 1; success before training "
        f"{first['before']:.2f}. Teachers are the model as it was, shown something or at another temperature, by reverse KL; 6 Adam steps of "
        f"32 rollouts at 2e-5, "
        "in fp32. Predicted by screening with 48 questions and 8 rollouts each; change of success on 512 held-out questions, paired. With "
        "so few steps, seeds "
        f"and teachers this is a check of the sign and the order, not a correlation: the gain's sign is right for {right} of {len(realised)} "
        f"teachers; rank "
        f"correlations: {ranks}."
    )
    head = ["teacher", *_NUMBERS, "change of success", "seeds"]
    return [Section("A real small model", text, head, table)]
