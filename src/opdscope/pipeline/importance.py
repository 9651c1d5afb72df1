"""How much each position of a rollout matters as a node, from what screening stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from opdscope.core.early_range import ScreenedResponses, learn_early_range
from opdscope.core.sampling import importance_per_cost, node_importance, variance_importance
from opdscope.pipeline.experiment import Experiment
from opdscope.records import Outcome
from opdscope.summary.paths import flat_lists
from opdscope.summary.positions import Rollout, places_of, read_teacher_positions, rollouts_of


class PositionImportance:
    """Weights for drawing nodes on any scored rollout; they rest on ordinary rollouts alone, of which no continuation is one."""

    def __init__(self, experiment: Experiment, rollouts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Read what is scored, and learn where outcomes are settled if the configuration asks for it.

        Args:
            experiment: The run.
            rollouts: Its rollouts with a verdict, by question.
        """
        self._settings = experiment.config.targeted
        table = experiment.run.table("student_positions", ["question_id", "rollout_index", "entropy", "collision"])
        keys = rollouts_of(table)
        (entropy, length), (collision, _) = (flat_lists(table[name]) for name in ("entropy", "collision"))
        self._entropy, self._collision = entropy.astype(np.float64), collision.astype(np.float64)
        self._place = places_of(keys, length.tolist())
        self._centred, self._divergence = self._read_teachers(experiment)
        self._range = None
        if self._settings.include_by_range and keys:
            right = {(q, row["rollout_index"]): float(row["outcome"] == Outcome.CORRECT) for q, rows in rollouts.items() for row in rows}
            outcome, question = np.array([right.get(key, np.nan) for key in keys]), np.unique([q for q, _ in keys], return_inverse=True)[1]
            screened = ScreenedResponses(question, outcome, length, self._entropy, self._centred, self._divergence)
            self._range = learn_early_range(screened)

    def weights(self, key: Rollout) -> Float[np.ndarray, "position"]:
        """Non-negative weights without a unit; zero where every gain is."""
        own = self._place[key]
        divergence = self._divergence[:, own]
        if not divergence.any():  # no teacher has a context for the question
            divergence = np.ones_like(divergence)
        found = node_importance(self._collision[own], divergence)
        if self._range is not None:
            settled = self._range.shares(self._entropy[own], divergence, found)
            found = variance_importance(divergence, settled, self._settings.continuations_per_node)
        if self._settings.include_by_cost:
            found = importance_per_cost(found, np.maximum(len(found) - np.arange(len(found)) - 1.0, 1.0))
        return found

    def _read_teachers(self, experiment: Experiment) -> tuple[Float[np.ndarray, "teacher position"], Float[np.ndarray, "teacher position"]]:
        """Centred log-ratio and divergence of every teacher, finite.

        A teacher that excludes a token the student may take is as far away there as anywhere on the response.
        """
        columns = ["question_id", "rollout_index", "teacher", "log_ratio", "reverse_kl"]
        found = read_teacher_positions(experiment.run.table("teacher_positions", columns), list(experiment.teachers), self._place)
        divergence, finite = found.divergence, np.isfinite(found.divergence)
        if not finite.all():
            for own in self._place.values():
                largest = np.max(divergence[:, own], axis=1, initial=0.0, where=finite[:, own])
                divergence[:, own] = np.where(finite[:, own], divergence[:, own], largest[:, None])
        return found.centred, divergence
