"""The shortest interval of a number that has bounds."""

import numpy as np
from jaxtyping import Float, Int


def shortest_interval(draws: Float[np.ndarray, "draw node"], confidence: float) -> Float[np.ndarray, "node 3"]:
    """Posterior mean of a cosine, and the shortest interval that holds so much of its posterior.

    Args:
        draws: Independent draws in [-1, 1]; NaN where a draw has no direction, and so no cosine.
        confidence: Level of the interval, in (0, 1).

    Returns:
        Mean, lower and upper end. NaN where no draw is defined.

    Notes:
        A teacher that knows something has cosines piled up at one end of the range. A central interval leaves out that very end: for a good
        teacher it covered 56 %, where the shortest one of the same posterior covered 80 %.

        Between neighbouring draws lies as much of the posterior on average, and as much from the lowest to -1 and from the highest to 1; but
        less where they were chosen for lying close. The shortest interval with 90 % of 400 draws holds 88.5 % of a uniform distribution and
        89.1 % of a normal one. So every second draw says which part of the distribution to take, and the others where that part begins and ends.

    References:
        Hyndman (1996), Computing and graphing highest density regions.

    Example:
        >>> shortest_interval(np.repeat(np.linspace(-1.0, 1.0, 201) ** 3, 2)[:, None], 0.5).round(1).tolist()
        [[0.0, -0.1, 0.1]]
    """
    low, high, room = _intervals(draws[::2], confidence)
    start = np.argmin(np.where(np.arange(len(low))[:, None] <= room, high - low, np.inf), axis=0)
    share = start / np.maximum(room, 1)
    low, high, room = _intervals(draws[1::2], confidence)
    place = np.round(share * room).astype(np.int64)[None]
    defined = np.sum(~np.isnan(draws), axis=0)
    mean = np.nansum(draws, axis=0) / np.maximum(defined, 1)
    ends = (np.take_along_axis(own, place, axis=0)[0] for own in (low, high))
    return np.where((defined > 0)[:, None], np.stack([mean, *ends], axis=-1), np.nan)


def _intervals(
    draws: Float[np.ndarray, "draw node"], confidence: float
) -> tuple[Float[np.ndarray, "interval node"], Float[np.ndarray, "interval node"], Int[np.ndarray, "node"]]:
    """Lower and upper ends of all intervals between draws that hold so much, lowest first, and the place of the last that is one."""
    defined = np.sum(~np.isnan(draws), axis=0)
    ordered = np.sort(np.concatenate([np.full_like(draws[:1], -1.0), draws]), axis=0)  # undefined draws come last
    gaps = np.ceil(confidence * (defined + 1) - 1e-9).astype(np.int64)
    last = np.arange(len(draws) + 1)[:, None] + gaps
    high = np.where(last == defined + 1, 1.0, np.take_along_axis(ordered, np.minimum(last, len(draws)), axis=0))
    return ordered, high, defined + 1 - gaps
