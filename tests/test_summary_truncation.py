"""Truncated objectives from stored strata: a case that flips, one that cannot be known, and a whole run."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fixtures.stored_runs import exact_run
from opdscope.config import load_config
from opdscope.core.success import StratumOutcomes
from opdscope.report import render_summary
from opdscope.summary import summarize
from opdscope.summary.nodes import NodeArrays, Posterior
from opdscope.summary.truncation import Truncation, truncations

CONFIG = load_config(
    {
        "student": {"model_name_or_path": "exact:itself"},
        "teachers": [{"name": "one", "teacher_model_name_or_path": "exact:good"}],
        "task": {"kind": "exact"},
        "objectives": ["reverse_kl"],
    }
)


def made(probs: list[float], teacher: list[float], success: list[float], has_tail: bool) -> list[Truncation]:
    """Eight questions with one such node each, success a little different in each; the last stratum may be the tail."""
    count, p, q = 8, np.array(probs), np.array(teacher)
    rows = [
        {"node_id": f"n{i}", "question_id": f"q{i}", "rollout_index": 0, "path_inclusion": 1.0, "inclusion": 0.5, "position": 0}
        for i in range(count)
    ]
    shape = (count, len(p))
    tail = np.zeros(shape, dtype=bool)
    tail[:, -1] = has_tail
    signal = np.log(q / p)
    variance = float(np.sum(p * signal**2) - np.sum(p * signal) ** 2)
    outcomes = StratumOutcomes(np.zeros(shape, dtype=int), np.ones(shape, dtype=int), np.full(shape, np.nan))
    nodes = NodeArrays(rows, np.tile(p, (count, 1)), np.tile(p**2, (count, 1)), tail, outcomes)
    mean = np.array(success) + np.linspace(-0.01, 0.01, count)[:, None] * np.arange(len(p))
    empty = np.zeros(0)
    posterior = Posterior(mean, mean, empty, empty, empty, outcomes)
    signals = [
        {
            "node_id": f"n{i}",
            "teacher": "one",
            "objective": "reverse_kl",
            "teacher_prob": teacher,
            "signal": [*signal],
            "signal_variance": variance,
        }
        for i in range(count)
    ]
    return truncations({"node_signals": pa.Table.from_pylist(signals)}, nodes, posterior, CONFIG)


def test_a_truncation_that_turns_a_harmful_push_into_a_helpful_one_is_said_to_flip() -> None:
    found = {(t.size, t.tail_bucket): t for t in made([0.5, 0.4, 0.1], [0.3, 0.2, 0.5], [1.0, 0.0, 0.0], has_tail=False)}
    # by hand: Cov_p(S, log q/p) = .5 (log .6 - mean) < 0; over the top two renormalised log(.6/.5556) is above their mean
    assert found[2, False].says == "flips"
    assert found[2, False].full.value < 0 < found[2, False].truncated.value
    assert found[2, True].says == "keeps"
    assert found[1, False].says == "no push"
    assert found[1, False].truncated.value == 0
    assert all(t.share_known == 1.0 for t in found.values())
    # with all three tokens kept nothing is truncated
    for bucket in (True, False):
        assert found[4, bucket].truncated.value == pytest.approx(found[4, bucket].full.value, rel=1e-9)
        assert found[4, bucket].cosine.value == pytest.approx(1.0)


def test_a_support_that_the_tail_may_hold_is_not_known() -> None:
    # the second candidate, .2, is less likely than a token of the tail may be, .3
    assert {t.size for t in made([0.5, 0.2, 0.3], [0.5, 0.3, 0.2], [1.0, 0.0, 0.5], has_tail=True)} == {1}


def test_a_run_says_where_truncation_flips_with_the_numbers_of_its_nodes(tmp_path: Path) -> None:
    run = exact_run(tmp_path / "run")
    data = summarize(run.tables(), run.config).data
    assert {row["teacher"] for row in data["truncations"]} == {"good", "harmful"}
    for row in data["truncations"]:
        assert row["support"] == {"reverse_kl": "student", "forward_kl": "teacher"}.get(row["objective"], "either")
        assert row["cosine"]["value"] is None or -1 <= row["cosine"]["value"] <= 1
    assert "Truncated to the likeliest tokens" in "".join(str(line) for line in render_summary(data).renderables)
