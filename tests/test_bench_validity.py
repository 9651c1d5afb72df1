"""The validation bench: its statistics on cases with known answers, its store after a kill, and one configuration from training to table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fixtures.training import NOISE

sys.path.append(str(Path(__file__).parents[1] / "bench" / "validity"))
sys.path.append(str(Path(__file__).parents[1] / "bench" / "truth"))

from collapse_sections import collapse_sections
from configurations import CONFIGURATIONS, FURTHER, SEEDS, STEP_SIZES, STUDENTS, TEACHERS, Configuration
from correlation import clustered_spearman, seed_mean, sign_agreement, spearman
from grid_sections import grid_sections
from outcomes_table import PREDICTIONS, RIVALS, read_rows
from record_names import COLLAPSE, GRID, grid_key
from replay import CAUTIOUS, WATCHFUL, first_stop
from run_records import Records
from special_teachers import wrong_addition_solution, wrong_chain_solution

pytestmark = [pytest.mark.filterwarnings(message) for message in NOISE]


def test_rank_correlation_agrees_with_scipy_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 40).astype(float), rng.normal(size=40)
    assert spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-12)


def test_clusters_that_agree_within_widen_the_interval():
    # ten clusters of eight copies say no more than ten pairs
    rng = np.random.default_rng(1)
    x = rng.normal(size=10)
    y = x + rng.normal(size=10)
    copies, labels = np.repeat([x, y], 8, axis=1), [str(i // 8) for i in range(80)]
    clustered = clustered_spearman(*copies, labels, num_resamples=200)
    apart = clustered_spearman(*copies, [str(i) for i in range(80)], num_resamples=200)
    assert clustered.high - clustered.low > 2 * (apart.high - apart.low)


def test_the_interval_of_a_rank_correlation_holds_its_truth_about_as_often_as_it_says():
    # 40 clusters of two pairs; a bivariate normal of correlation r has Spearman 6/pi asin(r/2)
    r, repetitions = 0.7, 100
    truth = 6 / np.pi * np.arcsin(r / 2)
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(repetitions):
        x = rng.normal(size=80)
        y = r * x + np.sqrt(1 - r * r) * rng.normal(size=80)
        found = clustered_spearman(x, y, [str(i // 2) for i in range(80)], seed, num_resamples=100)
        held += found.low <= truth <= found.high
    assert abs(held / repetitions - 0.9) < 4 * np.sqrt(0.09 / repetitions)


def test_predictions_that_are_missing_are_left_out():
    x, y = np.array([1.0, 2.0, np.nan, 3.0]), np.array([1.0, 2.0, -9.0, 3.0])
    found = clustered_spearman(x, y, ["a", "b", "c", "d"], num_resamples=50)
    assert (found.value, found.num_pairs, found.num_clusters) == (pytest.approx(1.0), 3, 3)


def test_signs_are_settled_by_the_realised_error():
    found = sign_agreement(np.array([1.0, 1.0, -1.0]), np.array([0.3, -0.3, 0.05]), np.full(3, 0.1))
    assert (found.agreeing, found.total, found.agreeing_settled, found.settled) == (1, 3, 1, 2)


def test_the_interval_over_seeds_is_students():
    low, high = seed_mean([0.0, 0.1, 0.2]).interval
    half = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert (low, high) == (pytest.approx(0.1 - half), pytest.approx(0.1 + half))


def test_a_store_that_was_killed_while_writing_goes_on(tmp_path):
    path = tmp_path / "records.jsonl"
    records = Records(path)
    records.add("grid", "a", {"change": 0.1})
    with path.open("a") as stream:
        stream.write('{"study": "grid", "key": "b", "cha')
    records = Records(path)
    assert "a" in records
    assert "b" not in records
    records.add("grid", "b", {"change": 0.2})
    assert [row["change"] for row in Records(path).rows("grid")] == [0.1, 0.2]
    with pytest.raises(KeyError, match="stored already"):
        records.add("grid", "a", {"change": 0.3})


def test_the_grid_is_as_large_as_promised_and_no_configuration_is_in_it_twice():
    names = [c.name for c in CONFIGURATIONS + FURTHER]
    assert len(set(names)) == len(names)
    assert len(CONFIGURATIONS) >= 40
    assert {STUDENTS[c.student].task for c in CONFIGURATIONS} == {"chain", "addition"}
    assert any(TEACHERS[c.teacher].is_null for c in CONFIGURATIONS)
    assert len(SEEDS) >= 3
    assert len(STEP_SIZES) == 2


def test_false_rules_are_false_where_they_apply_and_nowhere_else():
    assert wrong_chain_solution("5+8-7") == "5+8=3;3-7=6;>6"
    assert wrong_chain_solution("2*3+1") == "2*3=7;7+1=8;>8"
    assert wrong_addition_solution("12+34") == "2+4+0=06;1+3+0=04;>46"
    assert wrong_addition_solution("15+15") == "5+5+0=00;1+1+0=02;>20"


def test_the_reward_knows_the_answer_beside_every_context():
    import short_training
    from held_out import held_out_questions

    rows = short_training.training_rows("chain", 0, 8, held_out_questions("chain", 0, 4))
    solutions = [row["told_reference_solution"].split(" Q")[0].removeprefix("S") for row in rows]
    assert short_training.right_answers(solutions, rows["answer"]) == [1.0] * 8
    assert short_training.right_answers(solutions, rows["told_answer"]) == [0.0] * 8


def test_one_configuration_goes_from_training_to_the_table(tmp_path, monkeypatch):
    import short_training

    monkeypatch.setattr(short_training, "HELD_OUT_QUESTIONS", 64)
    short_training.success_before.cache_clear()
    configuration = Configuration("chain weak", "self + solution", "forward_kl", mask="high entropy", outcomes="incorrect")
    found = short_training.train_once(configuration, 3e-4, 0, tmp_path, steps=2)
    short_training.success_before.cache_clear()
    assert 0.2 < found["before"] < 0.8  # the embedded student succeeds at 0.47; 64 questions: four standard errors are 0.25
    assert found["change"] == pytest.approx(found["after"] - found["before"])
    assert np.isfinite(found["change_error"])
    records = Records(tmp_path / "records.jsonl")
    predictions = {}
    for number, each in enumerate(CONFIGURATIONS[:12]):
        predictions[each.name] = {name: float(number) for name in (*PREDICTIONS, *RIVALS)}
        predictions[each.name] |= {"targeted gain error": 1.0, "screening gain error": 1.0}
        records.add(GRID, grid_key(each, "small", 0), {**found, "change": found["change"] + number})
    rows = read_rows(Records(tmp_path / "records.jsonl"), predictions, "small")
    assert [row.configuration for row in rows] == CONFIGURATIONS[:12]
    sections = grid_sections(records, predictions, num_resamples=50)
    assert "1.00" in str(sections[0].rows[0])  # predicted in the order of what was realised
    json.dumps([section.rows for section in sections])


def test_rules_on_recorded_readings_act_where_they_would_have_acted():
    start = {"step": 0, "num_rollouts": 0, "probe.success_change": [0.0, 0.0, 0.0], "probe.natural_gain": [0.4, 0.3, 0.5]}
    rises, falls = [0.03, 0.02, 0.04], [0.0, -0.015, 0.015]
    course = [
        {"step": 4, "num_rollouts": 900, "probe.success_change": rises},
        {"step": 8, "num_rollouts": 2000, "probe.success_change": falls},
    ]
    sound = {**start, "probe.advantage": [0.01, 0.001, 0.02]}
    assert first_stop([sound, *course], WATCHFUL) == first_stop([sound, *course], CAUTIOUS) == (8, "success falls")
    assert first_stop([sound, course[0]], CAUTIOUS) is None
    assert first_stop([{**start, "probe.advantage": [-0.01, -0.02, -0.001]}], CAUTIOUS) == (0, "the way ends badly")
    assert first_stop([{**start, "probe.natural_gain": [-0.4, -0.5, -0.3]}], WATCHFUL) == (0, "the push harms")
    # live numbers count only after enough rollouts, and twice in a row
    live = [{"step": step, "num_rollouts": 256 * step, "natural_gain": [-1.0, 0.1]} for step in (2, 4, 6, 8)]
    assert first_stop(live, WATCHFUL) == (6, "the live push harms")


def test_what_collapsed_is_counted_against_the_rules(tmp_path):
    records = Records(tmp_path / "records.jsonl")
    readings = [{"step": 0, "num_rollouts": 0, "probe.advantage": [-0.01, -0.02, -0.001]}]
    row = {"arm": "x", "configuration": "c", "seed": 0, "readings": readings, "trace": [[4, -0.01], [8, -0.03]], "change": -0.05}
    records.add(COLLAPSE, "a", row)
    (section,) = collapse_sections(records)
    assert [met for _, met in section.checks] == [False, True]  # watchful rules see nothing here, cautious ones stop before the first step
    assert section.rows[0][2:7] == ["—", "—", "0, the way ends badly", "+0.000", 8]
