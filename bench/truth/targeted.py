"""Targeted rollouts on paths of the exact world: coverage and bias of per-node and pooled numbers.

Nodes are drawn, split into strata and given continuations by the functions that the pipeline calls; the outcome of a continuation is drawn from the
stratum's exact success, which is its law. Numbers and intervals are the summary's own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from page import Section, band, fixed
from two_values import chance_of_more, find_odd, held_and_open

from opdscope.config import Config, TargetedConfig
from opdscope.core.alignment import alignment_score, gain, ideal_squared_norm, natural_alignment, natural_gain, teacher_advantage
from opdscope.core.divergences import signal_of
from opdscope.core.gradients import distillation_gradient
from opdscope.core.randomness import generator
from opdscope.core.sampling import (
    allocate_continuations,
    choose_candidates,
    importance_per_cost,
    inclusion_probabilities,
    node_importance,
    systematic_sample,
)
from opdscope.core.screening import StudentRows, compare_rows
from opdscope.core.success import StratumOutcomes
from opdscope.models.exact import ReasoningWorld, TreeWorld, World
from opdscope.models.exact.world import normalised
from opdscope.pipeline.strata import stratum_signals
from opdscope.summary.measures import NodeMeasures, measure_nodes
from opdscope.summary.nodes import NodeArrays, Posterior, node_posterior
from opdscope.summary.teachers import summarize_targeted

TEACHERS = ("good, noisy", "harmful, noisy", "random", "sharpened")
OBJECTIVE = "reverse_kl"
WIDTH = 8
NUM_ROLLOUTS = 16
QUESTIONS_A_RUN = 10
BUDGETS = {"small": (12, 16), "medium": (24, 32), "large": (48, 128)}
"""Questions and continuations a node of each."""

POOLED_PATHS = 108
"""Measured paths of either outcome and question that pooled numbers are drawn from: what all of them together miss the truth by is the same in
every repetition, and moves the coverage with it."""

PER_NODE = ("score", "natural_alignment", "gain", "natural_gain", "advantage")
POOLED = ("natural_gain", "gain", "advantage", "mean_score", "pooled_alignment")


def make_config() -> Config:
    """The default targeted protocol on the exact world."""
    return Config.model_validate(
        {
            "student": {"model_name_or_path": "exact:itself"},
            "teachers": [{"name": "good", "teacher_model_name_or_path": "exact:good"}],
            "task": {"kind": "exact"},
            "objectives": [OBJECTIVE],
            "targeted": {"paths_per_outcome": 1, "nodes_per_path": 4},
            # outcomes are drawn per stratum, without the tokens that would tell which continuations arrive at the next node
            "analysis": {"back_up": False},
        }
    )


def teacher_logprobs(world: World, name: str, question: int) -> np.ndarray:
    """A teacher of the world; a noisy one has the random teacher's noise on top of what it knows.

    Without noise the cosine of a good teacher is exactly 1 wherever it pushes, which no interval made of draws can hold.
    """
    known, _, noisy = name.partition(", ")
    if not noisy:
        return world.teacher(known, question)
    return normalised(world.teacher(known, question) + world.teacher("random", question) - world.student(question))


@dataclass(frozen=True)
class Truth:
    """Exact per-node numbers, position × state, by teacher, with occupancy given the path's outcome."""

    values: dict[str, dict[str, np.ndarray]]
    occupancy: dict[str, np.ndarray]
    success_rate: float


Paths = Callable[[World, np.ndarray, np.random.Generator], Iterator[tuple[np.ndarray, bool]]]
"""Rollouts of a question: the states that each passes through, and whether it is correct."""


@dataclass(frozen=True)
class Bank:
    """Measured paths; a repetition draws from them."""

    nodes: NodeArrays
    posterior: Posterior
    measures: dict[str, NodeMeasures]
    truths: list[Truth]
    paths: list[dict[bool, list[list[int]]]]
    """By question and outcome: the nodes of each path. Questions of the chains have equally many of either outcome."""
    places: list[tuple[int, int, int]]
    """Question, position and state of every node."""
    success: np.ndarray
    """Exact success of every stratum, node × stratum."""


def coverage(budget: str, num_questions: int, repetitions: int) -> list[Section]:
    """Per-node intervals in both worlds and pooled ones in that of reasoning chains, at one budget."""
    config = make_config()
    questions, continuations = BUDGETS[budget]
    # as in screening, questions that no constant of the package was chosen on
    bank = make_bank(ReasoningWorld(seed=1), config, num_questions, continuations, partial(_balanced, 30))
    tree = make_bank(TreeWorld(seed=1), config, num_questions, continuations, partial(_as_drawn, 16))
    node_rows: list[list[Any]] = []
    node_checks: list[tuple[str, bool]] = []
    for world, own in (("chains", bank), ("tree", tree)):
        rows, checks = _per_node(own, world, budget, continuations)
        node_rows += rows
        node_checks += checks
    few_draws = config.model_copy(update={"analysis": config.analysis.model_copy(update={"num_draws": 100})})
    many = make_bank(ReasoningWorld(seed=1), few_draws, num_questions, continuations, partial(_balanced, POOLED_PATHS))
    pooled_rows, pooled_checks = _pooled(many, config, budget, questions, continuations, repetitions)
    text = (
        f"Nodes as the pipeline draws them by freedom, push and cost, {QUESTIONS_A_RUN} questions a run, one interval each; {band(4000)} "
        "The questions are none that a setting of the prior was compared on. "
        f"Teachers: {', '.join(TEACHERS)}; "
        "lowest and highest over them. Intervals of the score and the natural alignment rest on an empirical-Bayes prior, and cover on average "
        "over nodes. "
        "*Undefined*: nodes where success has no range, so that there is no cosine; they are not counted. Nodes whose every token ends the response "
        "are known without sampling, and are counted nowhere. *Width*: mean over nodes and teachers."
    )
    columns = [
        "world",
        "budget",
        "continuations a node",
        "90 % interval of",
        "nodes",
        "undefined",
        "coverage",
        "lowest",
        "highest",
        "width",
    ]
    per_node = Section("Targeted rollouts: intervals of single nodes", text, columns, node_rows, node_checks)
    text = (
        f"{repetitions:,} repetitions a budget; {NUM_ROLLOUTS} rollouts a question, one correct and one incorrect path, 4 nodes each, drawn from "
        f"{POOLED_PATHS} measured paths of either outcome on each of {num_questions} questions. *Correct* "
        "and *incorrect*: paths of that outcome only. The truth is dynamic programming's over the full vocabulary. The last column is the bias "
        "in Monte Carlo errors, for the teacher where it is largest; in brackets the bias itself. The *mean score* is a mean of posterior means, "
        "which noise shrinks at every node alike: its bias is shown, no budget here takes it out, and its interval is a bound that has to hold "
        "at least as often as it says."
    )
    columns = [
        "budget",
        "questions",
        "continuations a node",
        "90 % interval of",
        "paths",
        "coverage",
        "lowest",
        "highest",
        "bias / its error",
    ]
    pooled = Section("Targeted rollouts: pooled over questions", text, columns, pooled_rows, pooled_checks)
    return [per_node, _two_values(bank, budget, continuations), pooled]


def _per_node(bank: Bank, world: str, budget: str, continuations: int) -> tuple[list[list[Any]], list[tuple[str, bool]]]:
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for name in PER_NODE:
        shares: list[float] = []
        counts: list[tuple[int, int]] = []
        widths: list[float] = []
        for teacher, measures in bank.measures.items():
            exact = np.array([bank.truths[q].values[teacher][name][t, s] for q, t, s in bank.places])
            _, low, high = getattr(measures, name).T
            sampled = ~np.isnan(low) & (high - low > 1e-9)
            use = sampled & ~np.isnan(exact)
            shares.append(float(np.mean((low[use] <= exact[use]) & (exact[use] <= high[use]))))
            counts.append((int(use.sum()), int(np.sum(sampled & np.isnan(exact)))))
            widths.append(float(np.mean((high - low)[use])))
        label, (least, undefined) = name.replace("_", " "), min(counts)
        cells = [f"{least:,}", f"{undefined:,}", *_shares(np.array(shares)), fixed(float(np.mean(widths)), 3)]
        rows.append([world, budget, continuations, label, *cells])
        checks.append((f"{label} of a node, {world}, {budget}: coverage within 88–92 %", min(shares) >= 0.88 and max(shares) <= 0.92))
    return rows, checks


def _two_values(bank: Bank, budget: str, continuations: int) -> Section:
    """Intervals of the score at nodes of the chains where only its sign is open, beside those of an exact posterior."""
    odd = find_odd(bank.success, bank.nodes.probs, bank.nodes.is_tail)
    more = odd.own > odd.common
    chance = chance_of_more(odd, bank.nodes.outcomes, np.array([question for question, _, _ in bank.places]))
    held, reaches = held_and_open(chance, more, 0.9)
    shares: list[float] = []
    widths: list[float] = []
    exact_widths: list[float] = []
    for teacher, measures in bank.measures.items():
        exact = np.array([bank.truths[q].values[teacher]["score"][t, s] for q, t, s in bank.places])[odd.index]
        _, low, high = measures.score[odd.index].T
        shares.append(float(np.mean((low <= exact) & (exact <= high))))
        widths.append(float(np.mean(high - low)))
        exact_widths.append(float(np.mean(2.0 * np.abs(exact) * reaches)))
    cells = [f"{np.mean(~reaches):.1%}", f"{np.mean(held):.1%}", fixed(float(np.mean(exact_widths)), 3)]
    row = [budget, continuations, f"{len(more):,}", *cells, *_shares(np.array(shares)), fixed(float(np.mean(widths)), 3)]
    text = (
        "Nodes of the chains at which all strata but one candidate succeed equally often: a teacher's score is then c or -c, whatever the "
        "difference. *Exact*: the posterior that knows which candidate it is and how success is distributed over such nodes of all other "
        "questions, though not the teacher. The shortest interval that holds 90 % of it is one point where one sign has that chance (*decided*); "
        "else it holds both values, and with them the truth. So a correct posterior covers more than it says here, and ours are right if they "
        "cover at least as often as asked for and no more often than the exact one. Its width says what is left to gain."
    )
    columns = ["budget", "continuations a node", "nodes", "decided", "exact: coverage", "exact: width"]
    label = f"score with two values, {budget}: coverage from 88 % to that of the exact posterior"
    checks = [(label, bool(min(shares) >= 0.88 and max(shares) <= held.mean()))]
    return Section("Scores with two values", text, [*columns, "coverage", "lowest", "highest", "width"], [row], checks)


def _pooled(
    bank: Bank, config: Config, budget: str, num_questions: int, continuations: int, repetitions: int
) -> tuple[list[list[Any]], list[tuple[str, bool]]]:
    source = generator("truth", "targeted", budget)
    wanted = [(teacher, "all") for teacher in TEACHERS] + [
        ("good, noisy", "correct"),
        ("good, noisy", "incorrect"),
        ("sharpened", "correct"),
        ("sharpened", "incorrect"),
    ]
    truths = {key: _pooled_truth(bank, *key) for key in wanted}
    held: dict[tuple[str, str], list[list[bool]]] = {key: [] for key in wanted}
    errors: dict[tuple[str, str], list[list[float]]] = {key: [] for key in wanted}
    for _ in range(repetitions):
        nodes, index = _draw(bank, num_questions, source)
        known = bank.posterior
        posterior = _without_draws([known], index)
        for teacher, paths in wanted:
            found = summarize_targeted(_select([bank.measures[teacher]], index), np.zeros(len(index)), nodes, posterior, paths, config)
            estimates = [getattr(found, name) for name in POOLED]
            exact = truths[teacher, paths]
            held[teacher, paths].append(
                [bool(e.low <= t <= e.high) if np.isfinite(e.low) else False for e, t in zip(estimates, exact, strict=True)]
            )
            errors[teacher, paths].append([e.value - t for e, t in zip(estimates, exact, strict=True)])
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for k, name in enumerate(POOLED):
        for paths in ("all", "correct", "incorrect"):
            own = [key for key in wanted if key[1] == paths]
            shares = np.array([np.mean([h[k] for h in held[key]]) for key in own])
            deviations = [np.array([e[k] for e in errors[key]]) for key in own]
            bias = np.array([np.nanmean(d) for d in deviations])
            # the bank holds so many measured paths; what it misses the truth by is no bias of the estimator
            size = sum(len(same) for question in bank.paths for same in question.values())
            error = np.array([np.nanstd(d) for d in deviations]) * np.sqrt(1 / repetitions + 2 * num_questions / size)
            worst = int(np.argmax(np.abs(bias) / error))
            ratio = abs(float(bias[worst] / error[worst]))
            cell = f"{fixed(ratio)} ({fixed(float(bias[worst]), 4)}, {own[worst][0]})"
            rows.append([budget, num_questions, continuations, name.replace("_", " "), paths, *_shares(shares), cell])
            label = f"{name.replace('_', ' ')}, {paths} paths, {budget}"
            if name == "mean_score":
                checks.append((f"{label}: the bound holds in ≥ 90 %", bool(shares.min() >= 0.9)))
                continue
            checks.append((f"{label}: coverage within 88–92 %", bool(shares.min() >= 0.88 and shares.max() <= 0.92)))
            checks.append((f"{label}: bias within 4 Monte Carlo errors", ratio < 4))
    return rows, checks


def _shares(shares: np.ndarray) -> list[str]:
    return [f"{shares.mean():.1%}", f"{shares.min():.1%}", f"{shares.max():.1%}"]


def _draw(bank: Bank, num_questions: int, source: np.random.Generator) -> tuple[NodeArrays, np.ndarray]:
    """Questions with replacement, the outcomes of their rollouts as the student's success has them, and of each outcome one path."""
    rows: list[dict[str, Any]] = []
    index: list[int] = []
    for cluster, question in enumerate(source.integers(len(bank.paths), size=num_questions).tolist()):
        num_correct = int(source.binomial(NUM_ROLLOUTS, bank.truths[question].success_rate))
        for outcome, count in ((True, num_correct), (False, NUM_ROLLOUTS - num_correct)):
            if count == 0:
                continue
            same = bank.paths[question][outcome]
            members = same[int(source.integers(len(same)))]
            index += members
            rows += [{**bank.nodes.rows[i], "question_id": str(cluster), "path_inclusion": 1 / count} for i in members]
    chosen = np.array(index)
    outcomes = bank.nodes.outcomes
    subset = outcomes.at(chosen)
    return NodeArrays(rows, bank.nodes.probs[chosen], bank.nodes.squared_probs[chosen], bank.nodes.is_tail[chosen], subset), chosen


def _select(parts: list[NodeMeasures], index: np.ndarray) -> NodeMeasures:
    """A teacher's measures, which follow one another, at some of their nodes; every node of the bank has every teacher."""
    names = (*PER_NODE, "gradient_squared_norm", "reverse_kl", "tail_prob")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts])[index] for name in names}
    return NodeMeasures(parts[0].teacher, parts[0].objective, np.arange(len(index)), **arrays)


def _pooled_truth(bank: Bank, teacher: str, paths: str) -> list[float]:
    """What the pooled numbers estimate; a question counts as often as it has a path of the class."""
    sums = []
    for truth in bank.truths:
        v, occupancy = truth.values[teacher], truth.occupancy[paths]
        rate = {"all": 1.0, "correct": 1 - (1 - truth.success_rate) ** NUM_ROLLOUTS, "incorrect": 1 - truth.success_rate**NUM_ROLLOUTS}[
            paths
        ]
        # where success has no range a cosine counts as zero
        defined = v["gradient_squared_norm"] > 0
        columns = [
            v["natural_gain"],
            v["gain"],
            v["advantage"],
            np.nan_to_num(v["score"]),
            v["ideal_squared_norm"],
            v["gradient_squared_norm"],
            defined,
            1.0,
        ]
        sums.append([rate, *(rate * np.sum(occupancy * column) for column in columns)])
    weight, natural, euclidean, advantage, score, ideal, push, defined, positions = np.sum(sums, axis=0)
    return [natural / weight, euclidean / weight, advantage / positions, score / defined, euclidean / np.sqrt(ideal * push)]


def make_bank(world: World, config: Config, num_questions: int, continuations: int, paths: Paths) -> Bank:
    """Draw paths, nodes and outcomes, and measure every teacher at every node."""
    settings = config.targeted
    rows: list[dict[str, Any]] = []
    strata: list[dict[str, np.ndarray]] = []
    signals: list[dict[str, Any]] = []
    kept: list[dict[bool, list[list[int]]]] = []
    places: list[tuple[int, int, int]] = []
    truths: list[Truth] = []
    for question in range(num_questions):
        source = generator("truth", "bank", question, continuations)
        student = world.student(question)
        teachers = {name: teacher_logprobs(world, name, question) for name in TEACHERS}
        truths.append(_truth(world, question, teachers))
        importance = _importance(student, teachers)
        success = world.success(question)
        measured: dict[tuple[int, int], tuple[dict[str, np.ndarray], list[dict[str, Any]]]] = {}
        kept.append({True: [], False: []})
        for rollout, (states, correct) in enumerate(paths(world, student, source)):
            inclusion = inclusion_probabilities(importance[np.arange(len(states)), states], settings.nodes_per_path, settings.uniform_share)
            kept[-1][correct].append([])
            for position in systematic_sample(inclusion, float(source.random())).tolist():
                place = (position, int(states[position]))
                if place not in measured:
                    measured[place] = _stratify(
                        student[place], success[place], {n: t[place] for n, t in teachers.items()}, settings, continuations
                    )
                book, templates = measured[place]
                node_id = f"{question}/{rollout}/{position}"
                kept[-1][correct][-1].append(len(rows))
                places.append((question, *place))
                rows.append(_row(node_id, question, rollout, position, correct, float(inclusion[position])))
                strata.append({**book, "num_correct": source.binomial(book["num_verified"], book["success"])})
                signals += [{"node_id": node_id, **template} for template in templates]
    stacked = {name: np.array([s[name] for s in strata]) for name in strata[0]}
    outcomes = StratumOutcomes(stacked["num_correct"], stacked["num_verified"], stacked["terminal"])
    nodes = NodeArrays(rows, stacked["probs"], stacked["squared"], stacked["is_tail"], outcomes)
    posterior, measures = _measured(nodes, signals, np.array([question for question, _, _ in places]), config)
    return Bank(nodes, posterior, measures, truths, kept, places, stacked["success"])


def _measured(
    nodes: NodeArrays, signals: list[dict[str, Any]], questions: np.ndarray, config: Config
) -> tuple[Posterior, dict[str, NodeMeasures]]:
    """The summary's numbers at all nodes, ten questions at a time, as if each ten were a run."""
    posteriors: list[Posterior] = []
    found: dict[str, list[NodeMeasures]] = {name: [] for name in TEACHERS}
    for batch in np.split(np.arange(len(questions)), np.flatnonzero(np.diff(questions // QUESTIONS_A_RUN)) + 1):
        own = NodeArrays(
            [nodes.rows[i] for i in batch],
            nodes.probs[batch],
            nodes.squared_probs[batch],
            nodes.is_tail[batch],
            nodes.outcomes.at(batch),
        )
        templates = signals[batch[0] * len(TEACHERS) : (batch[-1] + 1) * len(TEACHERS)]
        posterior = node_posterior({}, own, config)
        for measures in measure_nodes({"node_signals": pa.Table.from_pylist(templates)}, own, posterior, config):
            found[measures.teacher].append(measures)
        posteriors.append(_without_draws([posterior], np.arange(len(batch))))
    everything = np.arange(len(questions))
    return _without_draws(posteriors, everything), {name: _select(parts, everything) for name, parts in found.items()}


def _without_draws(parts: list[Posterior], index: np.ndarray) -> Posterior:
    """What an average over nodes needs of posteriors that follow one another, at some of their nodes."""
    names = ("mean", "variance", "ideal_squared_norm", "differs")
    mean, variance, ideal, differs = (np.concatenate([getattr(part, name) for part in parts])[index] for name in names)
    nothing = np.empty((0, 0))
    return Posterior(mean, variance, np.empty((0, 0, 0)), ideal, differs, StratumOutcomes(nothing, nothing, nothing))


def _row(node_id: str, question: int, rollout: int, position: int, correct: bool, inclusion: float) -> dict[str, Any]:
    outcome = "correct" if correct else "incorrect"
    return {
        "node_id": node_id,
        "question_id": str(question),
        "rollout_index": rollout,
        "position": position,
        "path_outcome": outcome,
        "path_inclusion": 1.0,
        "inclusion": inclusion,
    }


def _as_drawn(count: int, world: World, student: np.ndarray, source: np.random.Generator) -> Iterator[tuple[np.ndarray, bool]]:
    """So many rollouts."""
    for _ in range(count):
        yield _roll_out(world, student, source)


def _balanced(count: int, world: World, student: np.ndarray, source: np.random.Generator) -> Iterator[tuple[np.ndarray, bool]]:
    """Rollouts until there are so many of each outcome, those beyond it left out: the rarer outcome is not to rest on a few paths."""
    missing = {True: count, False: count}
    while any(missing.values()):
        states, correct = _roll_out(world, student, source)
        if missing[correct]:
            missing[correct] -= 1
            yield states, correct


def _roll_out(world: World, student: np.ndarray, source: np.random.Generator) -> tuple[np.ndarray, bool]:
    following, states, state, token = world.next_states(), [], 0, 0
    for position, number in enumerate(source.random(len(student)).tolist()):
        states.append(state)
        token = min(int(np.searchsorted(np.cumsum(np.exp(student[position, state])), number)), student.shape[-1] - 1)
        state = int(following[position, state, token])
    return np.array(states), token == 0


def _importance(student: np.ndarray, teachers: dict[str, np.ndarray]) -> np.ndarray:
    shape = student.shape[:2]
    rows = StudentRows.of(student.reshape(-1, student.shape[-1]))
    push = np.array([compare_rows(rows, t.reshape(-1, student.shape[-1])).reverse_kl for t in teachers.values()])
    left = np.repeat(np.maximum(shape[0] - np.arange(shape[0]) - 1.0, 1.0), shape[1])
    return importance_per_cost(node_importance(rows.collision, push), left).reshape(shape)


def _stratify(
    student: np.ndarray, success: np.ndarray, teachers: dict[str, np.ndarray], settings: TargetedConfig, continuations: int
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Strata as the pipeline makes them, with their exact success, and every teacher's signals."""
    probs = np.exp(student)
    candidates = choose_candidates(probs, np.exp(np.array(list(teachers.values()))), settings.max_candidates, settings.min_candidate_prob)
    tokens = candidates.token_ids
    tail = probs.copy()
    tail[tokens] = 0.0
    mass = float(tail.sum())
    ends = tokens < 2
    sampled = np.append(~ends, mass >= settings.min_tail_prob)
    share = np.append(candidates.share, max(1.0 - float(candidates.share.sum()), 0.0))
    counts = allocate_continuations(share, continuations, settings.min_continuations, sampled)
    columns = {
        "probs": np.append(probs[tokens], mass),
        "squared": np.append(probs[tokens] ** 2, np.sum(tail**2)),
        "is_tail": np.append(np.zeros(len(tokens), dtype=bool), True),
        "num_verified": counts,
        "success": np.append(success[tokens], np.sum(tail * success) / mass if mass > 0 else 0.0),
        "terminal": np.append(np.where(ends, success[tokens], np.nan), np.nan),
    }
    padding = {"terminal": np.nan}
    book = {name: np.pad(values, (0, WIDTH - len(values)), constant_values=padding.get(name, 0)) for name, values in columns.items()}
    templates = [
        {"teacher": name, "objective": OBJECTIVE, **stratum_signals(student, rows, OBJECTIVE, tokens, tail)}
        for name, rows in teachers.items()
    ]
    return book, templates


def _truth(world: World, question: int, teachers: dict[str, np.ndarray]) -> Truth:
    student, success = world.student(question), world.success(question)
    probs = np.exp(student)
    value = np.sum(probs * success, axis=-1)
    occupancy = world.occupancy(question)
    rate = world.success_rate(question)
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, rows in teachers.items():
        signal, gradient = signal_of(OBJECTIVE)(student, rows), distillation_gradient(student, rows, OBJECTIVE)
        centred = signal - np.sum(probs * signal, axis=-1, keepdims=True)
        push = np.sum(gradient**2, axis=-1)
        values[name] = {
            "score": alignment_score(student, probs**2, gradient, push, success),
            "natural_alignment": natural_alignment(student, signal, np.sum(probs * centred**2, axis=-1), success),
            "gain": gain(student, gradient, success),
            "natural_gain": natural_gain(student, signal, success),
            "advantage": teacher_advantage(student, np.exp(rows), success),
            "ideal_squared_norm": ideal_squared_norm(student, probs**2, success),
            "gradient_squared_norm": push,
        }
    # the share of correct responses among those that pass through a node is the node's value
    by_outcome = {"all": occupancy, "correct": occupancy * value / rate, "incorrect": occupancy * (1 - value) / (1 - rate)}
    return Truth(values, by_outcome, rate)
