"""Many noisy numbers of one kind: each is drawn towards their mean as far as it is noise, and what is left of their order is stated."""

# pyright: reportMissingTypeStubs=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar
from scipy.stats import rankdata

from opdscope.errors import ShapeError


@dataclass(frozen=True)
class Shrunk:
    """Posterior of each number under a normal prior that is fitted to all of them."""

    mean: Float[np.ndarray, "item"]
    """Posterior means; NaN where a number or its error is."""
    sd: Float[np.ndarray, "item"]
    """Posterior standard deviations, with the uncertainty of the prior's mean."""
    prior_mean: float
    """What they are drawn towards; NaN without a number."""
    prior_sd: float
    """How far the true numbers differ; 0 where noise explains all."""
    reliability: float
    """Share of the variance between the numbers that is not noise, in [0, 1]; NaN with fewer than two."""


def shrink(values: Float[np.ndarray, "item"], errors: Float[np.ndarray, "item"], centre: float | None = None) -> Shrunk:
    r"""Empirical-Bayes estimates of many numbers from their estimates and standard errors.

    Args:
        values: Unbiased estimates; NaN is undefined.
        errors: Their standard errors, positive; NaN is undefined.
        centre: What they are drawn towards; None estimates it.

    Raises:
        ShapeError: If they differ in length.

    Notes:
        Normal prior :math:`N(\mu, \tau^2)`. The variance solves :math:`\sum_i (x_i - \mu)^2 / (\tau^2 + s_i^2) = n - 1` with the weighted mean
        :math:`\mu`, or = n where it is given, and is 0 where that has no solution. Posterior mean :math:`\mu + k_i (x_i - \mu)` with
        :math:`k_i = \tau^2 / (\tau^2 + s_i^2)`, variance :math:`k_i s_i^2 + (1 - k_i)^2 \operatorname{Var}(\hat\mu)`.

    References:
        Paule and Mandel (1982), Consensus values and weighting factors; Efron and Morris (1973), Stein's estimation rule.

    Example:
        >>> shrunk = shrink(np.array([0.0, 1.0, 2.0]), np.array([0.5, 0.5, 0.5]))
        >>> shrunk.mean.round(6).tolist(), round(shrunk.reliability, 6)
        ([0.25, 1.0, 1.75], 0.75)
    """
    if values.shape != errors.shape or values.ndim != 1:
        raise ShapeError(f"expected as many errors as values along one axis, found shapes {values.shape} and {errors.shape}")
    mean, sd = np.full(len(values), np.nan), np.full(len(values), np.nan)
    known = ~np.isnan(values) & ~np.isnan(errors)
    if not known.any():
        return Shrunk(mean, sd, np.nan, np.nan, np.nan)
    x, variance = values[known], np.maximum(errors[known] ** 2, np.finfo(np.float64).tiny)
    spread = _spread(x, variance, centre)
    middle = _middle(x, variance, spread) if centre is None else centre
    kept = spread / (spread + variance)
    mean[known] = middle + kept * (x - middle)
    doubt = 1.0 / np.sum(1.0 / (spread + variance)) if centre is None else 0.0
    sd[known] = np.sqrt(kept * variance + (1.0 - kept) ** 2 * doubt)
    reliability = float(np.mean(kept)) if len(x) >= 2 else np.nan
    return Shrunk(mean, sd, middle, float(np.sqrt(spread)), reliability)


def _middle(x: Float[np.ndarray, "item"], variance: Float[np.ndarray, "item"], spread: float) -> float:
    weights = 1.0 / (spread + variance)
    return float(np.sum(weights * x) / np.sum(weights))


def _spread(x: Float[np.ndarray, "item"], variance: Float[np.ndarray, "item"], centre: float | None) -> float:
    freedom = len(x) - (centre is None)

    def excess(spread: float) -> float:
        middle = _middle(x, variance, spread) if centre is None else centre
        return float(np.sum((x - middle) ** 2 / (spread + variance))) - freedom

    if freedom < 1 or excess(0.0) <= 0:
        return 0.0
    largest = float(np.sum((x - (np.mean(x) if centre is None else centre)) ** 2))
    return float(root_scalar(excess, method="brentq", bracket=(0.0, largest + float(np.max(variance)))).root)


def order_reliability(shrunk: Shrunk, generator: np.random.Generator, num_draws: int = 400) -> float:
    """Rank correlation that the order of the posterior means is expected to have with the true order.

    Args:
        shrunk: The posterior.
        generator: Source of randomness.
        num_draws: Draws of the truth.

    Returns:
        Mean Spearman correlation in [-1, 1]; near 0 the order is noise. NaN with fewer than two numbers.

    Example:
        >>> sure = shrink(np.arange(5.0), np.full(5, 1e-3))
        >>> order_reliability(sure, np.random.default_rng(0))
        1.0
    """
    known = ~np.isnan(shrunk.mean)
    mean, sd = shrunk.mean[known], shrunk.sd[known]
    if len(mean) < 2:
        return float("nan")
    truth = mean + sd * generator.standard_normal((num_draws, len(mean)))
    own = rankdata(mean)
    if np.ptp(own) == 0:
        return 0.0
    centred, other = own - own.mean(), rankdata(truth, axis=1) - (len(mean) + 1) / 2
    correlation = (other @ centred) / np.sqrt(np.sum(centred**2) * np.sum(other**2, axis=1))
    return float(np.round(np.mean(correlation), 12))
