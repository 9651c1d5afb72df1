"""Variance reduction, one technique at a time: how many times fewer samples reach the same variance. No sampling noise of a pipeline in between."""

from typing import Any

import numpy as np
from page import Section
from worlds import NAMES, REAL, WORLDS, Question, Rollouts, question, roll_out

from opdscope.core.controls import cross_fitted_slopes, zero_mean_products
from opdscope.core.randomness import generator
from opdscope.core.values import cross_fitted_values, prefix_features, success_log_odds
from opdscope.models.exact import World

TEACHERS = ("good", "weak", "stylistic", "random")
ANSWERED = NAMES.index("weak")
"""In these worlds the student that is shown the answer is the weak teacher; its log-ratios are the log-odds proxy of METHOD 7."""

FOLDS = 6


def screening(num_questions: int, num_rollouts: int) -> Section:
    """Of the gain from ordinary rollouts."""
    rows: list[list[Any]] = []
    for name, world in WORLDS.items():
        owns = [question(world, index) for index in range(num_questions)]
        owns = [own for own in owns if not np.isnan(own.signal).any()]
        numbers = [generator("economy", "techniques", name, k).random((num_rollouts, len(own.student))) for k, own in enumerate(owns)]
        drawn = [roll_out(world, own, u) for own, u in zip(owns, numbers, strict=True)]
        mirrored = [roll_out(world, own, 1.0 - u) for own, u in zip(owns, numbers, strict=True)]
        base = _variances(owns, drawn, [np.full(d.tokens.shape, d.outcomes.mean()) for d in drawn])
        ways = {
            "no baseline": _variances(owns, drawn, [np.zeros(d.tokens.shape) for d in drawn]),
            "leave-one-out baseline (the pipeline's)": base,
            "fitted value: depth, entropy, log-probability": _variances(owns, drawn, _fitted(owns, drawn, False)),
            "fitted value with the log-odds proxy": _variances(owns, drawn, _fitted(owns, drawn, True)),
            "bound: exact value of every prefix": _variances(
                owns, drawn, [_exact_values(own, d) for own, d in zip(owns, drawn, strict=True)]
            ),
            "antithetic pairs, leave-one-out baseline": _antithetic(owns, drawn, mirrored),
            "control variates: log-ratios of all six teachers": _controlled(owns, drawn, np.eye(len(REAL))),
            "control variate: weak teacher's log-ratio with noise": _controlled(owns, drawn, _NOISY),
            "control variate: noise alone": _controlled(owns, drawn, np.eye(len(REAL))[-1:]),
        }
        for way, found in ways.items():
            rows.append([name, way, *(f"{base[t] / found[t]:.2f}×" for t in range(len(TEACHERS)))])
    text = (
        f"{num_questions} questions, {num_rollouts:,} rollouts each. Variance within a question of the natural gain (reverse KL), relative to the "
        "leave-one-out baseline: above one, fewer rollouts do. A fitted value is a cross-fitted ridge regression of the outcome on what a prefix "
        "shows, subtracted at each position; whatever it says, the estimate stays unbiased. With few rollouts a question the differences between "
        "questions, which no technique lowers, are part of every interval too."
    )
    return Section("Techniques: ordinary rollouts", text, ["world", "technique", *TEACHERS], rows)


def _variances(owns: list[Question], drawn: list[Rollouts], values: list[np.ndarray]) -> np.ndarray:
    """Mean over questions of the variance of one rollout's contribution, per teacher."""
    index = [NAMES.index(name) for name in TEACHERS]
    found = [
        np.var(np.sum((d.outcomes[:, None] - v) * d.pushes(own)[index], axis=-1), axis=-1)
        for own, d, v in zip(owns, drawn, values, strict=True)
    ]
    return np.mean(found, axis=0)


def _antithetic(owns: list[Question], drawn: list[Rollouts], mirrored: list[Rollouts]) -> np.ndarray:
    index = [NAMES.index(name) for name in TEACHERS]
    found = []
    for own, one, other in zip(owns, drawn, mirrored, strict=True):
        centre = one.outcomes.mean()
        pair = [(d.outcomes - centre) * d.pushes(own)[index].sum(axis=-1) for d in (one, other)]
        found.append(2.0 * np.var((pair[0] + pair[1]) / 2.0, axis=-1))
    return np.mean(found, axis=0)


_NOISY = np.array([[name in ("weak", "random") for name in REAL]], dtype=np.float64)


def _controlled(owns: list[Question], drawn: list[Rollouts], mix: np.ndarray) -> np.ndarray:
    """With mixtures of the real teachers' centred log-ratios, control × teacher, as control variates of the leave-one-out estimate."""
    index = [NAMES.index(name) for name in TEACHERS]
    pushes = [d.pushes(own)[: len(REAL)] for own, d in zip(owns, drawn, strict=True)]
    folds = np.concatenate([np.full(len(d.outcomes), k % FOLDS) for k, d in enumerate(drawn)])
    contributions = [(d.outcomes - d.outcomes.mean()) * push[index].sum(axis=-1) for d, push in zip(drawn, pushes, strict=True)]
    products = []
    for push in pushes:
        controls = np.einsum("cm,mrp->rcp", mix, push)
        products.append(np.array([zero_mean_products(controls, push[t]) for t in index]))
    found = []
    for t in range(len(index)):
        columns = np.concatenate([own[t] for own in products])
        values = np.concatenate([own[t] for own in contributions])
        estimates = values - np.sum(cross_fitted_slopes(columns, values, folds) * columns, axis=1)
        found.append(np.mean([np.var(part) for part in np.split(estimates, len(drawn))]))
    return np.array(found)


def _exact_values(own: Question, drawn: Rollouts) -> np.ndarray:
    values = np.sum(np.exp(own.student) * own.success, axis=-1)
    return values[np.arange(values.shape[0]), drawn.states]


def _fitted(owns: list[Question], drawn: list[Rollouts], proxy: bool) -> list[np.ndarray]:
    """Value of each prefix, from rollouts of other questions."""
    features = [_features(own, d, proxy) for own, d in zip(owns, drawn, strict=True)]
    outcomes = np.concatenate([np.repeat(d.outcomes, d.tokens.shape[1]) for d in drawn])
    folds = np.concatenate([np.full(d.tokens.size, k % FOLDS) for k, d in enumerate(drawn)])
    found = cross_fitted_values(np.concatenate([own.reshape(-1, own.shape[-1]) for own in features]), outcomes, folds)
    ends = np.cumsum([d.tokens.size for d in drawn])[:-1]
    return [part.reshape(d.tokens.shape) for part, d in zip(np.split(found, ends), drawn, strict=True)]


def _features(own: Question, drawn: Rollouts, proxy: bool) -> np.ndarray:
    """What is known before each token: rollout × position × feature."""
    positions = np.arange(drawn.tokens.shape[1])
    logprob = own.student[positions, drawn.states, drawn.tokens]
    entropy = -np.sum(np.exp(own.student) * own.student, axis=-1)[positions, drawn.states]
    ratios = own.signal[[ANSWERED] if proxy else []][:, positions, drawn.states, drawn.tokens]
    return prefix_features(success_log_odds(drawn.outcomes), entropy, logprob, ratios)


def continuations(num_questions: int, num_rollouts: int) -> Section:
    """Of the natural gain of one node from targeted rollouts."""
    rows: list[list[Any]] = []
    for name, world in WORLDS.items():
        sums: dict[str, list[float]] = {}
        for index in range(num_questions):
            own = question(world, index)
            if not np.isnan(own.signal).any():
                _one_question(world, own, index, num_rollouts, sums)
        base = np.sum(sums["independent"])
        for way, found in sums.items():
            if way != "independent":
                rows.append([name, way, f"{base / np.sum(found):.2f}×"])
    text = (
        f"One node of each of {num_questions} questions, drawn from the student's responses among those with a range of success; candidates "
        f"with probability above .01, {num_rollouts:,} continuations each. Variance of the good teacher's natural gain, relative to independent "
        "continuations with the same number for each candidate. Control variates are sums along the continuation of a centred signal, whose mean is "
        "exactly zero; their coefficient is fitted on the other half of the continuations. In the tree these teachers tilt by the exact "
        "advantage, so that the proxy foretells the outcome exactly: an upper end, not a promise."
    )
    return Section("Techniques: continuations of a node", text, ["world", "technique", "economy"], rows)


def _one_question(world: World, own: Question, index: int, count: int, sums: dict[str, list[float]]) -> None:
    source = generator("economy", "continuations", index)
    spread = _range(own)
    weights = own.occupancy * (spread > 1e-3)
    place = int(source.choice(weights.size, p=weights.ravel() / weights.sum()))
    position, state = divmod(place, weights.shape[1])
    if position == len(own.student) - 1:
        return
    probs = np.exp(own.student[position, state])
    tokens = np.flatnonzero(probs > 0.01)
    signal = own.signal[NAMES.index("good"), position, state]
    coefficient = (probs * signal)[tokens]
    left = len(own.student) - position - 1
    shared = source.random((count, left))
    following = world.next_states()[position, state]
    outcomes, mirrored, proxies = [], [], {"weak": [], "random": []}
    for token in tokens:
        start = np.full(count, following[token])
        drawn = roll_out(world, own, shared, position + 1, start)
        outcomes.append(drawn.outcomes)
        mirrored.append(roll_out(world, own, 1.0 - shared, position + 1, start).outcomes)
        for name, found in proxies.items():
            table = own.signal[NAMES.index(name), position + 1 :]
            found.append(table[np.arange(left), drawn.states, drawn.tokens].sum(axis=1))
    right, other = np.array(outcomes), np.array(mirrored)
    variance = right.var(axis=1)

    def add(way: str, value: float) -> None:
        sums.setdefault(way, []).append(float(value))

    add("independent", np.sum(coefficient**2 * variance))
    n = np.abs(coefficient) * np.sqrt(variance)
    add("Neyman allocation, variances known", n.sum() ** 2 / len(tokens))
    add("common random numbers across candidates", np.var(coefficient @ right))
    add("antithetic pairs", np.sum(coefficient**2 * 2.0 * ((right + other) / 2.0).var(axis=1)))
    proxy, noise = (np.array(proxies[name]) for name in ("weak", "random"))
    for label, control in (
        ("log-odds proxy (the student shown the answer)", proxy),
        ("the same with noise", proxy + noise),
        ("noise alone", noise),
    ):
        half = count // 2
        centred = right - right.mean(axis=1, keepdims=True)
        slope = np.sum(centred[:, :half] * control[:, :half]) / max(np.sum(control[:, :half] ** 2), 1e-300)
        add(f"control variate: {label}", np.sum(coefficient**2 * (right - slope * control)[:, half:].var(axis=1)))


def _range(own: Question) -> np.ndarray:
    taken = np.exp(own.student) > 0.01
    return np.max(np.where(taken, own.success, -np.inf), axis=-1) - np.min(np.where(taken, own.success, np.inf), axis=-1)
