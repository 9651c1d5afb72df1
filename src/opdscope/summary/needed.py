"""What it would cost to be surer: the tokens that an unsettled verdict still needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import norm, t

CHANCE = 0.8
"""With which what is foretold settles the verdict, if the estimates are right."""

_MOST = 100.0
"""Times what was spent beyond which nothing is foretold: the estimate is then too near to the border to say."""

_SETTLED = ("helps", "harms", "does not help", "null does better", "null does as well")


@dataclass(frozen=True)
class Needed:
    """What is foretold to settle a verdict. Questions and tokens are None where that is more than a hundred times what was spent."""

    factor: float
    """Questions wanted over questions that there are, at least 1; infinity where no amount would do."""
    questions: int | None
    """Questions wanted beyond those that there are."""
    tokens: int | None
    """Tokens of the student's rollouts on these, as many for each as so far."""


def needed_to_settle(teachers: Sequence[Mapping[str, Any]], smallest_gain: float, confidence: float, rollout_tokens: int) -> Needed | None:
    r"""Further questions and tokens after which either a teacher is shown to help or none is.

    Args:
        teachers: Rows of the ranking, nulls included: name, `is_null`, `verdict`, `natural_gain` and `gain_over_null` as estimates.
        smallest_gain: Least gain over null that is of use (`analysis.smallest_gain`).
        confidence: Level at which all verdicts hold together.
        rollout_tokens: Tokens of the student's rollouts so far.

    Returns:
        The cheaper of the two ways; None if every verdict is settled already, or no teacher's gain has a standard error.

    Notes:
        A standard error over n questions falls as :math:`1/\sqrt n`, so an estimate that lies :math:`\delta` from the border that decides is told
        from it, with chance c, at :math:`n' = n\,((w + z_c)\,\mathrm{se} / \delta)^2` questions, where w is the half-width in standard errors. The
        verdicts of m teachers rest on 2m intervals that hold together; w is Student's quantile for that by Bonferroni, a little more than
        the verdicts themselves use. More rollouts of the same questions do less, since they leave the spread between questions.

    Example:
        >>> from opdscope.core.aggregation import Estimate
        >>> gain = Estimate(0.2, -0.1, 0.5, 0.15, 30, 0.9)
        >>> teacher = {"name": "a", "is_null": False, "verdict": "undecided", "natural_gain": gain, "gain_over_null": gain}
        >>> needed_to_settle([teacher], 0.05, 0.9, 60_000).questions
        111
    """
    real = [teacher for teacher in teachers if not teacher["is_null"] and math.isfinite(teacher["gain_over_null"].standard_error)]
    if all(teacher["verdict"] in _SETTLED for teacher in real):
        return None
    counts = [teacher["gain_over_null"].num_clusters for teacher in real]
    quantile = float(t.ppf(1 - (1 - confidence) / (4 * len(real)), min(counts) - 1) + norm.ppf(CHANCE))
    ways = [_factors(teacher, smallest_gain, quantile) for teacher in real]
    factor = min(min(helps for helps, _ in ways), max(not_so for _, not_so in ways))
    if factor > _MOST:
        return Needed(factor, None, None)
    extra = max(factor - 1.0, 0.0)
    return Needed(max(factor, 1.0), math.ceil(extra * min(counts)), math.ceil(extra * rollout_tokens))


def _factors(teacher: Mapping[str, Any], smallest_gain: float, quantile: float) -> tuple[float, float]:
    """Times as many questions as now to show that a teacher helps, and to show that it does not; infinity where its estimate speaks against it."""
    if teacher["verdict"] in _SETTLED:
        return (1.0, math.inf) if teacher["verdict"] == "helps" else (math.inf, 1.0)
    gain, over = teacher["natural_gain"], teacher["gain_over_null"]

    def times(distance: float, error: float) -> float:
        return (quantile * error / distance) ** 2 if distance > 0 else math.inf

    helps = max(times(gain.value, gain.standard_error), times(over.value, over.standard_error)) if over.value >= smallest_gain else math.inf
    not_so = min(times(smallest_gain - over.value, over.standard_error), times(-gain.value, gain.standard_error))
    return helps, not_so


def verdict_with_needed(verdict: Mapping[str, str], needed: Needed | None) -> dict[str, Any]:
    """The headline with what would settle it, where it is open.

    Args:
        verdict: Kind and sentence, from :func:`opdscope.summary.ranking.verdict`.
        needed: From :func:`needed_to_settle`.

    Returns:
        Kind, text and `needed`, which is None where nothing is open.
    """
    if needed is None or verdict["kind"] not in ("undecided", "null"):
        return {**verdict, "needed": None}
    if needed.tokens is None or needed.questions is None:
        more = f"even {_MOST:.0f} times as many tokens might not settle it"
    else:
        more = f"about {_rounded(needed.tokens)} tokens more ({_rounded(needed.questions)} questions) would settle it"
    if verdict["kind"] == "undecided":
        return {"kind": "undecided", "text": f"Not enough data to say whether a teacher helps: {more}.", "needed": needed}
    return {"kind": verdict["kind"], "text": f"{verdict['text']} Whether a teacher does more is open: {more}.", "needed": needed}


def _rounded(count: int) -> str:
    """Two digits: a foretold number has no more."""
    size = 10 ** max(len(str(count)) - 2, 0)
    found = math.ceil(count / size) * size
    return f"{found / 1e6:,.1f} million" if found >= 1_000_000 else f"{found:,}"
