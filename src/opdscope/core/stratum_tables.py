"""Likelihood of a stratum's outcomes under Beta priors, tabulated: what every cell of the prior of a node's success is made of."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betaln, expit

from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError

STRENGTHS = np.append(np.geomspace(0.3, 300.0, 10), np.inf)
"""Grid of prior strengths κ, in continuations; infinite: strata with one centre do not differ."""

CENTRES = np.linspace(-9.0, 9.0, 73)
"""Centres, in logits, that likelihoods are tabulated at."""


def stratum_tokens(
    probs: Float[np.ndarray, "node stratum"], squared_probs: Float[np.ndarray, "node stratum"], is_tail: Bool[np.ndarray, "node stratum"]
) -> Float[np.ndarray, "node stratum"]:
    r"""Tokens of equal probability that a stratum is worth, :math:`(\sum_k p_k)^2 / \sum_k p_k^2`: 1 for a candidate."""
    inside = is_tail & (squared_probs > 0)
    return np.where(inside, np.maximum(probs**2 / np.where(inside, squared_probs, 1.0), 1.0), 1.0)


@dataclass(frozen=True)
class StratumTable:
    """Log-likelihood of the outcomes of some nodes' strata, each different stratum once."""

    rows: Float[np.ndarray, "row centre strength"]
    """At all of :data:`CENTRES` and :data:`STRENGTHS`, float32."""
    index: Int[np.ndarray, "node stratum"]
    """Row of every stratum."""
    tells: Bool[np.ndarray, "node stratum"]
    """Whether a stratum was sampled; the row of one that was not, or that ends the response, is zero."""

    def at(self, part: Int[np.ndarray, "member"]) -> "StratumTable":
        """Of some of the nodes."""
        return StratumTable(self.rows, self.index[part], self.tells[part])


def tabulate(outcomes: StratumOutcomes, num_tokens: Float[np.ndarray, "node stratum"]) -> StratumTable:
    r"""Log-likelihood of every stratum's outcomes under Beta priors of every centre and strength.

    Args:
        outcomes: Outcomes, `node × stratum`.
        num_tokens: From :func:`stratum_tokens`. A mean over K independent tokens varies less: its strength is :math:`K (\kappa + 1) - 1`.

    Raises:
        ShapeError: If shapes differ.

    Notes:
        :math:`\log \operatorname{BetaBinomial}(c; n, \kappa m, \kappa (1 - m))` without the binomial coefficient.
    """
    if outcomes.num_correct.shape != num_tokens.shape:
        raise ShapeError(f"expected the same nodes and strata, found {outcomes.num_correct.shape} and {num_tokens.shape}")
    use = np.isnan(outcomes.terminal)
    correct, count = np.where(use, outcomes.num_correct, 0), np.where(use, outcomes.num_verified, 0)
    # a quarter of a token is no difference
    triples = np.stack([correct.ravel(), count.ravel(), np.round(4.0 * num_tokens.ravel()) / 4.0])
    (right, total, tokens), index = np.unique(triples, axis=1, return_inverse=True)
    right, total, tokens = right[:, None, None], total[:, None, None], tokens[:, None, None]
    mean = expit(CENTRES)[:, None]
    finite = np.isfinite(STRENGTHS)
    table = np.empty((len(right), len(CENTRES), len(STRENGTHS)), dtype=np.float32)
    strength = tokens * (STRENGTHS[finite] + 1.0) - 1.0
    alpha, beta = strength * mean, strength * (1.0 - mean)
    table[..., finite] = betaln(alpha + right, beta + total - right) - betaln(alpha, beta)
    table[..., ~finite] = right * np.log(mean) + (total - right) * np.log1p(-mean)
    return StratumTable(table, index.reshape(num_tokens.shape), use & (outcomes.num_verified > 0))
