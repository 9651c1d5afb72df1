"""Where targeted rollouts start: paths, nodes with known inclusion probabilities, candidates and the tail, and how many continuations each gets.

Everything here is decided from probabilities and ordinary rollouts, before any continuation is drawn. Ordinary rollouts say where outcomes are
settled, which moves the inclusion probabilities of nodes, and of a path's own outcome the class is used, to draw as many paths from correct as from
incorrect rollouts; both are divided out again, and continuations are fresh, so that nothing of it biases what is estimated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from opdscope.config import TargetedConfig
from opdscope.core.divergences import entropy
from opdscope.core.expansion import refined_sample
from opdscope.core.randomness import derive_seed, generator, uniforms
from opdscope.core.sampling import (
    Candidates,
    allocate_continuations,
    choose_candidates,
    inclusion_probabilities,
    systematic_sample,
)
from opdscope.pipeline.experiment import Experiment, unit_names
from opdscope.pipeline.importance import PositionImportance
from opdscope.pipeline.nulls import NullTeacher, RowKey, null_teachers
from opdscope.pipeline.paths import draw_paths, verified_rollouts
from opdscope.pipeline.scores import Response, Scores, teacher_prompts, to_numpy
from opdscope.pipeline.strata import name_node, normalised, settle_terminals, stratum_row, stratum_signals
from opdscope.records import TAIL, to_table


@dataclass(frozen=True)
class Path:
    """A measured rollout chosen for targeted rollouts, with its nodes."""

    response: Response
    """The rollout; its positions are the nodes."""
    outcome: str
    """`correct` or `incorrect` (which includes truncated)."""
    path_inclusion: float
    """Chance to be chosen among the question's rollouts of this outcome."""
    inclusion: Float[np.ndarray, "position"]
    """Inclusion probability of every position of the path; at nodes of several draws what takes its place."""


def choose_nodes(experiment: Experiment) -> None:
    """Draw paths and nodes, choose candidates, reduce every teacher's signal to strata, and plan the continuations."""
    _draw_nodes(experiment, "nodes", "", _PathReader(experiment))


def draw_further(experiment: Experiment, draws: Mapping[str, int]) -> None:
    """Draw nodes so often in all at these questions, and measure those that are new as :func:`choose_nodes` does.

    What becomes of the inclusion probabilities is stored first: from then on it is settled how often nodes are drawn.
    """
    reader = _PathReader(experiment, draws)
    if not experiment.run.has("draws", "000"):
        rows = [
            {"question_id": q, "node_id": name_node(path.response, t), "num_draws": count, "inclusion": path.inclusion[t]}
            for q, count in draws.items()
            if count > 1
            for path in reader.paths(q, whole=True)
            for t in path.response.positions
        ]
        experiment.run.write("draws", "000", to_table("draws", rows))
    _draw_nodes(experiment, "further nodes", "further-", reader)


def _draw_nodes(experiment: Experiment, stage: str, prefix: str, reader: "_PathReader") -> None:
    settings = experiment.config.targeted
    blocks = experiment.question_blocks(2 * settings.paths_per_outcome * settings.nodes_per_path)
    names = [prefix + name for name in unit_names(len(blocks))]
    prompts, nulls = teacher_prompts(experiment), null_teachers(experiment)

    def work(unit: int) -> int:
        paths = [path for index in blocks[unit] for path in reader.paths(experiment.questions[index].question_id)]
        tables: dict[str, list[dict[str, Any]]] = {"strata": [], "node_signals": [], "nodes": []}
        if paths:
            scores = Scores(experiment, [path.response for path in paths], prompts)
            for question_id in dict.fromkeys(path.response.question_id for path in paths):
                own = [path for path in paths if path.response.question_id == question_id]
                _measure_question(experiment, scores, own, nulls, tables)
        settle_terminals(experiment, tables, {name_node(p.response, t): (p.response, t) for p in paths for t in p.response.positions})
        for name in ("strata", "node_signals", "nodes"):  # the last one marks the unit as done
            experiment.run.write(name, names[unit], to_table(name, tables[name]))
        return sum(len(p.response.token_ids) for p in paths) * (1 + len(experiment.teachers))

    experiment.run_units(stage, "nodes", [(name, len(block)) for name, block in zip(names, blocks, strict=True)], work)


class _PathReader:
    """Draws paths and nodes from what screening stored: those of the first draw, or what further draws bring."""

    def __init__(self, experiment: Experiment, draws: Mapping[str, int] | None = None) -> None:
        self._experiment, self._draws = experiment, draws
        self._rollouts = verified_rollouts(experiment)
        self._importance = PositionImportance(experiment, self._rollouts)

    def paths(self, question_id: str, whole: bool = False) -> list[Path]:
        """The paths of a question that have such nodes; `whole` adds those of the first draw to what further draws bring."""
        settings = self._experiment.config.targeted
        seed = self._experiment.config.seed
        chosen: list[Path] = []
        for row, outcome, path_inclusion in draw_paths(seed, question_id, self._rollouts.get(question_id, []), settings.paths_per_outcome):
            key = (question_id, row["rollout_index"])
            inclusion = inclusion_probabilities(self._importance.weights(key), settings.nodes_per_path, settings.uniform_share)
            start = float(generator(seed, "nodes", *key).random())
            positions = systematic_sample(inclusion, start)
            if self._draws is not None:
                together, divisors = refined_sample(inclusion, start, self._draws.get(question_id, 1))
                inclusion = inclusion.copy()
                inclusion[together] = divisors
                positions = together if whole else np.setdiff1d(together, positions)
            response = Response(question_id, row["rollout_index"], tuple(row["token_ids"]), tuple(int(t) for t in positions))
            if len(positions):
                chosen.append(Path(response, outcome, path_inclusion, inclusion))
        return chosen


def _measure_question(
    experiment: Experiment,
    scores: Scores,
    paths: Sequence[Path],
    nulls: Sequence[NullTeacher],
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    places = [(path, position) for path in paths for position in path.response.positions]
    for chunk in scores.chunks(paths[0].response.question_id):
        student = to_numpy(chunk.student)
        # every teacher's rows at once, since candidates depend on all of them; float64 only row by row
        teachers = {name: to_numpy(rows) for name, rows in chunk.teachers}
        keys = [RowKey(p.response.question_id, p.response.rollout_index, t) for p, t in places[chunk.start :]]
        for null in nulls:
            teachers[null.name] = null.rows(student, keys)
        for row in range(len(student)):
            path, position = places[chunk.start + row]
            own = {name: normalised(rows[row]) for name, rows in teachers.items()}
            _measure_node(experiment, path, position, normalised(student[row]), own, tables)


def _measure_node(
    experiment: Experiment,
    path: Path,
    position: int,
    student: Float[np.ndarray, "vocab"],
    teachers: dict[str, Float[np.ndarray, "vocab"]],
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    settings = experiment.config.targeted
    probs = np.exp(student)
    real = [np.exp(rows) for name, rows in teachers.items() if name in experiment.teachers]
    candidates = choose_candidates(probs, np.array(real), settings.max_candidates, settings.min_candidate_prob)
    tail = probs.copy()
    tail[candidates.token_ids] = 0.0
    has_tail = bool(tail.sum() > 0)
    node_id = name_node(path.response, position)
    tables["nodes"].append(
        {
            "node_id": node_id,
            "question_id": path.response.question_id,
            "rollout_index": path.response.rollout_index,
            "position": position,
            "path_outcome": path.outcome,
            "path_inclusion": path.path_inclusion,
            "inclusion": path.inclusion[position],
            "entropy": float(entropy(student)),
        }
    )
    last = position == experiment.max_length - 1
    tables["strata"] += _strata(experiment, node_id, probs, tail if has_tail else None, candidates, last)
    for name, rows in teachers.items():
        for objective in experiment.config.objectives:
            signals = stratum_signals(student, rows, objective, candidates.token_ids, tail if has_tail else None)
            tables["node_signals"].append({"node_id": node_id, "teacher": name, "objective": objective, **signals})


def _strata(
    experiment: Experiment,
    node_id: str,
    probs: Float[np.ndarray, "vocab"],
    tail: Float[np.ndarray, "vocab"] | None,
    candidates: Candidates,
    last: bool,
) -> list[dict[str, Any]]:
    settings: TargetedConfig = experiment.config.targeted
    eos = set(experiment.student.eos_token_ids)
    # at the last position any token but the end is cut by the length limit: success 0, known without sampling
    terminal = [0.0 if last and token not in eos else np.nan for token in candidates.token_ids]
    ends = [token in eos for token in candidates.token_ids]
    sampled = [bool(np.isnan(value)) and not end for value, end in zip(terminal, ends, strict=True)]
    weights = [*candidates.share]
    if tail is not None:
        sampled.append(bool(tail.sum() >= settings.min_tail_prob) and not last)
        weights.append(max(1.0 - float(np.sum(candidates.share)), 0.0))
    counts = _first_counts(experiment, np.array(weights), np.array(sampled), tail is not None)
    rows = [
        stratum_row(
            node_id,
            k,
            int(token),
            experiment.student.token_text(int(token)),
            float(probs[token]),
            float(probs[token]) ** 2,
            terminal[k],
            count,
        )
        for k, (token, count) in enumerate(zip(candidates.token_ids, counts, strict=False))
    ]
    if tail is not None:
        row = stratum_row(node_id, len(rows), TAIL, "", float(tail.sum()), float((tail**2).sum()), 0.0 if last else np.nan, 0)
        rows.append({**row, "forced_token_ids": _draw_tail(experiment.config.seed, node_id, tail, int(counts[-1]))})
    return rows


def _first_counts(
    experiment: Experiment, weights: Float[np.ndarray, "stratum"], sampled: Bool[np.ndarray, "stratum"], has_tail: bool
) -> Int[np.ndarray, "stratum"]:
    """Continuations that are planned with the node: all of them, or the pilot and, for a tail, the tokens of as many as it could ever get."""
    settings = experiment.config.targeted
    if experiment.config.target.kind == "each_node":
        matters = weights if settings.neyman_allocation else np.ones_like(weights)
        return allocate_continuations(matters, settings.continuations_per_node, settings.min_continuations, sampled)
    counts = np.where(sampled, settings.min_continuations, 0)
    if has_tail and sampled[-1]:
        counts[-1] = settings.max_continuations
    return counts


def _draw_tail(seed: int, node_id: str, tail: Float[np.ndarray, "vocab"], count: int) -> Int[np.ndarray, "draw"]:
    seeds = np.array([derive_seed(seed, "tail", node_id, index) for index in range(count)], dtype=np.uint64)
    cumulative = np.cumsum(tail)
    drawn = np.searchsorted(cumulative, uniforms(seeds, np.zeros(count, dtype=np.int64)) * cumulative[-1], side="right")
    return np.minimum(drawn, np.flatnonzero(tail)[-1])  # rounding at the upper end must not leave the tail
