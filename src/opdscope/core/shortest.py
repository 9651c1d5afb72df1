"""The shortest interval of a number that has bounds."""

import numpy as np
from jaxtyping import Float, Int


def shortest_interval(draws: Float[np.ndarray, "draw node"], confidence: float) -> Float[np.ndarray, "node 3"]:
    r"""Posterior mean of a cosine, and the shortest interval that holds so much of its posterior.

    Args:
        draws: Draws in [-1, 1]; NaN where a draw has no direction, and so no cosine.
        confidence: Level of the interval, in (0, 1).

    Returns:
        Mean, lower and upper end. Each gap between neighbours holds as much, and so do those from the lowest draw to -1 and from the highest
        to 1. NaN where no draw is defined.

    Notes:
        A teacher that knows something has cosines piled up at one end of the range. A central interval leaves out that very end: for a good
        teacher it covered 56 %, where the shortest one of the same posterior covered 80 %.

        Gaps that were chosen for being short hold less than others. What the shortest interval with a share c of n draws lacks goes with the
        standard error of such a share, :math:`\sqrt{c (1 - c) / n}`: half of it if draws are normal, all of it if they are uniform, and nothing
        where it reaches an end of the range, so that there was nothing to choose. So within the range half a standard error is asked for besides.

    References:
        Hyndman (1996), Computing and graphing highest density regions.

    Example:
        >>> shortest_interval(np.linspace(-1.0, 1.0, 201)[:, None] ** 3, 0.5).round(1).tolist()
        [[0.0, -0.1, 0.1]]
    """
    defined = np.sum(~np.isnan(draws), axis=0)
    ordered = np.sort(np.concatenate([np.full_like(draws[:1], -1.0), draws]), axis=0)  # undefined draws come last
    share, besides = confidence * (defined + 1), 0.5 * np.sqrt(confidence * (1.0 - confidence) * defined)
    low, high = _shortest(ordered, defined, share)
    chosen = (low > -1.0) & (high < 1.0)
    low, high = (np.where(chosen, *ends) for ends in zip(_shortest(ordered, defined, share + besides), (low, high), strict=True))
    mean = np.nansum(draws, axis=0) / np.maximum(defined, 1)
    return np.where((defined > 0)[:, None], np.stack([mean, low, high], axis=-1), np.nan)


def _shortest(
    ordered: Float[np.ndarray, "end node"], defined: Int[np.ndarray, "node"], share: Float[np.ndarray, "node"]
) -> tuple[Float[np.ndarray, "node"], Float[np.ndarray, "node"]]:
    """Ends of the shortest interval of at least so many gaps, among -1, the defined draws in order, and 1."""
    gaps = np.minimum(np.ceil(share - 1e-9).astype(np.int64), defined + 1)
    last = np.arange(len(ordered))[:, None] + gaps
    high = np.where(last == defined + 1, 1.0, np.take_along_axis(ordered, np.minimum(last, len(ordered) - 1), axis=0))
    start = np.argmin(np.where(last <= defined + 1, high - ordered, np.inf), axis=0)[None]
    low, high = (np.take_along_axis(own, start, axis=0)[0] for own in (ordered, high))
    return low, high
