"""From per-question gains to what is said of teachers: the null to beat, verdicts, comparisons, and weights of paths and nodes."""

from typing import Any

import numpy as np
import pytest

from opdscope.config import Config, same_entropy_name
from opdscope.core.success import StratumOutcomes
from opdscope.summary.measures import NodeMeasures
from opdscope.summary.nodes import NodeArrays, Posterior, central_interval
from opdscope.summary.ranking import compare, verdicts
from opdscope.summary.teachers import QuestionGains, null_of, summarize_targeted

CONFIG = Config.model_validate(
    {
        "student": {"model_name_or_path": "exact:itself"},
        "teachers": [{"name": "good", "teacher_model_name_or_path": "exact:good"}],
        "task": {"kind": "exact"},
        "objectives": ["reverse_kl"],
    }
)
OBJECTIVE = "reverse_kl"


def gains(mean: float, kl: float, seed: int, *, spread: float = 0.05, size: int = 30) -> QuestionGains:
    values = mean + spread * np.random.default_rng(seed).normal(size=size)
    return QuestionGains(values, values, np.full(size, kl))


def screening(**teachers: QuestionGains) -> dict[tuple[str, str], QuestionGains]:
    return {(name.replace("_", " "), OBJECTIVE): own for name, own in teachers.items()}


def test_a_null_is_scaled_to_the_teachers_push_by_the_root_of_their_divergences() -> None:
    known = screening(good=gains(1.0, 4.0, 0), sharpened=gains(0.2, 1.0, 1, spread=0.0), flattened=gains(-0.2, 1.0, 2))
    null = null_of(known, "good", OBJECTIVE, CONFIG)
    assert null.name == "sharpened"
    assert null.factor == 2.0
    np.testing.assert_allclose(null.natural_gain, 0.4, rtol=1e-12)


def test_the_null_at_the_teachers_own_entropy_is_taken_as_it_is_and_the_better_one_counts() -> None:
    known = screening(good=gains(1.0, 4.0, 0), sharpened=gains(0.2, 1.0, 1, spread=0.0))
    known[same_entropy_name("good"), OBJECTIVE] = gains(0.7, 9.0, 3, spread=0.0)
    null = null_of(known, "good", OBJECTIVE, CONFIG)
    assert (null.name, null.factor) == (same_entropy_name("good"), 1.0)


def test_where_no_null_gains_doing_nothing_is_to_beat() -> None:
    known = screening(good=gains(1.0, 4.0, 0), sharpened=gains(-0.2, 1.0, 1), flattened=gains(-0.1, 1.0, 2))
    null = null_of(known, "good", OBJECTIVE, CONFIG)
    assert null.name is None
    assert np.all(null.natural_gain == 0.0)


@pytest.mark.parametrize("unbounded", [np.nan, np.inf])
def test_a_push_of_unknown_size_has_an_unknown_null(unbounded: float) -> None:
    good = gains(1.0, 4.0, 0)
    good.reverse_kl[3] = unbounded
    null = null_of(screening(good=good, sharpened=gains(0.01, 1.0, 1)), "good", OBJECTIVE, CONFIG)
    assert np.isnan(null.factor)
    assert np.isnan(null.natural_gain).all()


@pytest.mark.parametrize(
    ("teacher", "sharpened", "word"),
    [
        (gains(0.5, 1.0, 0), 0.1, "helps"),
        (gains(-0.5, 1.0, 0), 0.1, "harms"),
        (gains(0.5, 1.0, 0), 0.5, "null does as well"),
        (gains(0.5, 1.0, 0), 0.8, "null does better"),
        (gains(0.5, 1.0, 0, spread=0.4), 0.45, "null not beaten"),
        (gains(0.0, 1.0, 0), -0.1, "does not help"),
        (gains(0.2, 1.0, 0, spread=2.0), -0.1, "undecided"),
    ],
)
def test_the_verdict_follows_from_gain_and_gain_over_null(teacher: QuestionGains, sharpened: float, word: str) -> None:
    known = screening(good=teacher, sharpened=gains(sharpened, 1.0, 1, spread=0.01))
    assert verdicts(["good"], [known], OBJECTIVE, CONFIG) == {"good": word}


def test_a_teacher_that_is_its_null_up_to_rounding_is_not_called_helpful() -> None:
    null = gains(0.5, 1.0, 1)
    known = screening(good=QuestionGains(null.natural_gain + 1e-7, null.gain, null.reverse_kl), sharpened=null)
    assert verdicts(["good"], [known], OBJECTIVE, CONFIG) == {"good": "null does as well"}


def test_pairs_are_compared_on_common_questions_and_together() -> None:
    first, second = gains(0.5, 1.0, 0), gains(0.1, 1.0, 1)
    second.natural_gain[:10] = np.nan
    (pair,) = compare(["first", "second"], [screening(first=first, second=second)], CONFIG)
    assert pair["decided"]
    assert pair["difference"].num_clusters == 20
    assert pair["difference"].value == pytest.approx(np.mean((first.natural_gain - second.natural_gain)[10:]), rel=1e-12)
    equal = screening(a=gains(0.5, 1.0, 2), b=gains(0.5, 1.0, 3), c=gains(0.5, 1.0, 4))
    assert not any(found["decided"] for found in compare(["a", "b", "c"], [equal], CONFIG))


def test_central_intervals_are_numpys_over_the_draws_that_are_defined() -> None:
    draws = np.random.default_rng(0).normal(size=(41, 300))
    draws[np.random.default_rng(1).random(draws.shape) < np.linspace(0, 1, 300)] = np.nan
    draws[:, -1] = np.nan
    found = central_interval(draws, 0.9)
    for column, (mean, low, high) in zip(draws.T, found, strict=True):
        own = column[~np.isnan(column)]
        expected = [np.mean(own), *np.quantile(own, [0.05, 0.95])] if len(own) else [np.nan] * 3
        np.testing.assert_allclose([mean, low, high], expected, rtol=1e-12, atol=1e-14)


def test_targeted_totals_weigh_nodes_and_paths_by_their_inclusion() -> None:
    def row(rollout: int, path: float, node: float, outcome: str) -> dict[str, Any]:
        return {"question_id": "q", "rollout_index": rollout, "path_inclusion": path, "inclusion": node, "path_outcome": outcome}

    # one correct path that stands for four, with two nodes; one incorrect path that stands for one, with one node
    rows = [row(0, 0.25, 0.5, "correct"), row(0, 0.25, 0.1, "correct"), row(1, 1.0, 0.2, "incorrect")]
    values = np.stack([[1.0, 2.0, 3.0]] * 3, axis=-1)
    probs = np.full((3, 2), 0.5)
    outcomes = StratumOutcomes(np.zeros((3, 2), dtype=int), np.ones((3, 2), dtype=int), np.full((3, 2), np.nan))
    nodes = NodeArrays(rows, probs, probs**2, np.zeros((3, 2), dtype=bool), outcomes)
    ones = np.ones(3)
    measures = NodeMeasures("good", OBJECTIVE, np.arange(3), values, values, values, values, values, ones, ones, ones)
    posterior = Posterior(
        np.zeros((3, 2)),
        np.zeros((3, 2)),
        np.zeros((1, 3, 2)),
        ones,
        ones,
        outcomes,
    )
    correct, incorrect = 1.0 / 0.5 + 2.0 / 0.1, 3.0 / 0.2
    found = {paths: summarize_targeted(measures, np.zeros(3), nodes, posterior, paths, CONFIG) for paths in ("all", "correct", "incorrect")}
    assert found["correct"].natural_gain.value == pytest.approx(correct, rel=1e-12)
    assert found["incorrect"].natural_gain.value == pytest.approx(incorrect, rel=1e-12)
    assert found["all"].natural_gain.value == pytest.approx((4 * correct + incorrect) / 5, rel=1e-12)
    beyond = summarize_targeted(measures, np.array([1.0, 2.0, 3.0]), nodes, posterior, "all", CONFIG)
    assert beyond.gain_over_null.value == pytest.approx(0.0, abs=1e-12)


def test_the_interval_of_a_mean_score_holds_whatever_the_nodes_leave_open() -> None:
    count = 40
    rows = [
        {"question_id": str(i), "rollout_index": 0, "path_inclusion": 1.0, "inclusion": 0.5, "path_outcome": "correct"}
        for i in range(count)
    ]
    probs = np.full((count, 2), 0.5)
    outcomes = StratumOutcomes(np.zeros((count, 2), dtype=int), np.ones((count, 2), dtype=int), np.full((count, 2), np.nan))
    nodes, ones = NodeArrays(rows, probs, probs**2, np.zeros((count, 2), dtype=bool), outcomes), np.ones(count)
    score = np.tile([0.3, 0.2, 0.8], (count, 1))
    measures = NodeMeasures("good", OBJECTIVE, np.arange(count), score, score, score, score, score, ones, ones, ones)
    differs = np.full(count, 0.5)  # with chance a half the cosine counts as zero: the lower end is half of .2
    nothing = np.zeros((count, 2)), np.zeros((count, 2)), np.zeros((1, count, 2))
    posterior = Posterior(*nothing, ones, differs, outcomes)
    found = summarize_targeted(measures, np.zeros(count), nodes, posterior, "all", CONFIG).mean_score
    assert (found.low, found.value, found.high) == pytest.approx((0.1, 0.15, 0.8), rel=1e-12)
