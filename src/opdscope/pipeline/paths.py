"""Which rollouts become paths: as many from the correct as from the incorrect ones, each with its known chance."""

from collections.abc import Sequence
from typing import Any

from opdscope.core.randomness import generator
from opdscope.pipeline.experiment import Experiment
from opdscope.records import Outcome, Role


def verified_rollouts(experiment: Experiment) -> dict[str, list[dict[str, Any]]]:
    """Measured rollouts with a verdict, by question, as stored."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in experiment.run.table("rollouts").to_pylist():
        if row["role"] == Role.MEASURED and row["outcome"] != Outcome.UNVERIFIABLE:
            found.setdefault(row["question_id"], []).append(row)
    return found


def draw_paths(
    seed: int, question_id: str, rollouts: Sequence[dict[str, Any]], paths_per_outcome: int
) -> list[tuple[dict[str, Any], str, float]]:
    """Paths of one question: rollout, class (`correct`, or `incorrect` which includes truncated), and chance among those of its class.

    Args:
        seed: The run's seed; the draw depends on it and on the question alone.
        question_id: The question.
        rollouts: Its verified rollouts.
        paths_per_outcome: Paths of each class, as far as there are any.
    """
    chosen: list[tuple[dict[str, Any], str, float]] = []
    for outcome in ("correct", "incorrect"):
        own = [row for row in rollouts if (row["outcome"] == Outcome.CORRECT) == (outcome == "correct")]
        count = min(paths_per_outcome, len(own))
        order = generator(seed, "paths", question_id, outcome).permutation(len(own))[:count]
        chosen += [(own[index], outcome, count / len(own)) for index in sorted(order)]
    return chosen
