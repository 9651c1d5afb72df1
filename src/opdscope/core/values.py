"""What a prefix shows of the outcome, by a regression that never saw the outcome it is compared with."""

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
        outcomes: Outcome of the row's response: 1 for CORRECT, 0 for INCORRECT and TRUNCATED.
        fold: Rows of one fold share nothing with the fit that is applied to them; make it the question.
        ridge: Penalty on the squared coefficients of the standardised features, the constant excepted, in rows.

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
    scaled = (features - np.mean(features, axis=0)) / np.where(spread > 0, spread, 1.0)
    design = np.concatenate([np.ones((len(features), 1)), scaled], axis=1)
    # each fold's part of the normal equations once: leaving it out is a subtraction
    names = np.unique(fold)
    grams = np.array([design[fold == name].T @ design[fold == name] for name in names])
    moments = np.array([design[fold == name].T @ outcomes[fold == name] for name in names])
    penalty = np.diag([0.0, *np.full(features.shape[1], ridge)])
    result = np.full(len(features), float(np.mean(outcomes)) if len(outcomes) else np.nan)
    if len(names) < 2:
        return result
    for k, name in enumerate(names):
        coefficients = np.linalg.lstsq(grams.sum(axis=0) - grams[k] + penalty, moments.sum(axis=0) - moments[k], rcond=None)[0]
        result[fold == name] = design[fold == name] @ coefficients
    return np.clip(result, 0.0, 1.0)
