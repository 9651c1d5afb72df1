r"""What a teacher's record over all nodes says about each of them, and intervals of numbers that have bounds.

Success alone does not know the teacher: a prior under which strata are exchangeable expects every cosine to be as often positive as negative.
A good teacher's is positive nearly everywhere, and where a node's outcomes say little its cosine is then pulled to zero. If a teacher's signal is a
multiple of the advantage plus noise, :math:`f = s A + \varepsilon`, Bayes' rule multiplies the prior of success by

.. math:: \exp(\lambda_1 \operatorname{Cov}_p(S, f) + \lambda_2 \operatorname{Var}_p(S)),

and the two coefficients are the same at all nodes, from whose outcomes they can be found.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are untyped

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from opdscope.errors import ShapeError

_PENALTY = 0.5
"""Of a squared coefficient, in units of the features' own spread: without evidence there is no tilt."""

_LEAST_SHARE = 0.5
"""Of the draws that weights have to be worth."""

_HALVINGS = 12
"""Of the factor that a tilt is made smaller by."""


def fit_tilt(
    posterior: Float[np.ndarray, "draw node feature"], prior: Float[np.ndarray, "other node feature"]
) -> Float[np.ndarray, "feature"]:
    r"""Coefficients of an exponential tilt of the prior, by marginal likelihood over nodes.

    Args:
        posterior: Features of draws from each node's posterior under the prior that is to be tilted.
        prior: The same of draws from that prior itself.

    Returns:
        Coefficients λ; zero where a feature does not vary, or where there is no node.

    Raises:
        ShapeError: If the arrays do not agree in nodes and features.

    Notes:
        The likelihood of a node's outcomes under the tilted prior, over that under the prior, is
        :math:`E_{\text{posterior}}[e^{\lambda \cdot \phi}] / E_{\text{prior}}[e^{\lambda \cdot \phi}]`. The sum of its logarithms over nodes less
        a ridge penalty is maximised.

    References:
        Efron (2016), Empirical Bayes deconvolution estimates.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.normal(1.0, 1.0, size=500)  # the standard normal prior tilted by exp(x)
        >>> seen = truth + rng.normal(size=500)
        >>> posterior = rng.normal(seen / 2, np.sqrt(0.5), size=(200, 500))  # under the standard normal prior
        >>> bool(0.8 < fit_tilt(posterior[..., None], rng.normal(size=(200, 500, 1)))[0] < 1.2)
        True
    """
    if posterior.shape[1:] != prior.shape[1:]:
        raise ShapeError(f"expected the same nodes and features, found {posterior.shape[1:]} and {prior.shape[1:]}")
    if prior.shape[1] == 0:
        return np.zeros(prior.shape[2])
    spread = np.std(prior, axis=(0, 1))
    scale = np.where(spread > 1e-12, spread, np.inf)
    scaled, reference = posterior / scale, prior / scale

    def loss(tilt: Float[np.ndarray, "feature"]) -> tuple[float, Float[np.ndarray, "feature"]]:
        fit, slope = _log_mean(scaled, tilt)
        normaliser, descent = _log_mean(reference, tilt)
        return normaliser - fit + _PENALTY * float(tilt @ tilt), descent - slope + 2.0 * _PENALTY * tilt

    found: Any = minimize(loss, np.zeros(prior.shape[2]), jac=True, method="L-BFGS-B", options={"maxiter": 40})
    return np.asarray(found.x) / scale


def tilted_weights(features: Float[np.ndarray, "draw node feature"], tilt: Float[np.ndarray, "feature"]) -> Float[np.ndarray, "draw node"]:
    r"""How much each posterior draw counts once the prior is tilted; the largest of each node is 1.

    Notes:
        Draws stand for the tilted posterior only where enough of them lie there. At each node the tilt is made smaller until the weights are
        worth half the draws, :math:`(\sum w)^2 / \sum w^2`, or more; intervals are then wider than the tilt alone would have them. Without this a
        teacher that knows nearly everything would leave one draw, and an interval that covered 12 % in place of 90 %.

    References:
        Kong (1992), A note on importance sampling using standardized weights.
    """
    exponent = features @ tilt
    exponent = exponent - exponent.max(axis=0, initial=-np.inf)
    enough = _LEAST_SHARE * len(exponent)
    scarce = np.flatnonzero(_worth(exponent) < enough)
    low, high = np.zeros(len(scarce)), np.ones(len(scarce))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        fits = _worth(middle * exponent[:, scarce]) >= enough
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    exponent[:, scarce] *= low
    return np.exp(exponent)


def _worth(exponent: Float[np.ndarray, "draw node"]) -> Float[np.ndarray, "node"]:
    """How many even weights the exponentials are worth."""
    weights = np.exp(exponent)
    return np.sum(weights, axis=0) ** 2 / np.sum(weights**2, axis=0)


def shortest_interval(
    draws: Float[np.ndarray, "draw node"], weights: Float[np.ndarray, "draw node"], confidence: float
) -> Float[np.ndarray, "node 3"]:
    """Posterior mean of a cosine, and the shortest interval that holds so much of its posterior.

    Args:
        draws: Draws in [-1, 1]; NaN where a draw has no direction, and so no cosine.
        weights: How much each draw counts.
        confidence: Level of the interval, in (0, 1).

    Returns:
        Mean, lower and upper end. An interval that begins with the lowest draw begins at -1, and one that ends with the highest ends at 1: what
        lies beyond the last draw is as likely as it. NaN where no draw is defined.

    Notes:
        A teacher that knows something has cosines piled up at one end of the range. A central interval leaves out that very end: for a good
        teacher it covered 56 %, where the shortest one of the same posterior covered 80 %.

    References:
        Hyndman (1996), Computing and graphing highest density regions.

    Example:
        >>> shortest_interval(np.linspace(-1.0, 1.0, 201)[:, None] ** 3, np.ones((201, 1)), 0.5).round(2).tolist()
        [[0.0, -0.12, 0.12]]
    """
    count, num_nodes = draws.shape
    weights = np.where(np.isnan(draws), 0.0, weights)
    order = np.argsort(draws, axis=0)  # undefined draws come last
    ordered, own = np.take_along_axis(draws, order, axis=0), np.take_along_axis(weights, order, axis=0)
    total = own.sum(axis=0)
    known = total > 0
    upper = np.cumsum(own / np.where(known, total, 1.0), axis=0)
    # all nodes at once: each has its own stretch of length two on the line that is searched
    offset = 2.0 * np.arange(num_nodes)
    wanted = np.concatenate([np.zeros((1, num_nodes)), upper[:-1]]) + confidence - 1e-12
    last = (
        np.searchsorted((upper + offset).T.ravel(), (wanted + offset).T.ravel()).reshape(num_nodes, count).T - np.arange(num_nodes) * count
    )
    defined = np.sum(~np.isnan(draws), axis=0)
    possible = (last < defined) & (wanted <= 1.0) & known
    low, high = ordered.copy(), np.take_along_axis(ordered, np.clip(last, 0, count - 1), axis=0)
    low[0] = -1.0
    high = np.where(last == defined - 1, 1.0, high)
    start = np.argmin(np.where(possible, high - low, np.inf), axis=0)[None]
    mean = np.sum(np.where(own > 0, own * np.nan_to_num(ordered), 0.0), axis=0) / np.where(known, total, 1.0)
    found = np.stack([mean, np.take_along_axis(low, start, axis=0)[0], np.take_along_axis(high, start, axis=0)[0]], axis=-1)
    return np.where(known[:, None], found, np.nan)


def _log_mean(features: Float[np.ndarray, "draw node feature"], tilt: Float[np.ndarray, "feature"]) -> tuple[float, Any]:
    """Sum over nodes of the logarithm of the mean over draws of exp(λ · φ), and its gradient."""
    exponent = features @ tilt
    largest = exponent.max(axis=0)
    weights = np.exp(exponent - largest)
    total = weights.sum(axis=0)
    return float(np.sum(np.log(total / len(features)) + largest)), np.einsum("dn,dnf->f", weights / total, features)
