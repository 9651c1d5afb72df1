"""Ranking six teachers: whether looks that may stop keep their promise, and tokens to equal reliability under each protocol."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from page import Section
from scipy import stats
from worlds import REAL, TASKS, WORLDS, Population, population

import opdscope
from opdscope.config import Config, load_config
from opdscope.core.aggregation import simultaneous_quantile
from opdscope.core.randomness import generator
from opdscope.core.stopping import look_sizes, spending_widths
from opdscope.store import Run
from opdscope.summary.controls import corrections
from opdscope.summary.looks import OrderState, order_columns, order_state

QUESTIONS, MOST, LOOKS, TOP = 40, 128, 5, 3
FAR = 0.05
"""Teachers nearer than this, in natural gain, are ties."""

SIZES = look_sizes(MOST, LOOKS)

_FEW = 4
"""Questions whose exact gains show what differences between questions leave of an order."""


def config(task: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Six teachers of known quality; names apart from the nulls'."""
    return {
        "student": {"model_name_or_path": "exact:itself"},
        "teachers": [{"name": name, "teacher_model_name_or_path": f"exact:{name}"} for name in REAL],
        "task": task,
        "objectives": ["reverse_kl"],
        "rollouts": {"num_demonstrations": 0, "max_completion_length": 64},
        **sections,
    }


@functools.cache
def populations(name: str) -> dict[str, Population]:
    """Of a world, by its name."""
    return {name: population(WORLDS[name], 150, 2 * MOST)}


def stopping(world: str, repetitions: int) -> Section:
    """Each rule on the same experiments: how often it is wrong, and what it spends."""
    settings = load_config(config(TASKS["chains"], target={"kind": "rank", "top": TOP}))
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for name, own in populations(world).items():
        truth = order_columns(own.truth(), REAL, settings).mean(axis=0)
        source = generator("economy", "stopping", name)
        found = [_experiment(own, truth, settings, source) for _ in range(repetitions)]
        for rule in found[0]:
            results = np.array([one[rule] for one in found], dtype=np.float64)
            wrong, settled, rollouts, joint, single = np.nanmean(results, axis=0)
            cells = [f"{wrong:.1%}", f"{settled:.0%}", f"{rollouts * QUESTIONS * own.length:,.0f}", f"{joint:.1%}", f"{single:.1%}"]
            rows.append([name, rule, *cells])
            if rule.startswith("`rank`"):
                error = 4 * np.sqrt(0.09 / repetitions)
                checks.append((f"{name}: `rank` decides wrongly in ≤ 10 % of runs", bool(wrong <= 0.1)))
                checks.append(
                    (f"{name}: all intervals of all looks hold together in 90 % of runs (± {error:.1%})", abs(joint - 0.9) <= error)
                )
    text = (
        f"{repetitions} experiments of {QUESTIONS} questions a world; up to {LOOKS} looks of {', '.join(map(str, SIZES))} rollouts a question; the "
        f"order of the first {TOP} of six teachers against each other, all others and their nulls, at 90 %. *Wrong*: some decision on which the "
        "order rests contradicts the exact gains, a claimed tie included. *Joint*: all 21 intervals of all looks hold (of the only look where there "
        "is one). *Single*: ordinary 90 % intervals of one teacher's gain over null, at the look where the run stopped, mean over teachers."
    )
    return Section(
        f"Stopping when the order is settled ({world})",
        text,
        ["world", "rule", "wrong", "settled", "tokens", "joint", "single"],
        rows,
        checks,
    )


def _experiment(own: Population, truth: np.ndarray, settings: Config, source: np.random.Generator) -> dict[str, list[float]]:
    chosen = source.integers(len(own.outcomes), size=QUESTIONS)
    order = source.permuted(np.tile(np.arange(own.outcomes.shape[1]), (QUESTIONS, 1)), axis=1)
    looks = [order_columns(own.screening(chosen, order, 0, size), REAL, settings) for size in SIZES]
    level = settings.analysis.confidence
    alone = np.array([simultaneous_quantile(values, level, source, 2000) for values in looks])
    bonferroni = np.array([simultaneous_quantile(values, 1 - (1 - level) / LOOKS, source, 4000) for values in looks])
    spent = spending_widths(looks, LOOKS, level, source, 4000)
    last = [np.inf] * (LOOKS - 1) + [alone[-1]]
    rules = {
        f"all {MOST} rollouts, one look": np.array(last),
        "stop at the first look that seems clear (peeking)": alone,
        "Bonferroni over the looks": bonferroni,
        "`rank`: error spent over the looks": spent,
    }
    return {rule: _outcome(looks, widths, truth, settings) for rule, widths in rules.items()}


def _outcome(looks: list[np.ndarray], widths: np.ndarray, truth: np.ndarray, settings: Config) -> list[float]:
    """Wrong, settled, rollouts, joint coverage, coverage of single intervals at the stop."""
    errors = [values.std(axis=0, ddof=1) / np.sqrt(len(values)) for values in looks]
    joint = all(bool(np.all(np.abs(v.mean(axis=0) - truth) <= w * e + 1e-12)) for v, w, e in zip(looks, widths, errors, strict=True))
    states = [order_state(values, float(width), len(REAL), settings) for values, width in zip(looks, widths, strict=True)]
    done = [bool(np.all(state.decided[state.needed])) and bool(np.isfinite(width)) for state, width in zip(states, widths, strict=True)]
    stop = done.index(True) if any(done) else len(looks) - 1
    half = stats.t.ppf(0.5 + settings.analysis.confidence / 2, QUESTIONS - 1) * errors[stop][: len(REAL)]
    single = float(np.mean(np.abs(looks[stop].mean(axis=0) - truth)[: len(REAL)] <= half))
    return [_wrong(looks[stop].mean(axis=0), truth, states[stop], settings), any(done), SIZES[stop], joint, single]


def _wrong(means: np.ndarray, truth: np.ndarray, state: OrderState, settings: Config) -> float:
    """Of the decisions that stand on needed columns: a sign that is not the truth's, where the truth makes a difference."""
    columns = [i for i in state.needed if state.decided[i]]
    smallest = settings.analysis.smallest_gain
    tie = np.abs(means[columns]) <= smallest  # may have been decided as a tie: then the truth has to lie within what makes no difference
    opposite = np.sign(means[columns]) != np.sign(truth[columns])
    return float(np.any(np.where(tie, np.abs(truth[columns]) > smallest, opposite & (np.abs(truth[columns]) > 1e-9))))


def reliability(world: str, num_questions: int, repetitions: int) -> Section:
    """Chance that all pairs of six teachers that are no ties are in order, and the tokens of each way to have it."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    floors: list[str] = []
    for name, own in populations(world).items():
        truth = own.exact[:, : len(REAL)].mean(axis=0)
        curves = _screening_curves(own, truth, repetitions)
        few = generator("economy", "few", name).integers(len(own.exact), size=(2000, _FEW))
        floors.append(f"{_in_order(own.exact[:, : len(REAL)][few].mean(axis=1), truth):.0%}")
        for way, (values, tokens) in _protocols(name, num_questions).items():
            source = generator("economy", "reliability", name, way)
            picks = source.integers(len(values), size=(repetitions, num_questions))
            share = _in_order(np.nanmean(values[picks], axis=1), truth)
            needed = [_needed(found, share) for found in curves]
            cells = [
                cell
                for cost in needed
                for cell in ("—" if cost is None else f"{cost:,}", "—" if cost is None else f"{tokens / cost:,.0f}×")
            ]
            rows.append([name, way, f"{tokens:,}", f"{share:.0%}", *cells])
            if way.startswith("paper"):
                best = min((cost for cost in needed if cost is not None), default=None)
                checks.append(
                    (f"{name}: ≥ 100 times fewer tokens than {way}, at its reliability", best is not None and tokens >= 100 * best)
                )
        costs = [_needed(found, 0.95) for found in curves]
        rows.append([name, "(screening, for 95 %)", "", "95%", *(cell for cost in costs for cell in (f"{cost:,}" if cost else "—", ""))])
    text = (
        f"{num_questions} questions under each protocol, run once by the pipeline; its per-question numbers are drawn with replacement, "
        f"{repetitions:,} times. *In order*: all pairs of the six teachers whose exact natural gains differ by at least {FAR:g} have the right sign. "
        "*Screening*: the fewest tokens of ordinary rollouts, over numbers of questions and of rollouts a question, that put "
        "them in order as often; by natural gains, without and with control variates, and by teacher advantages (natural gains of forward KL) with "
        "them, which is the paper's other number. The paper's mean cosine does not see how hard a teacher pushes: that good, fair and weak teachers "
        f"push in one direction is all that it says. Differences between questions are no floor: exact gains of {_FEW} questions put the teachers in "
        f"order in {' and '.join(floors)} of draws. What costs is the luck of responses, times a push at every token: in the chains nearly all wrong "
        "orders are those of the stylistic teacher, which pushes hard where nothing is at stake. The paper looks only at the few nodes where a "
        "teacher pushes hardest, many times: biased for a gain, and enough for this order. Its share rests on one run, whose luck is not drawn again."
    )
    columns = [
        "world",
        "judged by",
        "tokens",
        "in order",
        "screening",
        "economy",
        "with control variates",
        "economy",
        "by advantage",
        "economy",
    ]
    return Section(f"Ranking six teachers: tokens to equal reliability ({world})", text, columns, rows, checks)


Curve = list[tuple[int, float]]
"""Tokens and reliability of every budget."""


def _needed(curve: Curve, share: float) -> int | None:
    """Fewest tokens that put the teachers in order as often."""
    return min((cost for cost, reached in curve if reached >= share), default=None)


def _screening_curves(own: Population, truth: np.ndarray, repetitions: int) -> tuple[Curve, Curve, Curve]:
    """By natural gains, without and with control variates, and by advantages with them."""
    found: tuple[Curve, Curve, Curve] = [], [], []
    for questions in (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 384):
        for rollouts in (4, 8, 16):
            source = generator("economy", "curve", questions, rollouts)
            gains = np.empty((3, repetitions, len(REAL)))
            for k in range(repetitions):
                chosen = source.integers(len(own.outcomes), size=questions)
                index = source.integers(own.outcomes.shape[1], size=(questions, rollouts))
                right = np.take_along_axis(own.outcomes[chosen], index, axis=1)
                gains[:2, k] = _screened(right, own.pushes[:, : len(REAL)], own.products, chosen, index)
                gains[2, k] = _screened(right, own.forward_pushes, own.forward_products, chosen, index)[1]
            for curve, estimates in zip(found, gains, strict=True):
                curve.append((questions * rollouts * own.length, _in_order(estimates, truth)))
    return found


def _screened(right: np.ndarray, pushes: np.ndarray, products: np.ndarray, chosen: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Gain of each teacher without and with control variates."""
    rollouts, push = index.shape[1], np.take_along_axis(pushes[chosen], index[:, None], axis=2)
    centred = right - right.mean(axis=1, keepdims=True)
    plain = np.mean(np.sum(centred[:, None] * push, axis=2) / (rollouts - 1), axis=0)
    # the six teachers inform one another
    drawn = np.take_along_axis(products[chosen], index[:, None, None], axis=3)
    contributions = (centred[:, None] * push).swapaxes(0, 1)
    taken = corrections(contributions, drawn.transpose(2, 0, 3, 1), np.ones((1, *index.shape), dtype=bool))
    return np.stack([plain, plain - taken.mean(axis=1)])


def _in_order(estimates: np.ndarray, truth: np.ndarray) -> float:
    pairs = [(a, b) for a in range(len(truth)) for b in range(len(truth)) if truth[a] - truth[b] >= FAR]
    return float(np.mean(np.all([estimates[:, a] > estimates[:, b] for a, b in pairs], axis=0)))


def _protocols(world: str, num_questions: int) -> dict[str, tuple[np.ndarray, int]]:
    """Per-question numbers of each teacher, and tokens generated."""
    task = {**TASKS[world], "num_questions": num_questions}
    uniform = {"uniform_share": 1.0}
    runs = {
        "paper": config(task, protocol="paper"),
        "uniform": config(task, targeted={**uniform, "continuations_per_node": 32 * 7}),
        "default": config(task),
    }
    found: dict[str, tuple[np.ndarray, int]] = {}
    for kind, settings in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            run = opdscope.diagnose({**settings, "analysis": {"num_draws": 100}}, run_dir=Path(folder) / "run")
            tokens = sum(len(row) for table in ("rollouts", "continuations") for row in run.table(table)["token_ids"].to_pylist())
            if kind == "paper":
                for label, number in (("mean cosine", "mean_cosine"), ("advantage", "advantage")):
                    found[f"paper: {label}"] = _per_question(run, _paper_number(number)), tokens
            else:
                way = "uniform targeted rollouts, natural gain" if kind == "uniform" else "default targeted rollouts, natural gain"
                found[way] = (
                    _per_question(run, lambda data: {t["name"]: t["targeted"]["all"]["natural_gain"] for t in _with(data, "targeted")}),
                    tokens,
                )
    return found


def _paper_number(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {t["name"]: t["paths"]["all"]["paper"][name] for t in (data["paper"] or {"teachers": []})["teachers"]}


def _with(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [teacher for teacher in data["teachers"] if teacher.get(key)]


def _per_question(run: Run, read: Callable[[dict[str, Any]], dict[str, Any]]) -> np.ndarray:
    """Question × teacher; NaN where a question has no number."""
    tables = run.tables()
    order = tables["questions"]["question_id"].to_pylist()
    values = np.full((len(order), len(REAL)), np.nan)
    for i, question_id in enumerate(order):
        own = {
            name: table.filter(pa.array([question_id == value for value in table["question_id"].to_pylist()], pa.bool_()))
            if "question_id" in table.column_names
            else table.filter(pa.array([value.startswith(f"{question_id}/") for value in table["node_id"].to_pylist()], pa.bool_()))
            if "node_id" in table.column_names
            else table
            for name, table in tables.items()
        }
        found = read(opdscope.summarize(own, run.config).data)
        values[i] = [np.nan if found.get(name) is None or found[name]["value"] is None else found[name]["value"] for name in REAL]
    return values


def forecasts(world: str) -> Section:
    """What runs were foretold to cost after their pilot, beside what they cost."""
    rows: list[list[Any]] = []
    targets = {
        "rank": ({"kind": "rank", "top": 2, "rounds": 5}, {"num_rollouts": 128}),
        "map": ({"kind": "map", "width": 0.3}, {"num_rollouts": 16}),
        "split": ({"kind": "split", "width": 0.3}, {"num_rollouts": 16}),
    }
    for name, (target, rollouts) in targets.items():
        task = {**TASKS[world], "num_questions": 12}
        settings = {**config(task, target=target), "analysis": {"num_draws": 100}}
        settings["rollouts"] = {**settings["rollouts"], **rollouts}
        settings["teachers"] = [t for t in settings["teachers"] if t["name"] in ("good", "fair", "harmful")]
        with tempfile.TemporaryDirectory() as folder:
            run = opdscope.diagnose(settings, run_dir=Path(folder) / "run")
            found = opdscope.summarize(run.tables(), run.config).data["target"]
        cost = found["cost"]
        reached = "" if found["reached"] is None else "yes" if found["reached"] else "no"
        ratio = cost["spent_tokens"] / cost["foretold_tokens"]
        rows.append([world, name, f"{cost['foretold_tokens']:,}", f"{cost['spent_tokens']:,}", f"{ratio:.2f}", reached])
    text = "Three teachers, 12 questions; the forecast is made from the first look or the pilot, which is part of both numbers."
    return Section(
        f"Cost of a target: foretold and spent ({world})",
        text,
        ["world", "target", "foretold", "spent", "spent / foretold", "reached"],
        rows,
    )
