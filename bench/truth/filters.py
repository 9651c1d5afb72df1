"""The paper's filter on teachers that know nothing, through the whole pipeline, over several runs."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from page import Section, fixed
from protocols import exact_children, paper_nodes, protocol_config
from scipy import stats

import opdscope
from opdscope.core.paper import filter_positive, kept_children
from opdscope.core.trie import count_visits
from opdscope.models.exact import ReasoningWorld
from opdscope.store import Run

KNOW_NOTHING = ("stylistic", "random")
"""Teachers for which there is nothing to find; the first pushes only where no token changes success."""

NUMBERS = ("unfiltered mean", "oracle filter", "honest, halves of the counts as published", "honest, fresh continuations")


def study(num_runs: int, num_questions: int) -> Section:
    """Each filter's mean over runs, with an interval from how runs differ."""
    found: dict[str, list[list[float]]] = {name: [] for name in KNOW_NOTHING}
    covered = 0
    for seed in range(num_runs):
        with tempfile.TemporaryDirectory() as folder:
            config = protocol_config(num_questions, names=KNOW_NOTHING, protocol="paper", seed=seed, analysis={"num_draws": 100})
            run = opdscope.diagnose(config, run_dir=Path(folder) / "run")
            paper = opdscope.summarize(run.tables(), run.config).data["paper"]
            halves = _by_halves_of_counts(run)
        for teacher in paper["teachers"]:
            name, own = teacher["name"].removesuffix(" teacher"), teacher["paths"]["all"]
            if name in KNOW_NOTHING:
                published, honest = own["paper"], own["sound"]["honest_filter"]
                found[name].append([published["mean_cosine"]["value"], published["oracle_filter"]["value"], halves[name], honest["value"]])
                covered += name == KNOW_NOTHING[0] and honest["low"] <= 0 <= honest["high"]
    rows: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for name, runs in found.items():
        values = np.array(runs)
        means, errors = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(num_runs)
        half = stats.t.ppf(0.95, num_runs - 1) * errors
        rows.append(
            [
                name,
                *(f"{m:+.3f} [{m - h:+.3f}, {m + h:+.3f}]" for m, h in zip(means, half, strict=True)),
                fixed(means[1] / abs(means[0]), 1),
            ]
        )
        checks.append((f"{name}: the oracle filter's mean is above .4", bool(means[1] > 0.4)))
        if name == KNOW_NOTHING[0]:
            checks.append(
                (f"{name}: the oracle filter's mean is at least ten times the unfiltered one", bool(means[1] > 10 * abs(means[0])))
            )
            checks.append((f"{name}: the honest filter's mean is within 4 of its errors of zero", bool(abs(means[3]) < 4 * errors[3])))
            checks.append((f"{name}: halves of the published counts find what is not there", bool(means[2] > 4 * errors[2])))
            least = int(stats.binom.ppf(1e-3, num_runs, 0.9))
            checks.append((f"{name}: zero is within the honest filter's interval in at least {least} of {num_runs} runs", covered >= least))
    text = (
        f"{num_runs} runs of `protocol: paper`, {num_questions} questions each, through the whole pipeline (rollouts, tree, enrichment, "
        "summary), with teachers that know nothing; means over runs with 90 % intervals. The stylistic one pushes only where no token changes "
        "success, so that "
        "all of its nodes are pure noise; the random one pushes everywhere, and where tokens matter it is right by chance, which an honest filter "
        "may find. *Oracle*: nodes with a positive cosine, scored on the visits that selected them. *Honest*: selected on one half, scored on the "
        "other, both ways. By fresh continuations, as the summary has it, the halves share nothing. The counts as published include responses "
        "that were forced further down the path, which see its own token followed by its own next tokens: that bias is the same in "
        "both halves, and a filter on halves of these counts finds it again. *Ratio*: oracle filter over the size of the unfiltered mean, the "
        f"paper's “10–15×”. Of single runs, {covered} of {num_runs} have zero within the 90 % interval of the stylistic teacher's honest filter."
    )
    return Section("The oracle filter on noise, through the pipeline", text, ["teacher", *NUMBERS, "ratio"], rows, checks)


def _by_halves_of_counts(run: Run) -> dict[str, float]:
    """Each teacher's honest filter with every visit counted, forced ones included, in halves by the index of rollout or continuation."""
    settings, world = run.config.paper, ReasoningWorld()
    assert settings is not None
    nodes, places, tokens, chosen, kept = paper_nodes(run)
    visits, correct = np.zeros((2, 2, *tokens.shape))
    responses = _responses(run, {row["node_id"]: row for row in nodes.rows})
    paths = {(row["question_id"], row["rollout_index"]): row["token_ids"] for row in run.table("rollouts").to_pylist()}
    by_path: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(nodes.rows):
        by_path.setdefault((row["question_id"], row["rollout_index"]), []).append(i)
    for path, members in by_path.items():
        for half, (texts, success) in enumerate(responses[path[0]]):
            counts = count_visits(np.array(paths[path]), texts, np.array(success))
            for i in members:
                width = int(np.sum(nodes.probs[i] > 0))
                visits[half, i, :width], correct[half, i, :width] = counts.children(nodes.rows[i]["position"], tokens[i, :width].tolist())
    share = correct / np.maximum(visits, 1)
    both = kept & np.all(visits > 0, axis=0)
    question = np.array([row["question_id"] for row in nodes.rows])
    found: dict[str, float] = {}
    for name in KNOW_NOTHING:
        own = chosen[f"{name} teacher"]
        _, theirs, _ = exact_children(world, name, [places[i] for i in own], tokens[own])
        first, second = (kept_children(nodes.probs[own], theirs, half[own], both[own]).cosine for half in share)
        ways = [filter_positive(first, second), filter_positive(second, first)]
        means = [np.nanmean(way[mine]) for way in ways for q in np.unique(question) if np.any(~np.isnan(way[mine := question[own] == q]))]
        found[name] = float(np.mean(means))
    return found


def _responses(run: Run, nodes: dict[str, dict[str, Any]]) -> dict[str, list[tuple[list[np.ndarray], list[float]]]]:
    """By question and half: whole responses and their success."""
    found: dict[str, list[tuple[list[np.ndarray], list[float]]]] = {}
    tokens: dict[tuple[str, int], list[int]] = {}
    for row in run.table("rollouts").to_pylist():
        tokens[row["question_id"], row["rollout_index"]] = row["token_ids"]
        own = found.setdefault(row["question_id"], [([], []), ([], [])])[row["rollout_index"] % 2]
        own[0].append(np.array(row["token_ids"]))
        own[1].append(float(row["outcome"] == "correct"))
    for row in run.table("continuations").to_pylist():
        node = nodes[row["node_id"]]
        prefix = tokens[node["question_id"], node["rollout_index"]][: node["position"]]
        own = found[node["question_id"]][row["continuation_index"] % 2]
        own[0].append(np.array([*prefix, row["forced_token_id"], *row["token_ids"]]))
        own[1].append(float(row["outcome"] == "correct"))
    return found
