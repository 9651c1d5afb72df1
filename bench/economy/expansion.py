"""Further nodes or further continuations: what is left of the variance of a sum over a path, by how often its nodes are drawn."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from page import Section
from worlds import REAL, WORLDS, Question, question, roll_out

from opdscope.core.allocation import allocate_tokens, target_weights
from opdscope.core.expansion import best_draws, drawing_variance, refined_sample
from opdscope.core.randomness import generator
from opdscope.core.sampling import importance_per_cost, inclusion_probabilities, node_importance

DRAWS = (1, 2, 4, 8)
BUDGETS = (2.0, 4.0, 8.0, 16.0)
"""In tokens of the pilot of one draw."""

NODES, PILOT, LEAST_PROB, UNIFORM_SHARE = 6, 3, 0.01, 0.25
"""As the pipeline's defaults have them."""


@dataclass(frozen=True)
class Path:
    """A student's response with everything known: position × token, teachers first."""

    probs: np.ndarray
    success: np.ndarray
    signals: np.ndarray
    inclusion: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        """Teacher × position: natural gains in the teacher's push over the path."""
        return np.sum(self.probs * self.success * self.signals, axis=-1) / self.scale[:, None]

    @property
    def scale(self) -> np.ndarray:
        """Root of each teacher's signal variance over the path."""
        return np.sqrt(np.sum(self.probs * self.signals**2, axis=(1, 2)))

    def bias(self, draws: int, starts: np.ndarray) -> float:
        """Of the mean over starts of the sum, in its own spread over them; mean over teachers."""
        sums = np.array([self.sums(draws, start) for start in starts])
        spread = np.std(sums, axis=0)
        return float(np.mean(np.abs(np.mean(sums, axis=0) - self.gains.sum(axis=1)) / np.where(spread > 1e-9, spread, 1.0)))

    def sums(self, draws: int, start: float) -> np.ndarray:
        """What the nodes of these draws would say if their gains were known, by teacher."""
        positions, divisors = refined_sample(self.inclusion, start, draws)
        return np.sum(self.gains[:, positions] / divisors, axis=1)

    def between(self, draws: int, starts: np.ndarray) -> float:
        """Variance that comes from which nodes are drawn; mean over teachers."""
        return float(np.mean([(self.sums(draws, start) - self.gains.sum(axis=1)) ** 2 for start in starts]))

    def foretold(self, start: float) -> float:
        """The same for one draw, as estimated from its nodes alone with their gains known."""
        positions, divisors = refined_sample(self.inclusion, start, 1)
        terms, certain = self.gains[:, positions] / divisors, divisors >= 1.0
        return float(np.mean([drawing_variance(own, np.zeros(len(own)), certain) for own in terms]))

    def noise(self, draws: int, start: float, budget: float) -> float:
        """Expected variance from continuations, for a budget in pilots of one draw; infinite where it does not pay for the pilots."""
        first, _ = refined_sample(self.inclusion, start, 1)
        positions, divisors = refined_sample(self.inclusion, start, draws)
        use, cost = self.probs[positions] > LEAST_PROB, self.cost(positions)
        pilot, tokens = np.full(int(use.sum()), PILOT), budget * PILOT * float(np.sum(self.cost(first)))
        # interleaved draws differ in what their nodes cost: a tenth of a pilot is as good as none
        if tokens < 0.9 * PILOT * float(np.sum(cost)):
            return float("inf")
        weights = target_weights(self.probs[positions], self.signals[:, positions] / divisors[:, None], self.scale[:, None])[use]
        variance = (self.success * (1.0 - self.success))[positions][use]
        counts = pilot + allocate_tokens(weights, np.maximum(variance, 0.02), pilot, cost, tokens - PILOT * float(np.sum(cost)))
        return float(np.sum(weights**2 * variance / counts))

    def cost(self, positions: np.ndarray) -> np.ndarray:
        """Tokens of a continuation of every sampled stratum of these nodes."""
        left = np.repeat(np.maximum(len(self.probs) - positions - 1, 1)[:, None], self.probs.shape[1], axis=1)
        return left[self.probs[positions] > LEAST_PROB].astype(np.float64)


def paths(name: str, num_questions: int, per_question: int) -> list[Path]:
    """Responses of the student to questions of a world."""
    world = WORLDS[name]
    found: list[Path] = []
    for index in range(num_questions):
        own: Question = question(world, index)
        length = len(own.student)
        drawn = roll_out(world, own, generator("economy", "expansion", index).random((per_question, length)))
        for states in drawn.states:
            at = np.arange(length), states
            probs, divergence = np.exp(own.student)[at], own.reverse_kl[: len(REAL), at[0], states]
            cost = np.maximum(length - np.arange(length) - 1.0, 1.0)
            importance = importance_per_cost(node_importance(np.sum(probs**2, axis=-1), divergence), cost)
            inclusion = inclusion_probabilities(importance, NODES, UNIFORM_SHARE)
            found.append(Path(probs, own.success[at], own.signal[: len(REAL), at[0], states], inclusion))
    return found


def expansion(num_questions: int, per_question: int, num_starts: int) -> Section:
    """One row per world and budget: variance with 1, 2, 4, 8 draws, and with as many as the first draw says."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    starts = (np.arange(num_starts) + 0.5) / num_starts
    for name in WORLDS:
        own = paths(name, num_questions, per_question)
        between = {draws: float(np.mean([path.between(draws, starts) for path in own])) for draws in DRAWS}
        foretold = float(np.mean([path.foretold(start) for path in own for start in starts]))
        worst = max(float(np.mean([path.bias(draws, (np.arange(400) + 0.5) / 400) for path in own[:8]])) for draws in DRAWS)
        checks.append((f"{name}: sums over all draws have the mean of the whole path (bias {worst:.3f} of their deviation)", worst < 0.02))
        for budget in BUDGETS:
            noise = {d: float(np.mean([path.noise(d, start, budget) for path in own for start in starts])) for d in DRAWS}
            one = [float(np.mean([path.noise(1, start, budget / d) for path in own for start in starts])) for d in range(1, DRAWS[-1] + 1)]
            total = {draws: between[draws] + noise[draws] for draws in DRAWS}
            chosen = best_draws(foretold, one)
            nearest = max(draws for draws in DRAWS if draws <= chosen)
            cells = [f"{total[draws]:.5f}" if np.isfinite(total[draws]) else "—" for draws in DRAWS]
            rows.append([name, f"{budget:g}×", f"{between[1] / total[1]:.0%}", *cells, chosen, f"{total[1] / total[nearest]:.2f}×"])
            checks.append(
                (f"{name}, {budget:g}×: as many draws as are chosen leave no more variance than one", total[nearest] <= total[1] * 1.001)
            )
    text = (
        f"{num_questions * per_question} responses, six teachers, {NODES} nodes a draw, included by freedom, push and cost. Variance of the "
        "estimated sum of natural gains over a "
        "path, in the path's own signal variance, mean over teachers: exact over where draws begin, and from continuations as expected from exact "
        "successes; nothing is backed up. *Budget*: in tokens of the pilot of one draw, the same whatever the number of draws. *Between*: share of "
        "the variance with one draw that comes from which nodes were drawn. *Chosen*: draws that the rule of `target.expand` takes, from the first "
        "draw and its gains alone; *economy*: how many times less variance they leave (the next smaller number in the table). In the tree every "
        "position is a node already: nothing is left to expand."
    )
    columns = ["world", "budget", "between", *(f"{draws} draw{'s' * (draws > 1)}" for draws in DRAWS), "chosen", "economy"]
    return Section("Tree search: further nodes or further continuations", text, columns, rows, checks)
