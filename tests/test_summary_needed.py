"""What is foretold to settle a verdict, against simulated runs of that size."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t

from opdscope.config import load_config
from opdscope.core.aggregation import Estimate, clustered_mean
from opdscope.summary.needed import CHANCE, Needed, needed_to_settle, verdict_with_needed
from opdscope.summary.ranking import verdict, verdicts
from opdscope.summary.teachers import QuestionGains

CONFIG = load_config(
    {
        "student": {"model_name_or_path": "exact:itself"},
        "teachers": [{"name": "one", "teacher_model_name_or_path": "exact:good"}],
        "task": {"kind": "exact"},
    }
)
LEVEL, SMALLEST = CONFIG.analysis.confidence, CONFIG.analysis.smallest_gain


def row(name: str, gain: Estimate, over: Estimate, word: str = "undecided") -> dict[str, Any]:
    return {"name": name, "is_null": False, "verdict": word, "natural_gain": gain, "gain_over_null": over, "behind_first": None}


def estimate(value: float, error: float, count: int = 40) -> Estimate:
    return Estimate(value, value - error, value + error, error, count, LEVEL)


@pytest.mark.parametrize(("mean", "word"), [(0.3, "helps"), (-0.1, "harms or not")])
def test_runs_of_the_foretold_size_settle_with_the_foretold_chance(mean: float, word: str) -> None:
    """One teacher without a null: its gain and its gain over null are one number, so the verdict uses the single interval's width."""
    spread, count, repetitions = 1.0, 20, 600
    exact = estimate(mean, spread / math.sqrt(count), count)
    needed = needed_to_settle([row("one", exact, exact)], SMALLEST, LEVEL, 1000)
    assert needed is not None
    assert needed.questions is not None
    total, rng = count + needed.questions, np.random.default_rng(0)
    settled = 0
    for _ in range(repetitions):
        gains = rng.normal(mean, spread, size=total)
        found = verdicts(["one"], [{("one", "reverse_kl"): QuestionGains(gains, gains, np.ones(total))}], "reverse_kl", CONFIG)["one"]
        settled += (found == "helps") if word == "helps" else found in ("harms", "does not help")
    # Bonferroni counts gain and gain over null as two, the verdict knows that they are one: by so much the chance exceeds CHANCE
    slack = t.ppf(1 - (1 - LEVEL) / 4, count - 1) - t.ppf(1 - (1 - LEVEL) / 2, total - 1)
    chance = float(norm.cdf(norm.ppf(CHANCE) + slack))
    assert settled / repetitions == pytest.approx(chance, abs=3 * math.sqrt(chance * (1 - chance) / repetitions))


def test_the_interval_at_the_foretold_size_has_the_foretold_width() -> None:
    rng, count = np.random.default_rng(1), 50
    ratios: list[float] = []
    for _ in range(200):
        own = clustered_mean(rng.normal(0.2, 1.0, size=count), LEVEL)
        border = estimate(0.2, own.standard_error, count)
        needed = needed_to_settle([row("one", border, border)], SMALLEST, LEVEL, 1)
        assert needed is not None
        later = clustered_mean(rng.normal(0.2, 1.0, size=count + (needed.questions or 0)), LEVEL)
        quantile = t.ppf(1 - (1 - LEVEL) / 4, count - 1) + norm.ppf(CHANCE)
        ratios.append(quantile * later.standard_error / 0.2)
    # each of the two standard errors varies by 1/sqrt(2 n), the later one by less; their ratio's mean over 200 runs by 1/sqrt(200) of that
    assert np.mean(ratios) == pytest.approx(1.0, abs=3 * math.sqrt(2 / (2 * count)) / math.sqrt(200) + 1 / count)


def test_the_cheaper_way_is_taken_and_tokens_grow_with_questions() -> None:
    near, far = estimate(0.3, 0.15), estimate(-0.2, 0.1)
    helps = needed_to_settle([row("near", near, near), row("far", far, far)], SMALLEST, LEVEL, 1_000_000)
    none = needed_to_settle([row("far", far, far)], SMALLEST, LEVEL, 1_000_000)
    assert helps is not None
    assert none is not None
    assert none.factor < helps.factor
    for found in (helps, none):
        assert found.tokens is not None
        assert found.questions is not None
        assert found.tokens == pytest.approx((found.factor - 1) * 1_000_000, abs=1)
        assert found.questions == pytest.approx((found.factor - 1) * 40, abs=1)
    # twice as narrow already: a quarter of the factor
    half = needed_to_settle([row("far", estimate(-0.2, 0.05), estimate(-0.2, 0.05))], 0.0, LEVEL, 1)
    whole = needed_to_settle([row("far", far, far)], 0.0, LEVEL, 1)
    assert half is not None
    assert whole is not None
    assert whole.factor == pytest.approx(max(4 * half.factor, 1.0)) or half.factor == 1.0


def test_nothing_is_foretold_where_nothing_is_open_or_nothing_is_known() -> None:
    sure, unknown = estimate(0.5, 0.1), estimate(math.nan, math.nan, 0)
    assert needed_to_settle([row("one", sure, sure, "helps")], SMALLEST, LEVEL, 1) is None
    assert needed_to_settle([row("one", unknown, unknown)], SMALLEST, LEVEL, 1) is None
    assert needed_to_settle([], SMALLEST, LEVEL, 1) is None


def test_the_sentence_says_how_much_or_that_it_is_too_much() -> None:
    student = {"outcomes": {"correct": 5, "incorrect": 5, "truncated": 0, "unverifiable": 0}}
    open_row = row("one", estimate(0.3, 0.3), estimate(0.3, 0.3))
    said = verdict([open_row], student)
    assert said["kind"] == "undecided"
    found = verdict_with_needed(said, Needed(3.1, 84, 123_456))
    assert found["text"] == "Not enough data to say whether a teacher helps: about 130,000 tokens more (84 questions) would settle it."
    assert "even 100 times as many" in verdict_with_needed(said, Needed(math.inf, None, None))["text"]
    assert verdict_with_needed({"kind": "helps", "text": "x"}, Needed(2.0, 1, 1)) == {"kind": "helps", "text": "x", "needed": None}
    null = row("one", estimate(0.3, 0.01), estimate(0.1, 0.2), "null not beaten")
    assert "Whether a teacher does more is open: about" in verdict_with_needed(verdict([null], student), Needed(2.0, 1, 1))["text"]
    undefined = estimate(math.nan, math.nan, 0)
    assert verdict([row("one", undefined, undefined)], student)["kind"] == "undefined"
