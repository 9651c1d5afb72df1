r"""Where along a response its outcome is settled, as far as ordinary rollouts tell: an early estimate of the range of success at each position.

The law of total variance spreads the variance of the outcome over the positions of a response,

.. math:: \operatorname{Var}(R) = \sum_t E\big[\operatorname{Var}_p(S_t)\big],

so that :math:`\rho_t = \operatorname{Var}_p(S_t) / \operatorname{Var}(R)` are shares whose sum over a response is one on average. A regression of the
outcome on the teachers' centred log-ratios says which of their pushes go along with it, and at which entropy of the student; what it explains is
settled where they push, and what it does not explain where a range is possible at all. A poor estimate makes a poor choice of nodes, and biases
nothing: nodes are weighted by their inclusion probabilities whatever these are, and their continuations are drawn afresh.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.controls import cross_fitted_slopes

_BINS = 3
"""Of entropy, with equally many positions: what a teacher knows, it seldom knows of tokens of every kind."""

_FOLDS = 10
"""Parts of the questions that the regression leaves out in turn."""


@dataclass(frozen=True)
class ScreenedResponses:
    """Ordinary rollouts, and what was read at each of their tokens; positions of all responses follow one another."""

    question: Int[np.ndarray, "response"]
    """Rollouts of one question have one number."""
    outcome: Float[np.ndarray, "response"]
    """1 for CORRECT, 0 for INCORRECT and TRUNCATED; NaN without a verdict: not learned from."""
    length: Int[np.ndarray, "response"]
    """Positions of each, at least one."""
    entropy: Float[np.ndarray, "position"]
    """The student's, in nats."""
    centred: Float[np.ndarray, "teacher position"]
    """Log-ratio of each teacher at the token that was taken, less its mean under the student; zero where it has none."""
    reverse_kl: Float[np.ndarray, "teacher position"]
    """KL(student ‖ teacher) in nats; zero where it has none. Rounding may leave it below zero."""

    def summed(
        self, values: Float[np.ndarray, "teacher position"], of_bin: Int[np.ndarray, "position"]
    ) -> Float[np.ndarray, "response teacher bin"]:
        """Sums over the positions of each bin."""
        starts = np.cumsum(self.length) - self.length
        inside = np.where(of_bin == np.arange(_BINS)[:, None], values[:, None], 0.0)
        return np.add.reduceat(inside, starts, axis=-1).transpose(2, 0, 1)


@dataclass(frozen=True)
class EarlyRange:
    """How the variance of outcomes is spread over positions of different kinds."""

    edges: Float[np.ndarray, "edge"]
    """Between bins of entropy, in nats."""
    explained: Float[np.ndarray, "bin"]
    """Share of the variance of outcomes within questions that log-ratios in each bin explain at questions that were left out; in [0, 1] together."""
    slopes: Float[np.ndarray, "teacher bin"]
    """Change of the outcome with a teacher's log-ratio, per nat."""
    push: Float[np.ndarray, "bin"]
    """Mean over responses of the sum of squared slopes times the variance of log-ratios (twice the divergence)."""

    def shares(
        self,
        entropy: Float[np.ndarray, "position"],
        reverse_kl: Float[np.ndarray, "teacher position"],
        bound: Float[np.ndarray, "position"],
    ) -> Float[np.ndarray, "position"]:
        r"""Share of the outcome's variance that is settled at each position of one response.

        Args:
            entropy: The student's, in nats.
            reverse_kl: As in :class:`ScreenedResponses`.
            bound: From :func:`opdscope.core.sampling.node_importance`: large where a range of success is possible and teachers push.

        Returns:
            :math:`\rho_t = w_b \frac{m_t}{E \sum_{s \in b} m_s} + \Big(1 - \sum_b w_b\Big) \frac{B_t^2}{\sum_s B_s^2}`, not negative, with b the bin
            of the position, :math:`m_t = \sum_k \beta_{kb}^2\, 2 KL_{kt}` the variance that log-ratios foretell, and B the bound. The mean over
            responses of the sum over a response is one.
        """
        of_bin = np.digitize(entropy, self.edges)
        known = np.sum(self.slopes[:, of_bin] ** 2 * 2.0 * np.maximum(reverse_kl, 0.0), axis=0)
        scale = np.where(self.push > 0, self.explained / np.where(self.push > 0, self.push, 1.0), 0.0)
        possible = float(np.sum(bound**2))
        rest = (1.0 - float(np.sum(self.explained))) / possible if possible > 0 else 0.0
        return scale[of_bin] * known + rest * bound**2


def learn_early_range(responses: ScreenedResponses) -> EarlyRange:
    r"""How variance is spread, from all ordinary rollouts of a run.

    Args:
        responses: At least one.

    Notes:
        Outcomes less the mean of their question's are regressed on the sums of centred log-ratios in each bin of entropy, by ridge regression with
        slopes from other questions (:func:`opdscope.core.controls.cross_fitted_slopes`). Log-ratios at different positions are uncorrelated
        given the prefix, and so what each bin explains adds up: :math:`w_b = \sum_i r_i \hat r_{ib} / \sum_i r_i^2`, not negative. On a teacher
        that knows nothing it is zero but for noise of the order of the regression's error at left-out questions.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> centred, push = rng.normal(size=(640, 8)), np.full((1, 640 * 8), 0.5)
        >>> outcome = (rng.random(640) < 0.5 + 0.5 * np.tanh(centred[:, :4].sum(axis=1))).astype(float)
        >>> question, length, entropy = np.repeat(np.arange(40), 16), np.full(640, 8), np.tile(np.arange(8.0), 640)
        >>> found = learn_early_range(ScreenedResponses(question, outcome, length, entropy, centred.reshape(1, -1), push))
        >>> bool(found.explained[0] > 0.05 > found.explained[2])
        True
    """
    edges = np.quantile(responses.entropy, np.arange(1, _BINS) / _BINS)
    of_bin = np.digitize(responses.entropy, edges)
    known = np.flatnonzero(np.isfinite(responses.outcome))
    outcome, question = responses.outcome[known], np.unique(responses.question[known], return_inverse=True)[1]
    within = outcome - (np.bincount(question, outcome) / np.bincount(question))[question]
    controls = responses.summed(responses.centred, of_bin)[known]
    columns = controls.reshape(len(known), controls.shape[1] * _BINS)
    slopes = cross_fitted_slopes(columns, within, question % _FOLDS).reshape(controls.shape)
    total = float(np.sum(within**2))
    explained = np.maximum(np.einsum("i,itb->b", within, slopes * controls), 0.0) / total if total > 0 else np.zeros(_BINS)
    mean = np.mean(slopes, axis=0) if len(known) else np.zeros(controls.shape[1:])
    push = np.sum(mean**2 * 2.0 * np.mean(responses.summed(np.maximum(responses.reverse_kl, 0.0), of_bin), axis=0), axis=0)
    explained = np.where(push > 0, explained, 0.0) / max(float(np.sum(explained)), 1.0)
    return EarlyRange(edges, explained, mean, push)
