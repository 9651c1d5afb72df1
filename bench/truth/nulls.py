"""What is said of teachers that know nothing, and what filters find in noise."""

from typing import Any

import numpy as np
from page import Section, fixed
from population import PUSHES, Population
from screening import draw, with_controls

from opdscope.config import Config
from opdscope.core.paper import filter_positive, kept_children
from opdscope.core.randomness import generator
from opdscope.summary.ranking import verdicts
from opdscope.summary.teachers import QuestionGains

KNOW_NOTHING = ("random", "stylistic", "sharpened", "flattened", "sharper", "flatter")
KNOW_SOMETHING = ("good", "fair", "weak", "harmful")
WORDS = ("helps", "harms", "null not beaten", "null does as well", "null does better", "does not help", "undecided")
BUDGETS = ((40, 16), (40, 50), (100, 100))


def judged(population: Population, repetitions: int) -> Section:
    """How often each verdict falls on each teacher."""
    config = Config.model_validate(
        {
            "student": {"model_name_or_path": "exact:itself"},
            "teachers": [{"name": "good", "teacher_model_name_or_path": "exact:good"}],
            "task": {"kind": "exact"},
        }
    )
    names = (*KNOW_SOMETHING, *KNOW_NOTHING)
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for num_questions, num_rollouts in BUDGETS:
        source = generator("truth", "nulls", num_questions, num_rollouts)
        counts = {name: dict.fromkeys(WORDS, 0) for name in names}
        for _ in range(repetitions):
            one = draw(population, num_questions, num_rollouts, source)
            gains = with_controls(population, one, PUSHES[0], range(len(population.names)))
            screening = {
                (name, "reverse_kl"): QuestionGains(gains[:, t], one.gains["gain"][:, t], one.reverse_kl[:, t])
                for t, name in enumerate(population.names)
            }
            for name, word in verdicts(names, [screening], "reverse_kl", config).items():
                counts[name][word] += 1
        for name in names:
            share = {word: count / repetitions for word, count in counts[name].items()}
            exact = float(population.natural_gain[:, population.names.index(name), 0].mean())
            rows.append([f"{num_questions} × {num_rollouts}", name, fixed(exact, 3), *(f"{share[word]:.1%}" for word in WORDS)])
            if name in ("random", "stylistic"):
                checks.append(
                    (f"{name} is called helpful in ≤ 5 % of repetitions, {num_questions} × {num_rollouts}", share["helps"] <= 0.05)
                )
            elif name in KNOW_NOTHING:
                checks.append((f"{name} is never called helpful, {num_questions} × {num_rollouts}", share["helps"] == 0))
    text = (
        f"{repetitions:,} repetitions a budget; ten teachers are judged together at 90 %. *sharper* and *flatter* are the student at "
        "temperatures 0.6 and 1.6, where the nulls of the configuration have 0.8 and 1.25."
    )
    return Section(
        "Verdicts on teachers that know something and nothing",
        text,
        ["questions × rollouts", "teacher", "exact gain", *WORDS],
        rows,
        checks,
    )


def filters(num_nodes: int) -> Section:
    """Selecting nodes for a positive cosine, and scoring them on the same visits or on others."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for strength in (0.0, 0.006):
        for children in (2, 3, 4, 6):
            unfiltered, oracle, honest, error = _filtered(children, 100, strength, num_nodes)
            ratio = oracle / unfiltered if unfiltered > 2 * error else float("nan")
            size = "nothing" if strength == 0 else "a trace"
            rows.append([size, children, *(fixed(v, 3) for v in (unfiltered, oracle, honest, error)), fixed(ratio, 1)])
            if strength == 0:
                checks.append(
                    (f"{children} children, nothing there: the honest filter's mean is within 4 errors of zero", abs(honest) < 4 * error)
                )
                checks.append((f"{children} children, nothing there: the oracle filter's mean is above .4", oracle > 0.4))
    text = (
        f"{num_nodes:,} simulated nodes a row, 100 visits a child, reverse KL to a random teacher. *Nothing*: all children succeed equally "
        "often. *A trace*: success leans a little towards what the teacher wants, so that the unfiltered mean is what the paper publishes (.01 "
        "to .06). *Oracle*: nodes with a positive cosine, scored on the visits that selected them. *Honest*: selected on one half, scored on "
        "the other, both ways. The published “10–15×” is the ratio of a selected mean, which noise alone makes .5 to 1, to a small unfiltered "
        "one: it says how small the mean is, and nothing about nodes that can be found."
    )
    columns = ["what is there", "kept children", "unfiltered mean", "oracle filter", "honest filter", "its error", "oracle / unfiltered"]
    return Section("The oracle filter on noise", text, columns, rows, checks)


def _filtered(children: int, visits: int, strength: float, num_nodes: int) -> tuple[float, float, float, float]:
    source = generator("truth", "filter", children, int(1000 * strength))
    p = source.dirichlet(np.full(children, 2.0), size=num_nodes)
    signal = source.normal(size=p.shape)
    q = p * np.exp(signal)
    q /= q.sum(axis=-1, keepdims=True)
    value = source.uniform(0.2, 0.8, size=(num_nodes, 1))
    success = np.clip(value + strength * signal * source.uniform(size=(num_nodes, 1)), 0.0, 1.0)
    halves = source.binomial(visits // 2, np.broadcast_to(success, (2, *p.shape))) / (visits // 2)
    kept = np.ones(p.shape, dtype=bool)
    whole = kept_children(p, q, halves.mean(axis=0), kept).cosine
    first, second = (kept_children(p, q, half, kept).cosine for half in halves)
    honest = np.concatenate([filter_positive(first, second), filter_positive(second, first)])
    error = float(np.nanstd(honest) / np.sqrt(np.sum(~np.isnan(honest)) / 2))
    return float(np.nanmean(whole)), float(np.nanmean(filter_positive(whole, whole))), float(np.nanmean(honest)), error
