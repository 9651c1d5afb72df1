"""The whole pipeline under three protocols on the same questions: what the paper's numbers are made of, and what each protocol costs."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from page import Section, fixed

import opdscope
from opdscope.core.alignment import alignment_score
from opdscope.core.gradients import distillation_gradient
from opdscope.core.paper import kept_children
from opdscope.models.exact import ReasoningWorld
from opdscope.store import Run
from opdscope.summary.nodes import NodeArrays, read_nodes
from opdscope.summary.visits import read_tree

TEACHERS = ("good", "weak", "random", "flattened")
OBJECTIVE = "reverse_kl"


def compare_protocols(num_questions: int) -> list[Section]:
    """Run each protocol once."""
    with tempfile.TemporaryDirectory() as folder:
        paper = opdscope.diagnose(protocol_config(num_questions, protocol="paper"), run_dir=Path(folder) / "paper")
        default = opdscope.diagnose(protocol_config(num_questions), run_dir=Path(folder) / "default")
        uniform = {"uniform_share": 1.0, "paths_per_outcome": 2, "nodes_per_path": 12, "max_candidates": 8, "continuations_per_node": 64}
        spread = opdscope.diagnose(protocol_config(num_questions, targeted=uniform), run_dir=Path(folder) / "uniform")
        summaries = {
            name: opdscope.summarize(run.tables(), run.config).data
            for name, run in (("paper", paper), ("default", default), ("uniform", spread))
        }
        tokens = {name: _tokens(run) for name, run in (("paper", paper), ("default", default), ("uniform", spread))}
        return [_made_of(paper), _gap(summaries), _costs(summaries, tokens)]


def protocol_config(num_questions: int, names: Sequence[str] = TEACHERS, **sections: Any) -> dict[str, Any]:
    """A run of the exact world with these teachers."""
    return {
        "student": {"model_name_or_path": "exact:itself"},
        # named apart from the nulls of the configuration, which have other temperatures
        "teachers": [{"name": f"{name} teacher", "teacher_model_name_or_path": f"exact:{name}"} for name in names],
        "nulls": {"sharpened": 0.7, "flattened": 1.6},
        "task": {"kind": "exact", "num_questions": num_questions},
        "objectives": [OBJECTIVE],
        "rollouts": {"num_demonstrations": 0, "max_completion_length": 64},
        **sections,
    }


def paper_nodes(run: Run) -> tuple[NodeArrays, list[tuple[int, int, int]], np.ndarray, dict[str, list[int]], np.ndarray]:
    """Nodes, their places, the token of every stratum, which nodes each teacher chose, and which children are kept as published."""
    tables, settings = run.tables(), run.config.paper
    assert settings is not None
    nodes = read_nodes(tables)
    tree = read_tree(tables, nodes, settings)
    places = _places(run, ReasoningWorld(), [row["node_id"] for row in nodes.rows])
    tokens = np.zeros(nodes.probs.shape, dtype=np.int64)
    index = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    for row in tables["strata"].to_pylist():
        if row["node_id"] in index:
            tokens[index[row["node_id"]], row["stratum"]] = max(row["token_id"], 0)
    chosen: dict[str, set[int]] = {}
    for row in tables["choices"].to_pylist():
        if row["node_id"] in index:
            chosen.setdefault(row["teacher"], set()).add(index[row["node_id"]])
    kept = (tree.visits >= settings.min_visits) & ~nodes.is_tail
    return nodes, places, tokens, {name: sorted(own) for name, own in chosen.items()}, kept


def _made_of(run: Run) -> Section:
    """Each step from the paper's mean cosine to the exact one over whole responses."""
    settings, world = run.config.paper, ReasoningWorld()
    assert settings is not None
    nodes, places, tokens, chosen, kept = paper_nodes(run)
    tree = read_tree(run.tables(), nodes, settings)
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for name in TEACHERS:
        own = chosen[f"{name} teacher"]
        exact, theirs, full = exact_children(world, name, [places[i] for i in own], tokens[own])
        student, counted = nodes.probs[own], kept[own]
        fresh = np.where(
            nodes.outcomes.num_verified[own] > 0, nodes.outcomes.num_correct[own] / np.maximum(nodes.outcomes.num_verified[own], 1), np.nan
        )
        both = counted & ~np.isnan(fresh)
        cosines = [
            kept_children(student, theirs, tree.success[own], counted).cosine,
            kept_children(student, theirs, exact, counted).cosine,
            kept_children(student, theirs, np.nan_to_num(fresh), both).cosine,
            kept_children(student, theirs, exact, both).cosine,
            full,
        ]
        published, children, alone, same, chosen_nodes = (float(np.nanmean(c)) if np.any(~np.isnan(c)) else float("nan") for c in cosines)
        everywhere = _representative(world, name, run)
        if name in ("good", "weak"):
            checks.append((f"{name}: noise takes from the cosine of the same children", abs(published) < abs(children)))
            checks.append(
                (f"{name}: counts at ancestors take more than fresh continuations do", abs(published - children) > abs(alone - same))
            )
        if name == "random":
            far = abs(chosen_nodes - everywhere) > 0.1
            checks.append((f"{name}: the nodes that the teacher chose are more than .1 from all nodes, noise aside", far))
        rows.append(
            [
                name,
                len(own),
                *(fixed(value, 3) for value in (published, children, alone, same, chosen_nodes)),
                fixed(everywhere, 3),
            ]
        )
    text = (
        "One run of `protocol: paper` (200 rollouts a question). Mean cosine over the nodes that each teacher chose: with the paper's counts "
        "(every response through a child, forced ones of descendants included) and with the exact success of the same children; with fresh "
        "continuations only and the exact success of those children; the exact cosine over the full vocabulary at the same nodes; and over all "
        "nodes of the student's own responses, which is what a reader takes the number for."
    )
    columns = [
        "teacher",
        "nodes",
        "as published",
        "same children, exact",
        "fresh only",
        "same children, exact",
        "same nodes, full vocabulary",
        "all nodes",
    ]
    return Section("What the paper's mean cosine is made of", text, columns, rows, checks)


def _places(run: Run, world: ReasoningWorld, node_ids: list[str]) -> list[tuple[int, int, int]]:
    """Question, position and state of each node."""
    following = world.next_states()
    responses = {(row["question_id"], row["rollout_index"]): row["token_ids"] for row in run.table("rollouts").to_pylist()}
    rows = {row["node_id"]: row for row in run.table("nodes").to_pylist()}
    found: list[tuple[int, int, int]] = []
    for node_id in node_ids:
        row, state = rows[node_id], 0
        for position, token in enumerate(responses[row["question_id"], row["rollout_index"]][: row["position"]]):
            state = int(following[position, state, token])
        found.append((int(row["question_id"].rsplit("-", 1)[1]), row["position"], state))
    return found


def exact_children(
    world: ReasoningWorld, name: str, places: list[tuple[int, int, int]], tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact success and teacher probability of each child, and the full-vocabulary cosine of each node."""
    success, theirs, full = np.zeros(tokens.shape), np.zeros(tokens.shape), np.zeros(len(places))
    cache: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for i, (question, position, state) in enumerate(places):
        if question not in cache:
            student, teacher = world.student(question), world.teacher(name, question)
            gradient = distillation_gradient(student, teacher, OBJECTIVE)
            exact = world.success(question)
            cache[question] = (
                exact,
                np.exp(teacher),
                alignment_score(student, np.exp(2 * student), gradient, np.sum(gradient**2, axis=-1), exact),
            )
        exact, probs, scores = cache[question]
        success[i], theirs[i], full[i] = exact[position, state][tokens[i]], probs[position, state][tokens[i]], scores[position, state]
    return success, theirs, full


def _representative(world: ReasoningWorld, name: str, run: Run) -> float:
    total = np.zeros(2)
    for row in run.table("questions").to_pylist():
        question = int(row["question_id"].rsplit("-", 1)[1])
        student, teacher = world.student(question), world.teacher(name, question)
        gradient = distillation_gradient(student, teacher, OBJECTIVE)
        score = alignment_score(student, np.exp(2 * student), gradient, np.sum(gradient**2, axis=-1), world.success(question))
        weights = world.occupancy(question)
        total += np.sum(weights * np.nan_to_num(score)), np.sum(weights * ~np.isnan(score))
    return float(total[0] / total[1]) if total[1] > 0 else float("nan")


def _gap(summaries: dict[str, dict[str, Any]]) -> Section:
    """The gap between correct and incorrect paths, for a teacher that is the student flattened."""
    rows: list[list[Any]] = []
    paper = {teacher["name"]: teacher for teacher in summaries["paper"]["paper"]["teachers"]}
    default = {teacher["name"]: teacher for teacher in summaries["default"]["teachers"]}
    for name in (f"{name} teacher" for name in TEACHERS):
        published = [_estimate(paper[name]["paths"][paths]["paper"]["mean_cosine"], 3) for paths in ("correct", "incorrect")]
        ours = [
            _estimate(default[name]["targeted"][paths][quantity])
            for quantity in ("natural_gain", "gain_over_null")
            for paths in ("correct", "incorrect")
        ]
        rows.append([name.removesuffix(" teacher"), *published, *ours])
    flattened = f"{TEACHERS[-1]} teacher"
    cosine, over = (
        [paper[flattened]["paths"][paths]["paper"]["mean_cosine"] for paths in ("correct", "incorrect")],
        [default[flattened]["targeted"][paths]["gain_over_null"] for paths in ("correct", "incorrect")],
    )
    checks = [
        ("flattened: the paper's cosine differs between the classes of paths, their intervals being apart", _apart(*cosine)),
        ("flattened: no gain over null is shown on correct paths, nor on incorrect ones", all(e["low"] <= 0 for e in over)),
        ("flattened: gains over null do not differ between the classes", not _apart(*over)),
    ]
    text = (
        "Mean cosine of the paper's protocol on correct and incorrect paths; beside it our natural gain, and what is left of it beyond the null "
        "that the teacher has to beat. The flattened teacher knows nothing, and its cosine differs between the classes of paths all the same; "
        "beyond its null nothing positive is left on either. 90 % intervals."
    )
    columns = [
        "teacher",
        "paper, correct",
        "paper, incorrect",
        "gain, correct",
        "gain, incorrect",
        "over null, correct",
        "over null, incorrect",
    ]
    return Section("The gap between correct and incorrect paths", text, columns, rows, checks)


def _apart(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first["high"] < second["low"] or second["high"] < first["low"]


def _costs(summaries: dict[str, dict[str, Any]], tokens: dict[str, dict[str, int]]) -> Section:
    """Tokens for a standard error of a tenth of the estimate, for each way to judge a teacher."""
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    paper = {teacher["name"]: teacher for teacher in summaries["paper"]["paper"]["teachers"]}
    for name in ("good teacher", "weak teacher"):
        screened = {run: {t["name"]: t for t in data["teachers"]}[name] for run, data in summaries.items()}
        ways = {
            "default: screening": (screened["default"]["natural_gain"], tokens["default"]["rollouts"]),
            "default: targeted rollouts": (screened["default"]["targeted"]["all"]["natural_gain"], tokens["default"]["all"]),
            "uniform targeted rollouts": (screened["uniform"]["targeted"]["all"]["natural_gain"], tokens["uniform"]["all"]),
            "paper: mean cosine": (paper[name]["paths"]["all"]["paper"]["mean_cosine"], tokens["paper"]["all"]),
            "paper: advantage": (paper[name]["paths"]["all"]["paper"]["advantage"], tokens["paper"]["all"]),
        }
        needed = {way: spent * (10 * e["standard_error"] / e["value"]) ** 2 for way, (e, spent) in ways.items()}
        for way, (estimate, spent) in ways.items():
            ratio = needed[way] / needed["default: screening"]
            rows.append([name.removesuffix(" teacher"), way, _estimate(estimate, 3), f"{spent:,}", f"{needed[way]:,.0f}", f"{ratio:.2f}"])
        checks.append(
            (
                f"{name}: the default's screening needs fewer tokens than the paper's protocol",
                needed["default: screening"] < needed["paper: mean cosine"],
            )
        )
        targeted, spread = needed["default: targeted rollouts"], needed["uniform targeted rollouts"]
        checks.append((f"{name}: the default's targeted rollouts need fewer tokens than uniform ones", targeted < spread))
    text = (
        "The same questions under each protocol, in one run. *Needed*: generated tokens at which the standard error, clustered by question, "
        "would be a tenth of the estimate, if it shrinks as one over the root of the tokens. The paper's protocol does not estimate a gain; "
        "what it judges teachers by is taken instead."
    )
    columns = ["teacher", "judged by", "estimate", "tokens spent", "tokens needed", "relative to screening"]
    return Section("Cost", text, columns, rows, checks)


def _tokens(run: Run) -> dict[str, int]:
    rollouts = sum(len(row) for row in run.table("rollouts")["token_ids"].to_pylist())
    return {"rollouts": rollouts, "all": rollouts + sum(len(row) + 1 for row in run.table("continuations")["token_ids"].to_pylist())}


def _estimate(estimate: dict[str, Any], digits: int = 2) -> str:
    if estimate["value"] is None:
        return "—"
    return f"{estimate['value']:+.{digits}f} [{estimate['low']:+.{digits}f}, {estimate['high']:+.{digits}f}]"
