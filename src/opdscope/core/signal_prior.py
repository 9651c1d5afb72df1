r"""The prior of success that a teacher's record over all nodes suggests: strata that it pushes may succeed more often, or less.

Success alone does not know the teacher: a prior under which strata are exchangeable expects every cosine to be as often positive as negative. A
good teacher's is positive nearly everywhere, and where a node's outcomes say little its cosine would be pulled to zero. So the centre of a
stratum's prior is moved along the teacher's signal, by a slope that differs between nodes:

.. math:: S_j \sim \operatorname{Beta}(\kappa m_j, \kappa (1 - m_j)), \qquad \operatorname{logit} m_j = \operatorname{logit} m + b z_j.

How often each slope b, strength κ and value m occurs is learned from the outcomes of all nodes. Infinite strength and no slope is a node whose
strata do not differ.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyproject.toml says the same for all modules, but strict mode overrides it; scipy's functions used here are typed ufuncs

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import betaln, expit

from opdscope.core.success import StratumOutcomes
from opdscope.errors import ShapeError

_SLOPES = np.array([-3.2, -1.6, -0.8, -0.35, -0.15, 0.0, 0.15, 0.35, 0.8, 1.6, 3.2])
"""Grid of slopes, in logits of success per root mean square of the signal; doubled from one to the next."""

_STRENGTHS = np.append(np.geomspace(0.3, 300.0, 10), np.inf)
"""Grid of prior strengths κ, in continuations."""

_VALUES = np.linspace(-5.5, 5.5, 23)
"""Grid over the unknown value of a node, in logits."""

_TABLE = np.linspace(-9.0, 9.0, 73)
"""Centres, in logits, that likelihoods are tabulated at."""

_SHAPE = len(_SLOPES), len(_STRENGTHS), len(_VALUES)
"""Of the grid."""

_SAME = (len(_SLOPES) // 2, len(_STRENGTHS) - 1)
"""Cell of nodes whose strata do not differ."""

_ADDED, _STEPS = 0.1, 100
"""Nodes added to every cell, and steps of expectation maximisation."""

_AT_FIRST = 0.9
"""Share of nodes whose strata do not differ that the search begins with: what outcomes cannot tell from no difference at all is taken for none."""

_LARGEST = 5.0
"""Of a signal, in its root mean square: further out nothing tells whether slopes go on."""


def scaled_signal(
    probs: Float[np.ndarray, "node stratum"], signal: Float[np.ndarray, "node stratum"], outcomes: StratumOutcomes
) -> tuple[Float[np.ndarray, "node stratum"], float]:
    """A signal less its mean under the student, in units of its root mean square over the strata that are sampled, and that unit.

    One unit for all nodes: a teacher that knows says as much about a rare token as about a frequent one. Zero where a signal is infinite, and
    where nothing is sampled; the unit is 1 where there is no push at all.
    """
    shares = probs / probs.sum(axis=-1, keepdims=True)
    finite = np.where(np.isfinite(signal), signal, 0.0)
    centred = finite - np.sum(shares * finite, axis=-1, keepdims=True)
    live = (probs > 1e-9) & np.isnan(outcomes.terminal) & np.isfinite(signal)
    unit = float(np.sqrt(np.mean(centred[live] ** 2))) if live.any() else 0.0
    unit = unit if unit > 1e-9 else 1.0
    return np.where(live, np.clip(centred / unit, -_LARGEST, _LARGEST), 0.0), unit


@dataclass(frozen=True)
class SignalPrior:
    """How success goes together with one teacher's signal over the nodes of a run."""

    cells: Float[np.ndarray, "slope strength value"]
    """Share of nodes in each cell of the grid."""

    @property
    def slopes(self) -> Float[np.ndarray, "slope"]:
        """Share of nodes at each slope."""
        return self.cells.sum(axis=(1, 2))


@dataclass(frozen=True)
class SignalDraws:
    """Posterior draws given that strata differ."""

    success: Float[np.ndarray, "draw node stratum"]
    """Of every stratum, in [0, 1]."""
    slope: Float[np.ndarray, "draw node"]
    """In logits of success per unit of the signal."""
    strength: Float[np.ndarray, "draw node"]
    """In continuations; may be infinite."""


def cell_likelihood(
    outcomes: StratumOutcomes, signal: Float[np.ndarray, "node stratum"], num_tokens: Float[np.ndarray, "node stratum"]
) -> Float[np.ndarray, "node cell"]:
    r"""Likelihood of each node's outcomes in every cell of slope, strength and value, its largest one being 1.

    Args:
        outcomes: Outcomes, `node × stratum`.
        signal: From :func:`scaled_signal`.
        num_tokens: Tokens that a stratum is worth, :math:`(\sum_k p_k)^2 / \sum_k p_k^2`: 1 for a candidate. A mean over K independent tokens
            varies less: its strength is :math:`K (\kappa + 1) - 1`.

    Raises:
        ShapeError: If shapes differ.

    Notes:
        Beta-binomial, interpolated between tabulated centres.
    """
    if not outcomes.num_correct.shape == signal.shape == num_tokens.shape:
        raise ShapeError(f"expected the same nodes and strata, found {outcomes.num_correct.shape}, {signal.shape} and {num_tokens.shape}")
    use = np.isnan(outcomes.terminal)
    correct, count = np.where(use, outcomes.num_correct, 0), np.where(use, outcomes.num_verified, 0)
    # every different triple once; a quarter of a token is no difference
    triples = np.stack([correct.ravel(), count.ravel(), np.round(4.0 * num_tokens.ravel()) / 4.0])
    (right, total, tokens), index = np.unique(triples, axis=1, return_inverse=True)
    table = _tabulated(right, total, tokens).reshape(-1, len(_STRENGTHS))
    index = index.reshape(signal.shape)
    logs = np.zeros((len(signal), len(_SLOPES), len(_VALUES), len(_STRENGTHS)), dtype=np.float32)
    step = _TABLE[1] - _TABLE[0]
    for j in range(signal.shape[1]):
        centre = _VALUES + _SLOPES[:, None] * signal[:, j, None, None]
        place = np.clip((centre - _TABLE[0]) / step, 0.0, len(_TABLE) - 1.001)
        below = place.astype(np.int64)
        part = (place - below).astype(np.float32)[..., None]
        first = index[:, j, None, None] * len(_TABLE) + below
        logs += table[first] * (1.0 - part) + table[first + 1] * part
    likelihood = np.exp(logs - logs.max(axis=(1, 2, 3), keepdims=True, initial=-np.inf))
    return likelihood.transpose(0, 1, 3, 2).reshape(len(signal), _SHAPE[0] * _SHAPE[1] * _SHAPE[2])


def fit_signal_prior(likelihood: Float[np.ndarray, "node cell"]) -> SignalPrior:
    """The empirical-Bayes prior: a mixture over slopes with strengths, and over values, by expectation maximisation.

    Args:
        likelihood: From :func:`cell_likelihood`, of the nodes to learn from.

    Returns:
        Shares that sum to one; without a node those that the search begins with.

    References:
        Laird (1978), Nonparametric maximum likelihood estimation of a mixing distribution.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> signal = rng.normal(size=(400, 4))
        >>> success = expit(signal)  # a slope of one
        >>> outcomes = StratumOutcomes(rng.binomial(20, success), np.full((400, 4), 20), np.full((400, 4), np.nan))
        >>> prior = fit_signal_prior(cell_likelihood(outcomes, signal, np.ones((400, 4))))
        >>> bool(prior.slopes[8:10].sum() > 0.9)
        True
    """
    pairs, values = np.full(_SHAPE[:2], (1.0 - _AT_FIRST) / (_SHAPE[0] * _SHAPE[1] - 1)), np.full(_SHAPE[2], 1.0 / _SHAPE[2])
    pairs[_SAME] = _AT_FIRST
    for _ in range(_STEPS if len(likelihood) else 0):
        joint = (pairs[..., None] * values).astype(np.float32).ravel()
        expected = (joint * ((1.0 / (likelihood @ joint)) @ likelihood)).reshape(_SHAPE).astype(np.float64)
        pairs, values = expected.sum(axis=2) + _ADDED, expected.sum(axis=(0, 1)) + _ADDED
        pairs, values = pairs / pairs.sum(), values / values.sum()
    return SignalPrior(pairs[..., None] * values)


def draw_success(
    prior: SignalPrior,
    likelihood: Float[np.ndarray, "node cell"],
    outcomes: StratumOutcomes,
    signal: Float[np.ndarray, "node stratum"],
    num_tokens: Float[np.ndarray, "node stratum"],
    num_draws: int,
    generators: Sequence[np.random.Generator],
) -> SignalDraws:
    """Posterior draws of every stratum's success, given that strata differ; arguments as for :func:`cell_likelihood`.

    Args:
        prior: That of the nodes together.
        likelihood: Of these nodes.
        outcomes: What was observed.
        signal: Scaled.
        num_tokens: Tokens that a stratum is worth.
        num_draws: How many draws.
        generators: Source of randomness of each node.
    """
    differing = prior.cells.copy()
    differing[_SAME] = 0.0
    chances = np.cumsum((likelihood * differing.ravel()).astype(np.float64), axis=1)
    found = np.empty((num_draws, *signal.shape))
    slopes, strengths = np.empty((2, num_draws, len(signal)))
    half = 0.5 * (_VALUES[1] - _VALUES[0])
    for i, source in enumerate(generators):
        cell = np.searchsorted(chances[i, :-1], source.random(num_draws) * chances[i, -1], side="right")
        which, strength, value = np.unravel_index(cell, prior.cells.shape)
        # anywhere in the cell
        slopes[:, i] = _SLOPES[which] * np.exp(source.uniform(-0.35, 0.35, num_draws))
        strengths[:, i] = _STRENGTHS[strength]
        level = _VALUES[value] + source.uniform(-half, half, num_draws)
        centre = expit(np.clip(level[:, None] + slopes[:, i, None] * signal[i], -12.0, 12.0))
        sharp = np.isinf(strengths[:, i, None])
        total = num_tokens[i] * (np.where(sharp, 0.0, strengths[:, i, None]) + 1.0) - 1.0
        total = np.where(sharp, 1.0, total)
        missed = outcomes.num_verified[i] - outcomes.num_correct[i]
        drawn = source.beta(total * centre + outcomes.num_correct[i], total * (1.0 - centre) + missed)
        found[:, i] = np.where(sharp, centre, drawn)
    return SignalDraws(np.where(np.isnan(outcomes.terminal), found, outcomes.terminal), slopes, strengths)


def _tabulated(
    right: Float[np.ndarray, "triple"], total: Float[np.ndarray, "triple"], tokens: Float[np.ndarray, "triple"]
) -> Float[np.ndarray, "triple centre strength"]:
    """Log-likelihood of counts at every centre and strength."""
    right, total, tokens = right[:, None, None], total[:, None, None], tokens[:, None, None]
    mean = expit(_TABLE)[:, None]
    strength = tokens * (_STRENGTHS[:-1] + 1.0) - 1.0
    alpha, beta = strength * mean, strength * (1.0 - mean)
    differing = betaln(alpha + right, beta + total - right) - betaln(alpha, beta)
    same = right * np.log(mean) + (total - right) * np.log1p(-mean)
    return np.concatenate([differing, same], axis=-1).astype(np.float32)
