r"""What a prefix shows of the outcome, by a regression that never saw the outcome it is compared with.

Subtracted at each position of a response, :math:`\sum_t (R - \hat V_t)(f_{y_t} - \bar f_t)`, it lowers the noise of a screening gain and leaves its
mean as it is.
"""

import numpy as np
from jaxtyping import Float, Int


def cross_fitted_values(
    features: Float[np.ndarray, "row feature"],
    outcomes: Float[np.ndarray, "row"],
    fold: Int[np.ndarray, "row"],
    ridge: float = 1.0,
) -> Float[np.ndarray, "row"]:
    r"""Success expected after each prefix, foretold by ridge regression from the outcomes of other folds only.

    Args:
        features: What is known before the token that is judged, of any scale; a constant is added. Finite.
        outcomes: Outcome of the row's response: 1 for CORRECT, 0 for INCORRECT and TRUNCATED; NaN for a row that is foretold, not learnt from.
        fold: Rows of one fold share nothing with the fit that is applied to them; make it the question.
        ridge: Penalty on the squared coefficients of features of unit spread in the other folds, the constant excepted, in rows.

    Returns:
        Predictions cut to [0, 1]; the mean outcome where there is one fold alone.

    Notes:
        In :math:`\sum_t (R - \hat V_t)(f_{y_t} - \bar f_t)` any :math:`\hat V_t` that is fixed before token t leaves the mean as it is, since
        :math:`E[f_{y_t} - \bar f_t] = 0`; the nearer it is to the value of the prefix, the smaller the variance. A poor prediction costs
        variance, never truth.

    References:
        Hoerl and Kennard (1970), Ridge regression; Greensmith, Bartlett and Baxter (2004), Variance reduction techniques for gradient estimates.

    Example:
        >>> x, y = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([0.0, 1.0, 0.0, 1.0])
        >>> cross_fitted_values(x, y, np.array([0, 0, 1, 1]), ridge=0.0).round(6).tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    spread = np.std(features, axis=0)
    scaled = (features - np.mean(features, axis=0)) / np.where(spread > 0, spread, 1.0)  # for the condition of the equations alone
    design = np.concatenate([np.ones((len(features), 1)), scaled], axis=1)
    # each fold's part of the normal equations once: leaving it out is a subtraction
    known = ~np.isnan(outcomes)
    names = np.unique(fold[known])
    parts = [(design[own], outcomes[own]) for own in (known & (fold == name) for name in names)]
    result = np.full(len(features), float(np.mean(outcomes[known])) if known.any() else np.nan)
    if len(names) < 2:
        return result
    grams, moments = np.array([rows.T @ rows for rows, _ in parts]), np.array([rows.T @ right for rows, right in parts])
    for name in np.unique(fold):
        others = names != name
        gram = grams[others].sum(axis=0)
        # the spread of the other folds: their own would let a response's later tokens enter the values of its earlier ones
        penalty = ridge * (np.diag(gram) / gram[0, 0] - (gram[0] / gram[0, 0]) ** 2)
        coefficients = np.linalg.lstsq(gram + np.diag(penalty), moments[others].sum(axis=0), rcond=None)[0]
        result[fold == name] = design[fold == name] @ coefficients
    return np.clip(result, 0.0, 1.0)


def prefix_features(
    share: Float[np.ndarray, "rollout"],
    entropy: Float[np.ndarray, "rollout position"],
    logprob: Float[np.ndarray, "rollout position"],
    ratios: Float[np.ndarray, "informing rollout position"],
) -> Float[np.ndarray, "rollout position feature"]:
    r"""What is known of a response before each of its tokens, at no cost: the features of :func:`cross_fitted_values`.

    Args:
        share: Success of the question in its *other* rollouts, of any scale.
        entropy: The student's entropy in nats.
        logprob: The student's log-probability of the token taken.
        ratios: Centred log-ratio :math:`\log q/p + KL(p\|q)` at the token taken, of each teacher that may inform; none is a first axis of zero.

    Returns:
        Share, depth, entropy, :math:`\ell_t = \sum_{s<t} \log p_{y_s}` and its product with depth; then of each informing teacher the
        log-odds so far, :math:`\sum_{s<t} h_s`, and their product with depth. Nothing of token t or later is in row t.

    References:
        The log-odds value recursion of arXiv 2605.21851.

    Example:
        >>> one = np.array([[1.0, 2.0, 4.0]])
        >>> prefix_features(np.array([0.5]), np.zeros((1, 3)), -one, one[None])[0, :, [0, 1, 3, 5]].tolist()
        [[0.5, 0.5, 0.5], [0.0, 1.0, 2.0], [0.0, -1.0, -3.0], [0.0, 1.0, 3.0]]
    """
    depth = np.broadcast_to(np.arange(logprob.shape[-1], dtype=np.float64), logprob.shape)
    columns = [np.broadcast_to(share[:, None], logprob.shape), depth, entropy]
    for taken in (logprob, *ratios):
        before = np.cumsum(np.pad(taken[:, :-1], ((0, 0), (1, 0))), axis=-1)
        columns += [before, before * depth]
    return np.stack(columns, axis=-1)


def success_log_odds(outcomes: Float[np.ndarray, "rollout"]) -> Float[np.ndarray, "rollout"]:
    """Log-odds of success among the other verified rollouts, half a success and half a failure added; outcomes that are NaN count nowhere.

    Example:
        >>> success_log_odds(np.array([1.0, 0.0, np.nan])).round(4).tolist()
        [-1.0986, 1.0986, 0.0]
    """
    right, wrong = np.nan_to_num(outcomes), np.nan_to_num(1.0 - outcomes)
    return np.log((right.sum() - right + 0.5) / (wrong.sum() - wrong + 0.5))
