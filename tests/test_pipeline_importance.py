"""Which nodes a run draws: by freedom and push, by where ordinary rollouts settle, by cost; and nothing of it changes what is estimated."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import opdscope
from opdscope.config import TargetedConfig
from opdscope.core.sampling import inclusion_probabilities, node_importance
from opdscope.pipeline.importance import PositionImportance
from opdscope.pipeline.paths import verified_rollouts
from opdscope.records import SCHEMAS
from opdscope.store import Run
from opdscope.summary.nodes import read_nodes
from opdscope.summary.weights import question_weights

NUM_QUESTIONS, LENGTH = 24, 18
CONFIG: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "teachers": [
        {"name": "good teacher", "teacher_model_name_or_path": "exact:good"},
        {"name": "noise", "teacher_model_name_or_path": "exact:random"},
    ],
    "task": {"kind": "exact", "num_questions": NUM_QUESTIONS, "length": LENGTH},
    "objectives": ["reverse_kl"],
    "rollouts": {"num_rollouts": 16, "num_demonstrations": 0, "max_completion_length": LENGTH + 1},
    "targeted": {"paths_per_outcome": 2, "nodes_per_path": 4, "continuations_per_node": 8},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, bool], Run]:
    """By early range and by cost."""
    folder = tmp_path_factory.mktemp("importance")
    return {
        (by_range, by_cost): opdscope.diagnose(
            {**CONFIG, "targeted": {**CONFIG["targeted"], "include_by_range": by_range, "include_by_cost": by_cost}},
            run_dir=folder / f"{by_range} {by_cost}",
        )
        for by_range in (False, True)
        for by_cost in (False, True)
    }


def _positions(run: Run) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """Collision and reverse KL, teacher × position, of every rollout."""
    student = run.table("student_positions").to_pylist()
    push: dict[tuple[str, int], list[list[float]]] = {}
    for row in run.table("teacher_positions").to_pylist():
        if row["teacher"] in ("good teacher", "noise"):
            push.setdefault((row["question_id"], row["rollout_index"]), []).append(row["reverse_kl"])
    keys = [(row["question_id"], row["rollout_index"]) for row in student]
    return {key: (np.array(row["collision"]), np.array(push[key])) for key, row in zip(keys, student, strict=True)}


def test_with_both_off_nodes_are_included_by_freedom_and_push(runs: dict[tuple[bool, bool], Run]) -> None:
    run = runs[False, False]
    positions = _positions(run)
    for row in run.table("nodes").to_pylist():
        wanted = inclusion_probabilities(node_importance(*positions[row["question_id"], row["rollout_index"]]), 4, 0.25)
        assert row["inclusion"] == pytest.approx(wanted[row["position"]], rel=1e-6)  # divergences are stored in single precision


def test_cost_divides_the_weights_by_the_root_of_what_is_left_of_the_path(runs: dict[tuple[bool, bool], Run]) -> None:
    run = runs[False, True]
    positions, left = _positions(run), np.maximum(LENGTH - np.arange(LENGTH + 1), 1)
    for row in run.table("nodes").to_pylist():
        own = node_importance(*positions[row["question_id"], row["rollout_index"]]) / np.sqrt(left)
        assert row["inclusion"] == pytest.approx(
            inclusion_probabilities(own, 4, 0.25)[row["position"]], rel=1e-6
        )  # divergences are stored in single precision


def test_as_many_nodes_cost_fewer_tokens(runs: dict[tuple[bool, bool], Run]) -> None:
    def tokens(run: Run) -> float:
        return sum(len(row) for row in run.table("continuations")["token_ids"].to_pylist()) / run.table("nodes").num_rows

    for by_range in (False, True):
        assert runs[by_range, False].table("nodes").num_rows == runs[by_range, True].table("nodes").num_rows
        # a root of cost alone would take a third off; a quarter of the probability is even, and where teachers push is given
        assert tokens(runs[by_range, True]) < 0.9 * tokens(runs[by_range, False])


def test_the_early_range_moves_weight_to_where_outcomes_are_settled(runs: dict[tuple[bool, bool], Run]) -> None:
    run = runs[False, False]

    def critical(by_range: bool) -> float:
        changes = {"include_by_range": by_range, "include_by_cost": False, "continuations_per_node": 1000}
        importance = _importance(run, run.config.targeted.model_copy(update=changes))
        weights = [importance.weights((row["question_id"], row["rollout_index"])) for row in run.table("rollouts").to_pylist()]
        shares = np.array([own / own.sum() for own in weights])
        return float(shares[:, 5::6].sum(axis=1).mean())

    # every sixth position is critical; noise pushes everywhere, and with so many continuations a node it is the range alone that counts
    assert critical(True) > critical(False) + 0.05


@pytest.mark.parametrize("by_cost", [False, True])
@pytest.mark.parametrize("by_range", [False, True])
def test_a_sum_over_nodes_estimates_the_sum_over_all_positions(by_range: bool, by_cost: bool, runs: dict[tuple[bool, bool], Run]) -> None:
    """The teachers' divergence is known at every position: what nodes say of its sum over a path must agree with it, whatever drew them."""
    run = runs[by_range, by_cost]
    positions = _positions(run)
    rows = read_nodes(run.tables()).rows
    signals = {row["node_id"]: row["reverse_kl"] for row in run.table("node_signals").to_pylist() if row["teacher"] == "noise"}
    weights = question_weights(rows)
    paths: dict[str, dict[int, float]] = {}
    for row in rows:
        paths.setdefault(row["question_id"], {})[row["rollout_index"]] = 1.0 / row["path_inclusion"]
    index = {question: k for k, question in enumerate(paths)}
    found = np.bincount([index[row["question_id"]] for row in rows], weights * [signals[row["node_id"]] for row in rows])
    exact = [
        sum(weight * positions[question, path][1][1].sum() for path, weight in own.items()) / sum(own.values())
        for question, own in paths.items()
    ]
    away = found - np.array(exact)
    # four standard errors over questions
    assert abs(away.mean()) < 4 * away.std() / np.sqrt(len(away))


def test_a_teacher_that_excludes_a_token_leaves_every_weight_finite(runs: dict[tuple[bool, bool], Run]) -> None:
    """Its divergence is infinite where the student may take that token."""

    class Excluding:
        def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
            found = runs[True, True].table(name, columns)
            if name == "teacher_positions":
                field = SCHEMAS[name].field("reverse_kl")
                teachers, values = found["teacher"].to_pylist(), found["reverse_kl"].to_pylist()
                values = [[np.inf, *own[1:]] if teacher == "noise" else own for own, teacher in zip(values, teachers, strict=True)]
                found = found.set_column(found.schema.get_field_index("reverse_kl"), field, pa.array(values, field.type))
            return found

    question_id = runs[True, True].table("questions")["question_id"][0].as_py()
    weights = _importance(Excluding(), runs[True, True].config.targeted).weights((question_id, 0))
    assert np.all(np.isfinite(weights))
    assert weights.max() > 0


def _importance(run: Any, targeted: TargetedConfig) -> PositionImportance:
    """With as much of an experiment as it needs."""
    experiment: Any = SimpleNamespace(run=run, config=SimpleNamespace(targeted=targeted), teachers={"good teacher": None, "noise": None})
    return PositionImportance(experiment, verified_rollouts(experiment))
