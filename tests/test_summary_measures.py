"""Numbers of single nodes: every teacher's, whichever of a run's nodes it was asked at."""

import numpy as np
import pyarrow as pa
import pytest

from opdscope.config import Config
from opdscope.core.success import StratumOutcomes
from opdscope.summary import measures
from opdscope.summary.measures import NodeMeasures, measure_nodes, score_table
from opdscope.summary.nodes import NodeArrays, Posterior, node_posterior

CONFIG = Config.model_validate(
    {
        "student": {"model_name_or_path": "exact:itself"},
        "teachers": [{"name": "all", "teacher_model_name_or_path": "exact:good"}],
        "task": {"kind": "exact"},
        "analysis": {"num_draws": 100, "back_up": False},
    }
)
NODES, STRATA = 40, 4
NUMBERS = ("score", "gain", "natural_gain", "natural_alignment", "advantage")


@pytest.fixture(scope="module")
def drawn() -> tuple[NodeArrays, Posterior, list[dict[str, object]]]:
    """Forty nodes of three candidates and a tail, and a teacher's signals there."""
    source = np.random.default_rng(0)
    probs = source.dirichlet(np.ones(STRATA), size=NODES)
    is_tail = np.tile([False, False, False, True], (NODES, 1))
    squared = probs**2 / np.where(is_tail, 5.0, 1.0)
    count = np.full(probs.shape, 10)
    outcomes = StratumOutcomes(source.binomial(10, source.random(probs.shape)), count, np.full(probs.shape, np.nan))
    rows = [
        {
            "node_id": f"q{i}/0/0",
            "question_id": f"q{i}",
            "rollout_index": 0,
            "position": 0,
            "path_outcome": "correct",
            "path_inclusion": 1.0,
            "inclusion": 0.5,
        }
        for i in range(NODES)
    ]
    nodes = NodeArrays(rows, probs, squared, is_tail, outcomes)
    signals = [
        {
            "node_id": row["node_id"],
            "teacher": "all",
            "objective": "reverse_kl",
            "teacher_prob": source.dirichlet(np.ones(STRATA)).tolist(),
            "signal": source.normal(size=STRATA).tolist(),
            "gradient": (0.1 * source.normal(size=STRATA)).tolist(),
            "gradient_squared_norm": 0.5,
            "signal_variance": 3.0,
            "reverse_kl": 0.1 * i,
        }
        for i, row in enumerate(rows)
    ]
    return nodes, node_posterior({}, nodes, CONFIG), signals


def _found(signals: list[dict[str, object]], nodes: NodeArrays, posterior: Posterior) -> list[NodeMeasures]:
    return measure_nodes({"node_signals": pa.Table.from_pylist(signals)}, nodes, posterior, CONFIG)


def test_a_teacher_that_was_asked_at_some_nodes_has_its_numbers_there(drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, posterior, signals = drawn
    # several batches, one of which holds none of its nodes; stored in no order
    monkeypatch.setattr(measures, "_NODES_AT_ONCE", 16)
    some = [{**signals[i], "teacher": "some"} for i in (35, 2, 39, 7)]
    everywhere, there = _found([*signals, *some], nodes, posterior)
    assert there.index.tolist() == [2, 7, 35, 39]
    np.testing.assert_array_equal(there.reverse_kl, everywhere.reverse_kl[there.index])
    np.testing.assert_array_equal(there.tail_prob, everywhere.tail_prob[there.index])
    for name in ("gain", "natural_gain", "advantage"):
        np.testing.assert_allclose(getattr(there, name), getattr(everywhere, name)[there.index], rtol=1e-12)
    assert np.all(np.isfinite(there.score))
    assert score_table(nodes, posterior, [there])["node_id"].to_pylist() == [nodes.rows[i]["node_id"] for i in there.index]


def test_numbers_do_not_depend_on_other_teachers_nor_on_how_many_nodes_are_held_at_a_time(drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, posterior, signals = drawn
    (alone,) = _found(signals, nodes, posterior)
    monkeypatch.setattr(measures, "_NODES_AT_ONCE", 7)
    other = [{**row, "teacher": "other", "signal": [0.0, 1.0, 2.0, 3.0]} for row in signals]
    beside = _found([*other, *signals], nodes, posterior)[1]
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(beside, name), getattr(alone, name), rtol=1e-9, atol=1e-12)


def test_padding_changes_nothing(drawn) -> None:
    nodes, _, signals = drawn

    def wider(values: np.ndarray, filling: float) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, 2)), constant_values=filling)

    o = nodes.outcomes
    outcomes = StratumOutcomes(wider(o.num_correct, 0), wider(o.num_verified, 0), wider(o.terminal, np.nan))
    more = NodeArrays(nodes.rows, wider(nodes.probs, 0.0), wider(nodes.squared_probs, 0.0), wider(nodes.is_tail, False), outcomes)
    (plain,), (padded,) = (_found(signals, each, node_posterior({}, each, CONFIG)) for each in (nodes, more))
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(padded, name), getattr(plain, name), rtol=1e-9, atol=1e-12)
