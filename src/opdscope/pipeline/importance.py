"""How much each position of a rollout matters as a node, from what screening stored."""

import numpy as np
from jaxtyping import Float

from opdscope.core.early_range import EarlyRange, ScreenedResponse, learn_early_range
from opdscope.core.sampling import importance_per_cost, node_importance, variance_importance
from opdscope.pipeline.experiment import Experiment
from opdscope.pipeline.paths import verified_rollouts
from opdscope.records import Outcome
from opdscope.summary.controls import Controls
from opdscope.summary.paths import list_arrays

_Key = tuple[str, int]  # question and rollout index


class PositionImportance:
    """Weights for drawing nodes on any scored rollout; they rest on ordinary rollouts alone, of which no continuation is one."""

    def __init__(self, experiment: Experiment) -> None:
        """Read what is scored, and learn where outcomes are settled if the configuration asks for it."""
        self._settings, run = experiment.config.targeted, experiment.run
        table = run.table("student_positions", ["question_id", "rollout_index", "entropy", "collision"])
        keys: list[_Key] = list(zip(*(table[name].to_pylist() for name in ("question_id", "rollout_index")), strict=True))
        self._entropy, self._collision = (dict(zip(keys, list_arrays(table[name]), strict=True)) for name in ("entropy", "collision"))
        self._divergence = self._read_divergence(experiment)
        self._range = self._learn(experiment) if self._settings.include_by_range else None

    def weights(self, key: _Key) -> Float[np.ndarray, "position"]:
        """Non-negative weights without a unit; zero where every gain is."""
        found, divergence = self._bound(key), self._divergence[key]
        if self._range is not None:
            settled = self._range.shares(self._entropy[key], divergence, found)
            found = variance_importance(divergence, settled, self._settings.continuations_per_node)
        if self._settings.include_by_cost:
            found = importance_per_cost(found, np.maximum(len(found) - np.arange(len(found)) - 1.0, 1.0))
        return found

    def _bound(self, key: _Key) -> Float[np.ndarray, "position"]:
        return node_importance(self._collision[key], self._divergence[key])

    def _read_divergence(self, experiment: Experiment) -> dict[_Key, Float[np.ndarray, "teacher position"]]:
        """Of every teacher, finite; zero where it has no context for the question, one everywhere if no teacher has.

        A teacher that excludes a token the student may take is as far away there as anywhere on the response.
        """
        place = {name: k for k, name in enumerate(experiment.teachers)}
        columns = ["question_id", "rollout_index", "teacher", "reverse_kl"]
        table = experiment.run.table("teacher_positions", columns)
        found: dict[_Key, Float[np.ndarray, "teacher position"]] = {}
        names = zip(*(table[name].to_pylist() for name in columns[:3]), strict=True)
        for (question_id, index, teacher), values in zip(names, list_arrays(table["reverse_kl"]), strict=True):
            if teacher in place:
                own = found.setdefault((question_id, index), np.zeros((len(place), len(values))))
                finite = np.isfinite(values)
                own[place[teacher]] = np.where(finite, values, np.max(values, initial=0.0, where=finite))
        return {key: found.get(key, np.ones((len(place), len(values)))) for key, values in self._entropy.items()}

    def _learn(self, experiment: Experiment) -> EarlyRange | None:
        """None if no rollout has a verdict."""
        columns = ["question_id", "rollout_index", "teacher", "reverse_kl", "log_ratio"]
        controls = Controls({"teacher_positions": experiment.run.table("teacher_positions", columns)}, list(experiment.teachers))
        responses: list[ScreenedResponse] = []
        for number, (question_id, rows) in enumerate(verified_rollouts(experiment).items()):
            for row in rows:
                key = (question_id, row["rollout_index"])
                length, right = len(row["token_ids"]), float(row["outcome"] == Outcome.CORRECT)
                centred, divergence = controls.centred(key, length), self._divergence[key]
                responses.append(ScreenedResponse(number, right, self._entropy[key], centred, divergence, self._bound(key)))
        return learn_early_range(responses) if responses else None
