"""Targeted rollouts: the student finishes from each node after each stratum's token. Fresh: none is counted at any other node."""

import itertools
from dataclasses import dataclass
from typing import Any

from opdscope.config import Config
from opdscope.core.randomness import derive_seed
from opdscope.models.base import Sample, SampleRequest
from opdscope.pipeline.continuation_scores import score_continuations
from opdscope.pipeline.experiment import UNIT_ROWS, Experiment, unit_names
from opdscope.pipeline.nodes import draw_further
from opdscope.pipeline.rounds import Planned, Rounds
from opdscope.records import TAIL, to_table


@dataclass(frozen=True)
class _Branch:
    """One stratum of one node with its planned continuations."""

    node: dict[str, Any]
    stratum: int
    first_index: int
    forced: tuple[int, ...]


def sample_continuations(experiment: Experiment) -> None:
    """Draw and verify the planned continuations of every node; success does not depend on the teacher, so one set serves all.

    They are planned with the nodes, or in rounds where the target wants it.
    """
    nodes, strata = _stored(experiment)
    if experiment.config.target.kind == "each_node":
        branches = [_Branch(nodes[key[0]], key[1], 0, tuple(row["forced_token_ids"])) for key, row in strata.items()]
        _draw(experiment, "continuations", "", branches)
        return
    rounds = Rounds(experiment.run, experiment.config)
    for index in itertools.count():
        planned = rounds.plan(index)
        if not planned:
            return
        branches = [_round_branch(nodes[p.node_id], strata[p.node_id, p.stratum], p) for p in planned]
        _draw(experiment, f"continuations {index}" if index else "pilot continuations", f"{index:03d}-", branches)
        if index == 0 and experiment.config.target.expand:
            draw_further(experiment, _draws(experiment, rounds))
            nodes, strata = _stored(experiment)
            rounds = Rounds(experiment.run, experiment.config)


def _stored(experiment: Experiment) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, int], dict[str, Any]]]:
    """Nodes by id, and strata by node and index."""
    nodes, strata = (experiment.run.table(name).to_pylist() for name in ("nodes", "strata"))
    return {row["node_id"]: row for row in nodes}, {(row["node_id"], row["stratum"]): row for row in strata}


def _draws(experiment: Experiment, rounds: Rounds) -> dict[str, int]:
    """How often nodes are drawn at each question: as stored, or as the pilot says."""
    if not experiment.run.has("draws", "000"):
        return rounds.draws()
    return {row["question_id"]: row["num_draws"] for row in experiment.run.table("draws").to_pylist()}


def _round_branch(node: dict[str, Any], stratum: dict[str, Any], planned: Planned) -> _Branch:
    stop = planned.first_index + planned.count
    tokens = (
        stratum["forced_token_ids"][planned.first_index : stop] if stratum["token_id"] == TAIL else [stratum["token_id"]] * planned.count
    )
    return _Branch(node, planned.stratum, planned.first_index, tuple(tokens))


def _draw(experiment: Experiment, stage: str, prefix: str, branches: list[_Branch]) -> None:
    units = _units(branches)
    names = [prefix + name for name in unit_names(len(units))]
    paths = {
        (row["question_id"], row["rollout_index"]): tuple(row["token_ids"])
        for row in experiment.run.table("rollouts").select(["question_id", "rollout_index", "token_ids"]).to_pylist()
    }

    def work(unit: int) -> int:
        rows = [row for branch in units[unit] for row in _planned(experiment, branch)]
        responses = [(row["question_id"], paths[row["question_id"], row["rollout_index"]][: row["position"]]) for row in rows]
        samples = _finish(experiment, rows, paths)
        verdicts = experiment.verify(
            [question_id for question_id, _ in responses],
            [
                (*prefix, row["forced_token_id"], *sample.token_ids)
                for (_, prefix), row, sample in zip(responses, rows, samples, strict=True)
            ],
            [sample.finished for sample in samples],
        )
        stored = [
            {**row, "token_ids": sample.token_ids, "outcome": outcome}
            for row, sample, (_, outcome) in zip(rows, samples, verdicts, strict=True)
        ]
        experiment.run.write("continuations", names[unit], to_table("continuations", stored))
        return sum(len(sample.token_ids) for sample in samples)

    sizes = [(name, sum(len(branch.forced) for branch in unit)) for name, unit in zip(names, units, strict=True)]
    experiment.run_units(stage, "continuations", sizes, work)
    if experiment.config.targeted.score_continuations and experiment.config.protocol == "default":
        score_continuations(experiment, f"{stage}, scored", sizes)


def _units(branches: list[_Branch]) -> list[list[_Branch]]:
    """Branches in the order of their nodes, so that a unit holds whole nodes of few paths, about `UNIT_ROWS` continuations in all."""
    by_node: dict[str, list[_Branch]] = {}
    for branch in branches:
        if branch.forced:
            by_node.setdefault(branch.node["node_id"], []).append(branch)
    units: list[list[_Branch]] = []
    rows = UNIT_ROWS
    for own in by_node.values():
        size = sum(len(branch.forced) for branch in own)
        if rows + size > UNIT_ROWS:
            units.append([])
            rows = 0
        units[-1] += own
        rows += size
    return [unit for unit in units if unit]


def _planned(experiment: Experiment, branch: _Branch) -> list[dict[str, Any]]:
    return [
        {
            "node_id": branch.node["node_id"],
            "stratum": branch.stratum,
            "continuation_index": index,
            "forced_token_id": token,
            "question_id": branch.node["question_id"],
            "rollout_index": branch.node["rollout_index"],
            "position": branch.node["position"],
            "seed": _seed(experiment.config, branch, index),
        }
        for index, token in enumerate(branch.forced, branch.first_index)
    ]


def _seed(config: Config, branch: _Branch, index: int) -> int:
    """Of one continuation; shared by all candidates of a node, and by the two of a pair, where the configuration says so."""
    candidate = [] if config.targeted.common_random_numbers else [branch.stratum]
    number = index // 2 if config.targeted.antithetic else index
    return derive_seed(config.seed, "continuation", branch.node["node_id"], *candidate, number)


def _finish(experiment: Experiment, rows: list[dict[str, Any]], paths: dict[tuple[str, int], tuple[int, ...]]) -> list[Sample]:
    """Sample each row to its end; rows of one node and token share a request, requests of one path share its prefill."""
    eos = set(experiment.student.eos_token_ids)
    samples: dict[int, Sample] = {index: Sample((), True) for index, row in enumerate(rows) if row["forced_token_id"] in eos}
    groups: dict[tuple[str, int], list[int]] = {}
    for index, row in enumerate(rows):
        if index not in samples:
            groups.setdefault((row["node_id"], row["forced_token_id"]), []).append(index)
    requests, antithetic = [], experiment.config.targeted.antithetic
    for (_, token), members in groups.items():
        row = rows[members[0]]
        prompt = experiment.student_prompts[row["question_id"]]
        trunk = prompt + paths[row["question_id"], row["rollout_index"]]
        seeds = tuple(rows[index]["seed"] for index in members)
        room = experiment.max_length - row["position"] - 1
        mirrored = tuple(rows[index]["continuation_index"] % 2 == 1 for index in members) if antithetic else ()
        requests.append(SampleRequest(trunk, len(prompt) + row["position"], (token,), seeds, room, mirrored))
    for members, group in zip(groups.values(), experiment.sample(experiment.student, requests), strict=True):
        samples.update(zip(members, group, strict=True))
    return [samples[index] for index in range(len(rows))]
