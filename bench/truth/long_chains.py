"""Screening on chains of 200, 1,000 and 5,000 tokens: is the stated error the real one, and does it shrink with the budget?"""

from typing import Any

import numpy as np
from page import Section, fixed
from population import make_population

from opdscope.core.screening import screening_gain
from opdscope.core.screening_errors import moderated_errors
from opdscope.models.exact import ReasoningWorld

LENGTHS = (200, 1000, 5000)
SIZES = (8, 32, 128)
SHOWN = ("good", "harmful", "random", "stylistic")


def study(num_questions: int, num_rollouts: int) -> Section:
    """The error of one question's gain: observed over groups of rollouts, and as stated."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for length in LENGTHS:
        population = make_population(ReasoningWorld(length=length, spacing=length // 10, seed=1), num_questions, num_rollouts, informing=())
        for name in SHOWN:
            t = population.names.index(name)
            observed, stated = [], []
            for size in SIZES:
                errors, own = [], []
                for start in range(0, num_rollouts - size + 1, size):
                    group = slice(start, start + size)
                    outcomes, pushes = population.outcomes[:, group], population.natural_pushes[:, t, 0, group]
                    gains = np.array([float(screening_gain(*one)) for one in zip(outcomes, pushes, strict=True)])
                    errors.append(gains - population.natural_gain[:, t, 0])
                    own.append(moderated_errors(outcomes, pushes, population.push_variance[:, t, group].mean(axis=-1)).error)
                observed.append(float(np.sqrt(np.mean(np.square(errors)))))
                stated.append(float(np.sqrt(np.mean(np.square(own)))))
            slope = float(np.polyfit(np.log(SIZES), np.log(observed), 1)[0])
            gain = float(np.mean(population.natural_gain[:, t, 0]))
            cells = [f"{fixed(o, 3)} ({fixed(s, 3)})" for o, s in zip(observed, stated, strict=True)]
            rows.append([f"{length:,}", name, fixed(gain, 3), fixed(float(np.mean(population.reverse_kl[:, t])), 1), *cells, fixed(slope)])
            checks.append((f"{name}, {length:,} tokens: the error shrinks as n^-½ (slope within .12)", abs(slope + 0.5) < 0.12))
            ratio = stated[-1] / observed[-1]
            checks.append(
                (f"{name}, {length:,} tokens, {SIZES[-1]} rollouts: the stated error is the observed one within 20 %", 0.8 < ratio < 1.2)
            )
    text = (
        f"{num_questions} questions of {num_rollouts} rollouts, ten critical positions a chain whatever its length. Root mean square error of "
        "one question's natural gain (reverse KL), in brackets as stated. What a teacher says at positions that matter costs no more on a long "
        "chain; a teacher that differs everywhere adds noise with every token, as the KL of a response shows."
    )
    columns = ["tokens", "teacher", "exact gain", "KL of a response, nats", *(f"{size} rollouts" for size in SIZES), "slope"]
    return Section("Long chains", text, columns, rows, checks)
