r"""Outcomes of continuations less a control: what its teachers' log-ratios say of a continuation's luck is taken out, its success stays.

The control of a continuation is a sum over tokens that it drew of centred log-ratios (:func:`opdscope.core.controls.centred_log_ratio`), each with
mean zero given the prefix. So the sum has mean zero up to any point at which a continuation may be said to have stopped without looking ahead, its
end or its arrival at the next node of the path, and likewise from such a point on.
"""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.core.controls import cross_fitted_slopes
from opdscope.core.success import StratumOutcomes

_LEAST_KEPT = 0.01
"""Share of an outcome's variance that is taken to remain at least: none would leave a node without any noise."""

_WORTH = 10
"""Outcomes that what all nodes say of the share counts for at one node."""

_GRAIN = 4
"""Parts of an outcome in which effective counts are given: different pairs of counts stay few, and with them the table of likelihoods."""


@dataclass(frozen=True)
class OutcomeSums:
    """What means and variances of success need of outcomes, each less its control where it has one: R' = R - c."""

    total: Float[np.ndarray, "node stratum"]
    """Sum of R' over the verified continuations of a stratum, c being that of all tokens drawn."""
    squares: Float[np.ndarray, "node stratum"]
    """Sum of R'²."""
    staying_total: Float[np.ndarray, "node"]
    """Sum of R' over those that arrive at the next node, c being that of the tokens drawn from there on."""
    staying_squares: Float[np.ndarray, "node"]
    """Sum of R'² over the same."""
    leaving_total: Float[np.ndarray, "node"]
    """Sum of R' over those that leave the path before, c being that of all tokens drawn."""
    leaving_squares: Float[np.ndarray, "node"]
    """Sum of R'² over the same."""
    left_total: Float[np.ndarray, "node"]
    """Sum of R' over the same, c being that of the tokens after the one by which they left."""
    before: Float[np.ndarray, "node"]
    """The c of the path's own tokens up to the next node, which all that arrive have in common."""
    kept: Float[np.ndarray, "node"]
    """Share of an outcome's variance within its stratum that is left, at most 1; 1 without controls."""

    def effective(self, outcomes: StratumOutcomes) -> StratumOutcomes:
        """Counts of plain outcomes that would tell as much, for what needs whole successes and failures; where controls do not help, the plain ones.

        Example:
            >>> counts = StratumOutcomes(np.array([[3]]), np.array([[4]]), np.array([[np.nan]]))
            >>> nothing = np.zeros(1)
            >>> sums = OutcomeSums(np.array([[2.9]]), np.array([[2.5]]), *[nothing] * 6, np.array([0.5]))
            >>> found = sums.effective(counts)
            >>> found.num_correct.tolist(), found.num_verified.tolist()
            ([[6.0]], [[8.0]])
        """
        kept = self.kept[:, None]
        correct = np.where(kept < 1.0, _grains(self.total, outcomes.num_verified), outcomes.num_correct)
        return StratumOutcomes(correct / kept, outcomes.num_verified / kept, outcomes.terminal)

    def effective_staying(self, correct: Int[np.ndarray, "node"], count: Int[np.ndarray, "node"]) -> Float[np.ndarray, "node"]:
        """Correct ones among those that arrive, on the scale of :meth:`effective`."""
        return np.where(self.kept < 1.0, _grains(self.staying_total, count), correct) / self.kept

    def effective_leaving(self, correct: Int[np.ndarray, "node"], count: Int[np.ndarray, "node"]) -> Float[np.ndarray, "node"]:
        """Correct ones among those that leave, on the scale of :meth:`effective`."""
        return np.where(self.kept < 1.0, _grains(self.left_total, count), correct) / self.kept

    def variance_left(self, outcomes: StratumOutcomes) -> float:
        """Sum of squares within strata of R' over that of R, all nodes together; NaN where outcomes do not differ at all."""
        count = np.maximum(outcomes.num_verified, 1)
        before = float(np.sum(outcomes.num_correct * (1.0 - outcomes.num_correct / count)))
        return float(np.sum(self.squares - self.total**2 / count)) / before if before > 0 else float("nan")


def _grains(total: Float[np.ndarray, "*batch"], most: Int[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    return np.round(np.clip(total, 0, most) * _GRAIN) / _GRAIN


def count_sums(outcomes: StratumOutcomes, stratum: Int[np.ndarray, "node"], num_staying_correct: Int[np.ndarray, "node"]) -> OutcomeSums:
    """The sums of outcomes that have no control, each 0 or 1.

    Args:
        outcomes: Verdicts of each node's own continuations.
        stratum: That of the path's token.
        num_staying_correct: Correct ones among those that arrive at the next node.
    """
    correct = outcomes.num_correct.astype(np.float64)
    staying = num_staying_correct.astype(np.float64)
    leaving = correct[np.arange(len(correct)), stratum] - staying
    return OutcomeSums(correct, correct, staying, staying, leaving, leaving, leaving, *(np.zeros(len(correct)), np.ones(len(correct))))


@dataclass(frozen=True)
class ControlledContinuations:
    """Continuations, one a row, with sums of centred log-ratios, one for each informing teacher; zero of a teacher that is not asked."""

    node: Int[np.ndarray, "row"]
    """Index of the node."""
    stratum: Int[np.ndarray, "row"]
    """Its stratum."""
    outcome: Float[np.ndarray, "row"]
    """1 or 0; NaN without a verdict."""
    linked: Bool[np.ndarray, "row"]
    """It begins with the path's token, from which the path leads on to another node."""
    stays: Bool[np.ndarray, "row"]
    """It arrives there."""
    control: Float[np.ndarray, "row teacher"]
    """Over all tokens that it drew."""
    before: Float[np.ndarray, "row teacher"]
    """Over those up to its arrival; over all where it does not arrive."""
    after: Float[np.ndarray, "row teacher"]
    """Over those after its arrival, or after the token by which it left the path; over all where it is not linked."""

    def at(self, use: Bool[np.ndarray, "row"]) -> "ControlledContinuations":
        """Those of some rows."""
        return ControlledContinuations(*(getattr(self, each.name)[use] for each in fields(self)))

    def counts(self, shape: tuple[int, int]) -> StratumOutcomes:
        """Verdicts of each stratum, none of them known without sampling; `shape` is nodes by strata."""
        verified = ~np.isnan(self.outcome)
        place, size = (self.node * shape[1] + self.stratum)[verified], shape[0] * shape[1]
        correct = np.bincount(place[self.outcome[verified] == 1.0], minlength=size).reshape(shape)
        return StratumOutcomes(correct, np.bincount(place, minlength=size).reshape(shape), np.full(shape, np.nan))


@dataclass(frozen=True)
class Controlled:
    """Outcomes of continuations with their controls taken off."""

    sums: OutcomeSums
    """What success is estimated from."""
    outcomes: Float[np.ndarray, "row"]
    """R' of each continuation, c being that of all tokens drawn; NaN without a verdict."""
    kept: Float[np.ndarray, "row"]
    """That of the continuation's node."""


def control_outcomes(
    rows: ControlledContinuations, success: Float[np.ndarray, "node stratum"], fold: Int[np.ndarray, "node"], ridge: float = 10.0
) -> Controlled:
    r"""Outcomes less their controls, with slopes learned from the continuations of other folds.

    Args:
        rows: All continuations.
        success: Of each stratum as foretold without any continuation of the node's own fold, in [0, 1].
        fold: Of each node; nodes of one fold share nothing with the fit that is applied to them, so make it the question, or groups of them.
        ridge: As for :func:`opdscope.core.controls.cross_fitted_slopes`.

    Notes:
        :math:`R' = R - \sum_t (\beta_t + \beta'_t\,4 \hat S (1 - \hat S)) C_t`: where nearly every continuation succeeds, or nearly none, there
        is little luck to take out, and a control would only add its own. Slopes and foretold success are independent of a question's
        continuations, so :math:`E R' = E R`. Slopes are fitted to what outcomes and controls differ by within a stratum. A control has mean zero
        over all continuations, which those with a verdict need not have: what their means differ by is put back.

        `kept` of all nodes is the sum of squares within strata of R' over that of R, drawn towards 1 by as much of the difference as which nodes
        were drawn can explain: :math:`1 - \text{kept}` is multiplied by the positive part of
        :math:`1 - \operatorname{se}^2 / (1 - \text{kept})^2`, its standard error by the jackknife over nodes. That of one node is its own ratio
        with so much of all nodes' added to both sums as ten outcomes are worth, and at most 1: what is added to a variance stands for outcomes
        that were not seen, and a control adds none to these.

    References:
        Owen (2013), Monte Carlo theory, methods and examples, section 8.9; James and Stein (1961), Estimation with quadratic loss.
    """
    num_nodes, num_strata = success.shape
    room = (4.0 * success * (1.0 - success))[rows.node, rows.stratum][:, None]
    controls = [np.concatenate([own, room * own], axis=1) for own in (rows.control, rows.before, rows.after)]
    verified = ~np.isnan(rows.outcome)
    place = rows.node * num_strata + rows.stratum
    outcome = np.where(verified, rows.outcome, 0.0)
    deviation = np.where(verified, outcome - _group_means(outcome, place, verified), 0.0)
    centred = controls[0] - _group_means(controls[0], place, verified)
    slopes = cross_fitted_slopes(centred, np.where(verified, deviation, np.nan), fold[rows.node], ridge)
    whole, before, after = (np.sum(slopes * own, axis=1) for own in controls)
    fate = np.where(rows.linked, np.where(rows.stays, 1, 2), 0)
    whole, before = (_unselected(own, place, verified) for own in (whole, before))
    after = _unselected(after, place * 3 + fate, verified)

    def summed(values: Float[np.ndarray, "row"], use: Bool[np.ndarray, "row"]) -> tuple[np.ndarray, np.ndarray]:
        chosen = use & verified
        return (
            np.bincount(rows.node[chosen], values[chosen], minlength=num_nodes),
            np.bincount(rows.node[chosen], values[chosen] ** 2, minlength=num_nodes),
        )

    adjusted = outcome - whole
    total, squares = (
        np.bincount(place[verified], values[verified], minlength=num_nodes * num_strata).reshape(num_nodes, num_strata)
        for values in (adjusted, adjusted**2)
    )
    leaves = rows.linked & ~rows.stays
    staying, leaving, left = summed(outcome - after, rows.stays), summed(outcome - before, leaves), summed(outcome - after, leaves)
    arrived = np.bincount(rows.node[rows.stays & verified], minlength=num_nodes)
    common = summed(before, rows.stays)[0] / np.maximum(arrived, 1)
    remaining = np.where(verified, adjusted - _group_means(adjusted, place, verified), 0.0)
    counts = np.bincount(rows.node[verified], minlength=num_nodes)
    kept = _kept(counts, *(np.bincount(rows.node, values**2, minlength=num_nodes) for values in (deviation, remaining)))
    return Controlled(
        OutcomeSums(total, squares, *staying, *leaving, left[0], common, kept), np.where(verified, adjusted, np.nan), kept[rows.node]
    )


def _group_means(values: np.ndarray, group: Int[np.ndarray, "row"], use: Bool[np.ndarray, "row"]) -> np.ndarray:
    """Mean over the chosen rows of each row's group; zero where none is chosen."""
    size = int(group.max(initial=-1)) + 1
    count = np.maximum(np.bincount(group[use], minlength=size), 1)
    columns = values.reshape(len(values), -1).T
    means = np.array([np.bincount(group[use], own[use], minlength=size) / count for own in columns])
    return means.T[group].reshape(values.shape)


def _unselected(control: Float[np.ndarray, "row"], group: Int[np.ndarray, "row"], verified: Bool[np.ndarray, "row"]) -> np.ndarray:
    """Controls whose mean over the verified rows of a group is that over all of them."""
    if verified.all():
        return control
    return control + _group_means(control, group, np.ones(len(control), dtype=bool)) - _group_means(control, group, verified)


def _kept(
    counts: Int[np.ndarray, "node"], before: Float[np.ndarray, "node"], after: Float[np.ndarray, "node"]
) -> Float[np.ndarray, "node"]:
    """Share of the sum of squares within a node's strata that is left."""
    if before.sum() == 0:
        return np.ones(len(before))
    known = before > 0
    ratio, count, overall = after[known].sum() / before[known].sum(), int(known.sum()), 1.0
    if count > 1 and ratio != 1.0:
        without = (after[known].sum() - after[known]) / (before[known].sum() - before[known])
        overall = 1.0 - (1.0 - ratio) * max(1.0 - (count - 1) * float(np.var(without)) / (1.0 - ratio) ** 2, 0.0)
    worth = _WORTH * before.sum() / counts.sum()
    return np.clip((after + worth * overall) / (before + worth), _LEAST_KEPT, 1.0)


def added_squares(
    count: Int[np.ndarray, "*batch"], mean: Float[np.ndarray, "*batch"], each: Float[np.ndarray, "*batch"] | float
) -> Float[np.ndarray, "*batch"]:
    r"""By how much a sum of squared deviations grows with `each` successes and as many failures more.

    Args:
        count: Outcomes that there are.
        mean: Their mean.
        each: How many of either are added; need not be whole.

    Returns:
        :math:`\frac{a}{2} + \frac{2 a n}{n + 2 a} (\bar R - \tfrac12)^2`.

    Example:
        >>> round(float(added_squares(np.array(4), np.array(0.75), 1.0) + 4 * 0.75 * 0.25), 4)  # (3 + 1) (1 + 1) / 6
        1.3333
    """
    return each / 2.0 + 2.0 * each * count / np.maximum(count + 2.0 * each, 1e-300) * (mean - 0.5) ** 2
