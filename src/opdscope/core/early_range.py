r"""Where along a response its outcome is settled, as far as ordinary rollouts tell: an early estimate of the range of success at each position.

The law of total variance spreads the variance of the outcome over the positions of a response,

.. math:: \operatorname{Var}(R) = \sum_t E\big[\operatorname{Var}_p(S_t)\big],

so that :math:`\rho_t = \operatorname{Var}_p(S_t) / \operatorname{Var}(R)` are shares whose sum over a response is one on average. A regression of the
outcome on the teachers' centred log-ratios says which of their pushes go along with it, and at which entropy of the student; what it explains is
settled where they push, and what it does not explain where a range is possible at all. A poor estimate makes a poor choice of nodes, and biases
nothing: nodes are weighted by their inclusion probabilities whatever these are, and their continuations are drawn afresh.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from opdscope.core.controls import cross_fitted_slopes

_BINS = 3
"""Of entropy, with equally many positions: what a teacher knows, it seldom knows of tokens of every kind."""

_FOLDS = 10
"""Parts of the questions that the regression leaves out in turn."""


@dataclass(frozen=True)
class ScreenedResponse:
    """An ordinary rollout with a verdict, and what was read at each of its tokens."""

    question: int
    """Rollouts of one question have one number."""
    outcome: float
    """1 for CORRECT, 0 for INCORRECT and TRUNCATED."""
    entropy: Float[np.ndarray, "position"]
    """The student's, in nats."""
    centred: Float[np.ndarray, "teacher position"]
    """Log-ratio of each teacher at the token that was taken, less its mean under the student; zero where it has none."""
    reverse_kl: Float[np.ndarray, "teacher position"]
    """KL(student ‖ teacher) in nats; zero where it has none."""
    bound: Float[np.ndarray, "position"]
    """From :func:`opdscope.core.sampling.node_importance`: large where a range of success is possible and teachers push."""


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
    bound: float
    """Mean over responses of the sum of squared bounds."""

    def shares(
        self,
        entropy: Float[np.ndarray, "position"],
        reverse_kl: Float[np.ndarray, "teacher position"],
        bound: Float[np.ndarray, "position"],
    ) -> Float[np.ndarray, "position"]:
        r"""Share of the outcome's variance that is settled at each position of a response.

        Args:
            entropy: The student's, in nats.
            reverse_kl: As in :class:`ScreenedResponse`.
            bound: Likewise.

        Returns:
            :math:`\rho_t = w_b \frac{m_t}{E \sum_{s \in b} m_s} + \Big(1 - \sum_b w_b\Big) \frac{B_t^2}{E \sum_s B_s^2}`, not negative, with b the
            bin of the position, :math:`m_t = \sum_k \beta_{kb}^2\, 2 KL_{kt}` the variance that log-ratios foretell, and B the bound. The mean over
            responses of the sum over a response is one.
        """
        of_bin = np.digitize(entropy, self.edges)
        known = np.sum(self.slopes[:, of_bin] ** 2 * 2.0 * reverse_kl, axis=0)
        scale = np.where(self.push > 0, self.explained / np.where(self.push > 0, self.push, 1.0), 0.0)
        rest = 1.0 - float(np.sum(self.explained))
        free = bound**2 / self.bound if self.bound > 0 else np.zeros(len(bound))
        return scale[of_bin] * known + rest * free


def learn_early_range(responses: Sequence[ScreenedResponse]) -> EarlyRange:
    r"""How variance is spread, from all ordinary rollouts of a run.

    Args:
        responses: At least one; of one number of teachers.

    Notes:
        Outcomes less the mean of their question's are regressed on the sums of centred log-ratios in each bin of entropy, by ridge regression with
        slopes from other questions (:func:`opdscope.core.controls.cross_fitted_slopes`). Log-ratios at different positions are uncorrelated
        given the prefix, and so what each bin explains adds up: :math:`w_b = \sum_i r_i \hat r_{ib} / \sum_i r_i^2`, not negative. On a teacher
        that knows nothing it is zero but for noise of the order of the regression's error at left-out questions.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> def response(question):
        ...     centred = rng.normal(size=(1, 8))
        ...     outcome = float(rng.random() < 0.5 + 0.25 * np.tanh(centred[0, :4].sum()))
        ...     return ScreenedResponse(question, outcome, np.arange(8.0), centred, np.full((1, 8), 0.5), np.ones(8))
        >>> found = learn_early_range([response(q) for q in range(40) for _ in range(16)])
        >>> bool(found.explained[0] > 0.05 > found.explained[2])
        True
    """
    edges = np.quantile(np.concatenate([r.entropy for r in responses]), np.arange(1, _BINS) / _BINS)
    outcome, question = np.array([r.outcome for r in responses]), np.unique([r.question for r in responses], return_inverse=True)[1]
    within = outcome - (np.bincount(question, outcome) / np.bincount(question))[question]
    place = [np.eye(_BINS)[np.digitize(r.entropy, edges)] for r in responses]
    controls = np.array([r.centred @ bins for r, bins in zip(responses, place, strict=True)])
    slopes = cross_fitted_slopes(controls.reshape(len(responses), -1), within, question % _FOLDS).reshape(controls.shape)
    total = float(np.sum(within**2))
    explained = np.maximum(np.einsum("i,itb->b", within, slopes * controls), 0.0) / total if total > 0 else np.zeros(_BINS)
    mean = np.mean(slopes, axis=0)
    divergence = np.mean([r.reverse_kl @ bins for r, bins in zip(responses, place, strict=True)], axis=0)
    push = np.sum(mean**2 * 2.0 * divergence, axis=0)
    explained = np.where(push > 0, explained, 0.0) / max(float(np.sum(explained)), 1.0)
    return EarlyRange(edges, explained, mean, push, float(np.mean([np.sum(r.bound**2) for r in responses])))
