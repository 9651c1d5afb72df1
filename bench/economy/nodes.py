"""Per-node numbers: tokens to equal error against the same number at every candidate, technique by technique, and coverage with all of them."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from continuing import Drawn, Start, continue_from
from page import Section
from ranking import config
from scipy.special import ndtri
from worlds import REAL, TASKS, WORLDS, question

import opdscope
from opdscope.config import Config, load_config
from opdscope.core.alignment import alignment_score, gain_variance, natural_gain
from opdscope.core.allocation import allocate_tokens, target_weights
from opdscope.core.backup import interval_variance, no_links
from opdscope.core.controlled import control_outcomes
from opdscope.core.coupling import Coupling, estimate_coupling
from opdscope.core.randomness import generator
from opdscope.core.success import StratumOutcomes
from opdscope.models.exact import World
from opdscope.store import Run
from opdscope.summary.evidence import Evidence
from opdscope.summary.foretelling import foretold_success, stratum_features
from opdscope.summary.measures import measure_nodes
from opdscope.summary.nodes import NodeArrays, Posterior, evident_posterior, node_posterior, padded, read_nodes
from opdscope.summary.paths import path_steps, read_links

PER_CANDIDATE = 32
"""Continuations a candidate of the uniform allocation, (a)."""

FRACTIONS = (0.03, 0.1, 0.3, 1.0)
"""Budgets that our error is measured at, in those of (a)."""

Tables = Mapping[str, Any]


class Exact:
    """A run's strata beside the truth."""

    def __init__(self, run: Run, world: World) -> None:
        """Look every stratum's success up."""
        tables, self.config = run.tables(), run.config
        # nulls are measured by no table of the page
        real = pa.array([name in REAL for name in tables["node_signals"]["teacher"].to_pylist()], pa.bool_())
        self.tables = {**tables, "node_signals": tables["node_signals"].filter(real)}
        self.nodes = read_nodes(self.tables)
        self.links = read_links(self.tables, self.nodes.rows)
        shape = self.nodes.probs.shape
        self.index = {row["node_id"]: i for i, row in enumerate(self.nodes.rows)}
        self.success, self.sampled, self.cost = np.zeros(shape), np.zeros(shape, dtype=bool), np.ones(shape)
        self.fold = np.unique([row["question_id"] for row in self.nodes.rows], return_inverse=True)[1] % 10
        self.features = stratum_features(self.tables["rollouts"], self.nodes.rows, self.nodes.probs, self.nodes.is_tail)
        self.starts: list[Start] = []
        self.following = world.next_states()
        self._look_up(world)
        self.signals, self.gradients = np.zeros((2, len(REAL), *shape))
        self.spread, self.norm = np.zeros((2, len(REAL), shape[0]))
        own = self.tables["node_signals"].to_pylist()
        columns = (padded([row[name] for row in own], shape[1]) for name in ("signal", "gradient"))
        for row, signal, gradient in zip(own, *columns, strict=True):
            place = REAL.index(row["teacher"]), self.index[row["node_id"]]
            self.signals[place], self.gradients[place] = signal, gradient
            self.spread[place], self.norm[place] = row["signal_variance"], row["gradient_squared_norm"]

    def _look_up(self, world: World) -> None:
        paths = {(r["question_id"], r["rollout_index"]): r["token_ids"] for r in self.tables["rollouts"].to_pylist()}
        order, steps = self.tables["questions"]["question_id"].to_pylist(), path_steps(self.tables, self.nodes.rows)
        questions = {q: question(world, k) for k, q in enumerate(order)}
        rows: dict[int, list[Any]] = {}
        for row in self.tables["strata"].to_pylist():
            rows.setdefault(self.index[row["node_id"]], []).append(row)
        for i, node in enumerate(self.nodes.rows):
            q, t, tokens = node["question_id"], node["position"], paths[node["question_id"], node["rollout_index"]]
            state = 0
            for position in range(t):
                state = self.following[position, state, tokens[position]]
            own, tail = questions[q].success[t, state], np.exp(questions[q].student[t, state])
            single = np.eye(len(tail))
            tail[[row["token_id"] for row in rows[i] if row["token_id"] >= 0]] = 0.0
            shares = [single[row["token_id"]] if row["token_id"] >= 0 else tail for row in rows[i]]
            self.starts.append(Start(questions[q], t, state, shares, np.array(steps[i], dtype=np.int64)))
            for row in rows[i]:
                k = row["stratum"]
                self.success[i, k] = own[row["token_id"]] if row["token_id"] >= 0 else np.sum(tail * own) / max(tail.sum(), 1e-300)
                self.sampled[i, k] = len(row["forced_token_ids"]) > 0
                self.cost[i, k] = max(len(tokens) - t - 1, 1)

    @property
    def pushed(self) -> np.ndarray:
        """Teacher × node: where a teacher pushes at all and success has a range."""
        differs = np.ptp(np.where(self.nodes.probs > 0, self.success, self.success[:, :1]), axis=1) > 1e-9
        return (self.spread > 1e-9) & differs

    @property
    def certain(self) -> np.ndarray:
        """Per node: every token settles the outcome, so that all continuations of a stratum end alike and no interval can miss."""
        return np.all((self.success < 1e-9) | (self.success > 1 - 1e-9) | (self.nodes.probs == 0), axis=1)

    @property
    def budget(self) -> float:
        """Tokens of (a)."""
        return self.tokens(np.full(self.success.shape, PER_CANDIDATE))

    def tokens(self, counts: np.ndarray) -> float:
        """Of so many continuations."""
        return float(np.sum(counts * self.cost * self.sampled))

    def errors(self, gains: np.ndarray, scores: np.ndarray) -> list[float]:
        """Mean squared errors of estimates, teacher × node."""
        return [_error(gains, self.gains(self.success), self.pushed), _error(scores, self.scores(self.success), self.pushed)]

    def gains(self, success: np.ndarray) -> np.ndarray:
        """Teacher × node: natural gain per unit of the signal's deviation."""
        return np.array([natural_gain(self.nodes.logprobs, f, success) for f in self.signals]) / np.sqrt(np.maximum(self.spread, 1e-12))

    def scores(self, success: np.ndarray) -> np.ndarray:
        """Teacher × node: alignment score; NaN without a range."""
        nodes = self.nodes
        pairs = zip(self.gradients, self.norm, strict=True)
        return np.array([alignment_score(nodes.logprobs, nodes.squared_probs, d, n, success) for d, n in pairs])

    def allocated(self, variance: np.ndarray, budget: float, pilot: int) -> np.ndarray:
        """Greedy counts for the per-node target, so many tokens in all."""
        weights = np.where(self.sampled, target_weights(self.nodes.probs, self.signals, np.sqrt(self.spread)), 0.0)
        first = np.where(self.sampled, pilot, 0)
        left = budget - float(np.sum(first * self.cost))
        flat = [array.ravel() for array in (weights, variance, first, self.cost)]
        return first + allocate_tokens(*flat, left).reshape(first.shape)

    def drawn(self, counts: np.ndarray, source: np.random.Generator, way: "Way") -> tuple[NodeArrays, Evidence]:
        """The nodes with fresh continuations, so many of each stratum."""
        counts = np.where(self.sampled, counts, 0)
        drawn = continue_from(self.starts, self.links, counts, self.following, way.mix, source, way.pairs)
        rows, shape = drawn.rows, counts.shape
        right, links = np.zeros(shape, dtype=np.int64), no_links(len(counts))
        np.add.at(right, (rows.node, rows.stratum), rows.outcome.astype(np.int64))
        if way.back_up:
            staying, staying_right = (
                np.bincount(rows.node[rows.stays], weights, len(counts)).astype(np.int64) for weights in (None, rows.outcome[rows.stays])
            )
            links = replace(self.links, num_staying=staying, num_staying_correct=staying_right)
        verdicts = StratumOutcomes(right, counts, self.nodes.outcomes.terminal)
        foretold = foretold_success(self.features, verdicts, self.fold)
        controlled = control_outcomes(rows, foretold, self.fold) if len(way.mix) else None
        sums = None if controlled is None else controlled.sums
        outcomes = rows.outcome if controlled is None else controlled.outcomes
        coupling = self._coupling(drawn, outcomes, None if sums is None else sums.kept) if way.pairs else None
        return replace(self.nodes, outcomes=verdicts), Evidence(links, coupling, sums)

    def _coupling(self, drawn: Drawn, outcomes: np.ndarray, kept: np.ndarray | None) -> Coupling:
        """Of antithetic pairs."""
        rows = drawn.rows
        arrays = np.full((*self.success.shape, int(drawn.index.max()) + 1), np.nan)
        arrays[rows.node, rows.stratum, drawn.index] = outcomes
        weights = np.ones(self.success.shape)
        return estimate_coupling(list(arrays), list(weights), pairs=True, across=False, kept=kept)


def _plug_in(nodes: NodeArrays) -> np.ndarray:
    """Share of right continuations, as small public scripts take it; exact where a token ends the response."""
    outcomes = nodes.outcomes
    share = outcomes.num_correct / np.maximum(outcomes.num_verified, 1)
    known = np.where(np.isnan(outcomes.terminal), share, outcomes.terminal)
    unseen = (outcomes.num_verified == 0) & np.isnan(outcomes.terminal)
    centre = np.sum(np.where(unseen, 0.0, nodes.probs * known), axis=1) / np.sum(np.where(unseen, 0.0, nodes.probs), axis=1)
    return np.where(unseen, centre[:, None], known)


def _estimates(exact: Exact, drawn: tuple[NodeArrays, Evidence]) -> tuple[np.ndarray, np.ndarray]:
    """Teacher × node: scores, gains per deviation of the signal (each with its interval), as `node_scores` gives them."""
    nodes, evidence = drawn
    return _by_teacher(exact, nodes, evident_posterior(nodes, evidence, _settings(exact)))


def _gain_intervals(exact: Exact, drawn: tuple[NodeArrays, Evidence]) -> np.ndarray:
    """Teacher × node: lower and upper end of the gains alone, as `node_scores` has them, which takes no posterior."""
    nodes, evidence = drawn
    success = evidence.success(nodes.probs, nodes.outcomes)
    noise = interval_variance(nodes.probs, nodes.outcomes, evidence.links, evidence.coupling, evidence.sums)
    gains = np.array([natural_gain(nodes.logprobs, signal, success.mean) for signal in exact.signals])
    variances = [gain_variance(nodes.logprobs, signal, noise, success.correlations) for signal in exact.signals]
    half = float(ndtri(0.5 + exact.config.analysis.confidence / 2)) * np.sqrt(np.array(variances))
    return np.stack([gains - half, gains + half], axis=-1) / np.sqrt(np.maximum(exact.spread, 1e-12))[..., None]


def measured(exact: Exact) -> tuple[np.ndarray, np.ndarray]:
    """The same of the outcomes that the run itself has."""
    return _by_teacher(exact, exact.nodes, node_posterior(exact.tables, exact.nodes, _settings(exact)))


def _settings(exact: Exact) -> Config:
    return load_config({**exact.config.model_dump(mode="json"), "analysis": {"num_draws": 100}})


def _by_teacher(exact: Exact, nodes: NodeArrays, posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(REAL), len(nodes.rows), 3)
    scores, gains = np.full(shape, np.nan), np.full(shape, np.nan)
    for m in measure_nodes(exact.tables, nodes, posterior, _settings(exact)):
        place = REAL.index(m.teacher)
        scores[place, m.index], gains[place, m.index] = m.score, m.natural_gain
    return scores, gains / np.sqrt(np.maximum(exact.spread, 1e-12))[..., None]


def _error(found: np.ndarray, truth: np.ndarray, use: np.ndarray) -> float:
    # an estimate that is undefined says nothing: it counts as zero, the middle of what is possible
    return float(np.mean((np.nan_to_num(found) - truth)[use] ** 2))


def made(name: str, num_questions: int) -> Exact:
    """Nodes as the pipeline draws them."""
    with tempfile.TemporaryDirectory() as folder:
        task = {**TASKS[name], "num_questions": num_questions}
        run = opdscope.diagnose(config(task, target={"kind": "map", "width": 0.4}), run_dir=Path(folder) / "run")
        return Exact(run, WORLDS[name])


_NONE, _ALL = np.zeros((0, len(REAL))), np.eye(len(REAL))
_NOISY = np.array([[float(name in ("weak", "random")) for name in REAL]])


@dataclass(frozen=True)
class Way:
    """What is switched on."""

    name: str
    """In the table."""
    back_up: bool = False
    """Along paths."""
    allocated: bool = True
    """By probabilities and signals, or the same number at every candidate."""
    known: bool = False
    """Allocated with the exact variances."""
    pairs: bool = False
    """Antithetic."""
    mix: np.ndarray = field(default_factory=_NONE.copy)
    """Controls, as mixtures of the teachers' log-ratios: control × teacher."""


BOUND = Way("bound without controls: + exact variances known", back_up=True, known=True)
BACKED_UP = Way("+ backing up along paths", back_up=True)
NOISY = Way("+ control variate and antithetic pairs: the weak teacher with noise", back_up=True, mix=_NOISY, pairs=True)
ALL_ON = Way("+ control variates and antithetic pairs: all six teachers", back_up=True, mix=_ALL, pairs=True)
CHECKED = (BACKED_UP, NOISY, ALL_ON)
WAYS = (
    Way("the same, with posterior and prior", allocated=False),
    Way("+ allocation by probabilities and signals"),
    BACKED_UP,
    BOUND,
    Way("backed up, + antithetic pairs", back_up=True, pairs=True),
    Way("backed up, + control variate: the weak teacher with noise", back_up=True, mix=_NOISY),
    NOISY,
    Way("backed up, + control variates: all six teachers", back_up=True, mix=_ALL),
    ALL_ON,
)


def _counts(exact: Exact, way: Way, part: float) -> np.ndarray:
    """Continuations of each stratum for this part of the tokens of (a)."""
    if not way.allocated:
        return np.where(exact.sampled, max(2, round(PER_CANDIDATE * part)), 0)
    if way.known:
        return exact.allocated(np.maximum(exact.success * (1 - exact.success), 1e-6), part * exact.budget, 1)
    return exact.allocated(np.full(exact.success.shape, 0.25), part * exact.budget, 2)


def _curve(exact: Exact, way: Way, source: np.random.Generator) -> np.ndarray:
    """Tokens, error of gains and error of scores at each budget."""
    found: list[list[float]] = []
    for part in FRACTIONS:
        counts = _counts(exact, way, part)
        scores, gains = _estimates(exact, exact.drawn(counts, source, way))
        found.append([exact.tokens(counts), *exact.errors(gains[..., 0], scores[..., 0])])
    return np.array(found)


def economy(exacts: dict[str, Exact], repetitions: int) -> Section:
    """Each technique on top of the last: how many times fewer tokens reach the error of (a)."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for name, exact in exacts.items():
        uniform, base = np.where(exact.sampled, PER_CANDIDATE, 0), np.zeros(2)
        for k in range(4 * repetitions):
            success = _plug_in(exact.drawn(uniform, generator("economy", "uniform", name, k), Way(""))[0])
            base += np.array(exact.errors(exact.gains(success), exact.scores(success))) / (4 * repetitions)
        numbers = [f"{base[0]:.1e}", "1.0×", f"{base[1]:.1e}", "1.0×"]
        rows.append([name, "(a) the same number at every candidate, plug-in", *numbers])
        found: dict[str, list[str]] = {}
        for way in WAYS:
            curve = np.mean([_curve(exact, way, generator("economy", "nodes", name, k)) for k in range(repetitions)], axis=0)
            found[way.name] = [_ratio(curve[:, 0], curve[:, i + 1], base[i], exact.budget) for i in range(2)]
            rows.append([name, way.name, f"{curve[-1, 1]:.1e}", found[way.name][0], f"{curve[-1, 2]:.1e}", found[way.name][1]])
        for way in CHECKED:
            for what, ratio, bound in zip(("natural gains", "alignment scores"), found[way.name], found[BOUND.name], strict=True):
                met = _times(ratio) >= 5
                # what no allocation can give is not a lack of this one: only what teachers know of outcomes lowers the noise further
                limit = f" ({ratio}; a bound: {bound} with all variances known and no controls)" if not met and _times(bound) < 5 else ""
                checks.append((f"{name}: {what} of nodes with ≥ 5 times fewer tokens than (a), {way.name}{limit}", met))
    text = (
        f"Six teachers; nodes and strata as the pipeline draws them; {repetitions} sets of continuations drawn token by token, at budgets "
        f"from {FRACTIONS[0]:.0%} to 100 % of (a), {PER_CANDIDATE} a candidate. *Error*: mean over nodes with a range and teachers that push "
        "of the squared error of the natural gain (per deviation of the signal) and of the alignment score, at the full budget. *Economy*: how many "
        "times fewer generated tokens reach the error of (a), by interpolation; ≥ where the smallest budget still does. Natural gains are unbiased "
        "and no prior helps them: without controls their economy is what allocation and backing up give. No allocation exceeds the bound: a target "
        "above it is missed by all of them. A score is a ratio, in which a plug-in estimate errs far more than a posterior mean that knows how much "
        "strata differ at all. *Control variates* are the "
        "pipeline's (`targeted.score_continuations`): every continuation is read once more by the student and each informing teacher, which is not "
        "counted here. *All six teachers* is what the pipeline asks of this set of teachers: in the chains good, fair, weak and harmful ones know "
        "which steps are critical, which explains half of an outcome's luck; in the tree they tilt by the exact advantage and foretell an outcome to "
        "the last digit, an upper end and no promise. *The weak teacher with noise* adds to its log-ratio that of the random teacher: in the tree "
        "half of the luck is still explained, in the chains, where noise comes with every token and knowledge with one in six, next to nothing. What "
        "is gained is what the teachers know."
    )
    columns = ["world", "technique", "error of gains", "economy", "error of scores", "economy"]
    return Section(f"Per-node numbers: tokens to equal error ({', '.join(exacts)})", text, columns, rows, checks)


def _times(ratio: str) -> float:
    return float(ratio.strip("≥×"))


def _ratio(tokens: np.ndarray, errors: np.ndarray, wanted: float, budget: float) -> str:
    falling = np.minimum.accumulate(errors)
    if falling[0] <= wanted:
        return f"≥{budget / tokens[0]:.1f}×"
    if falling[-1] > wanted:
        return f"{budget / tokens[-1] * wanted / falling[-1]:.1f}×"
    needed = np.exp(np.interp(-np.log(wanted), -np.log(falling), np.log(tokens)))
    return f"{budget / needed:.1f}×"


def coverage(exacts: dict[str, Exact], repetitions: int) -> Section:
    """Intervals of per-node numbers with every technique on."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for name, exact in exacts.items():
        gains_truth, use = exact.gains(exact.success), exact.pushed & ~exact.certain
        for way in CHECKED if name != "tree" else (BACKED_UP, NOISY):
            for part in (0.1, 0.3, 1.0):
                counts = _counts(exact, way, part)
                held: list[float] = []
                for k in range(repetitions):
                    drawn = exact.drawn(counts, generator("economy", "coverage", name, part.hex(), k), way)
                    low, high = np.moveaxis(_gain_intervals(exact, drawn), -1, 0)
                    held.append(float(np.mean(((low <= gains_truth) & (gains_truth <= high))[use])))
                # the intervals of one set of outcomes share it: the error comes from how the sets differ
                error = 4 * np.std(held, ddof=1) / np.sqrt(repetitions)
                rows.append([name, way.name, f"{part:.0%}", f"{int(use.sum()):,}", f"{np.mean(held):.1%}", f"± {error:.1%}"])
                checks.append((f"{name}, {part:.0%} of the tokens, {way.name}: 88–92 %", bool(0.88 <= np.mean(held) <= 0.92)))
    text = (
        f"90 % intervals of each node's natural gain, allocation and backing up on, with and without the rest, {repetitions} sets of continuations a "
        "budget; tokens as a share of (a). Nodes at which every token settles the outcome are left out: an interval cannot miss there. Where a "
        "teacher foretells every outcome to the last digit (all six in the tree) hardly any noise is left to have an interval for: left out. The "
        "last column is four Monte Carlo errors."
    )
    return Section(
        f"Per-node numbers: coverage with everything on ({', '.join(exacts)})",
        text,
        ["world", "technique", "tokens", "intervals a set", "coverage", "error"],
        rows,
        checks,
    )
