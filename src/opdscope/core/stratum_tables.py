"""Likelihood of a stratum's outcomes under Beta priors, tabulated: what every cell of the prior of a node's success is made of."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betaln, expit

from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError

STRENGTHS = np.append(np.geomspace(0.3, 300.0, 10), np.inf)
"""Grid of prior strengths κ, in continuations; infinite: strata with one centre do not differ."""

CENTRES = np.linspace(-9.0, 9.0, 73)
"""Centres, in logits, that likelihoods are tabulated at."""


def tabulate(
    outcomes: StratumOutcomes, num_tokens: Float[np.ndarray, "node stratum"], strengths: Float[np.ndarray, "strength"]
) -> tuple[Float[np.ndarray, "row centre strength"], Int[np.ndarray, "node stratum"]]:
    r"""Log-likelihood of every stratum's outcomes at all of :data:`CENTRES` and at some strengths.

    Args:
        outcomes: Outcomes, `node × stratum`.
        num_tokens: Tokens that a stratum is worth, :math:`(\sum_k p_k)^2 / \sum_k p_k^2`: 1 for a candidate. A mean over K independent tokens
            varies less: its strength is :math:`K (\kappa + 1) - 1`.
        strengths: Prior strengths κ, in continuations; may be infinite.

    Returns:
        Rows of a table, float32, each different stratum once; and the row of every stratum. A stratum that ends the response, or was not sampled,
        tells nothing: its row is zero.

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
    finite = np.isfinite(strengths)
    table = np.empty((len(right), len(CENTRES), len(strengths)), dtype=np.float32)
    strength = tokens * (strengths[finite] + 1.0) - 1.0
    alpha, beta = strength * mean, strength * (1.0 - mean)
    table[..., finite] = betaln(alpha + right, beta + total - right) - betaln(alpha, beta)
    table[..., ~finite] = right * np.log(mean) + (total - right) * np.log1p(-mean)
    return table, index.reshape(num_tokens.shape)
