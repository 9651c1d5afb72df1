"""Where the source paper's protocol puts its targeted rollouts: the tokens that a teacher pushes most, per path and depth window.

Each is brought to a fixed number of visits. Writes the tables that the default protocol writes, so that continuations are drawn in the same
way, and `choices`: which teacher chose what. A node that several paths share is stored once, under the first of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int

from opdscope.config import PaperConfig
from opdscope.core.divergences import entropy
from opdscope.core.gradients import distillation_gradient
from opdscope.core.paper import choose_pairs, depth_windows
from opdscope.core.trie import PathVisits, count_visits
from opdscope.pipeline.experiment import Experiment, unit_names
from opdscope.pipeline.nulls import NullTeacher, RowKey, null_teachers
from opdscope.pipeline.paths import draw_paths, verified_rollouts
from opdscope.pipeline.scores import Array, Chunk, Response, Scores, blocks, teacher_prompts, to_numpy
from opdscope.pipeline.strata import name_node, normalised, settle_terminals, stratum_row, stratum_signals
from opdscope.records import TAIL, Outcome, to_table

_UNIT_PATHS = 64
"""Paths in a unit of work: each is read by every teacher."""

_TABLES = ("choices", "strata", "node_signals", "nodes")
"""In the order of writing: the last one marks a unit as done."""

Tables = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class _Path:
    """A rollout that nodes are chosen on; every position of it is scored."""

    response: Response
    outcome: str
    inclusion: float
    visits: PathVisits
    """Of ordinary rollouts."""


@dataclass(frozen=True)
class _Pairs:
    """(position, token) pairs of one question that one teacher can choose; `row` counts positions over the question's paths."""

    row: Int[np.ndarray, "pair"]
    token: Int[np.ndarray, "pair"]
    gradient: Float[np.ndarray, "pair"]
    difference: Float[np.ndarray, "pair"]


def choose_paper_nodes(experiment: Experiment, settings: PaperConfig) -> None:
    """Draw paths, let each teacher choose tokens on them, and plan the continuations that bring these to their visits."""
    rollouts = verified_rollouts(experiment)
    question_blocks = experiment.question_blocks(2 * settings.paths_per_outcome, _UNIT_PATHS)
    names = unit_names(len(question_blocks))
    prompts, nulls = teacher_prompts(experiment), null_teachers(experiment)

    def work(unit: int) -> int:
        ids = [experiment.questions[index].question_id for index in question_blocks[unit]]
        by_question = {key: _paths(experiment, settings, key, rollouts.get(key, [])) for key in ids}
        paths = [path for own in by_question.values() for path in own]
        tables: Tables = {name: [] for name in _TABLES}
        if paths:
            scores = Scores(experiment, [path.response for path in paths], prompts)
            for own in by_question.values():
                if own:
                    _Question(experiment, settings, scores, own, nulls).measure(tables)
        settle_terminals(experiment, tables, {name_node(p.response, t): (p.response, t) for p in paths for t in p.response.positions})
        for name in _TABLES:
            experiment.run.write(name, names[unit], to_table(name, tables[name]))
        return sum(len(path.response.token_ids) for path in paths) * (1 + len(experiment.teachers))

    sizes = [(name, len(block)) for name, block in zip(names, question_blocks, strict=True)]
    experiment.run_units("nodes", "nodes", sizes, work)


def _paths(experiment: Experiment, settings: PaperConfig, question_id: str, rollouts: Sequence[dict[str, Any]]) -> list[_Path]:
    responses = [np.array(row["token_ids"], dtype=np.int64) for row in rollouts]
    success = np.array([float(row["outcome"] == Outcome.CORRECT) for row in rollouts])
    return [
        _Path(
            Response(question_id, row["rollout_index"], tuple(row["token_ids"]), tuple(range(len(row["token_ids"])))),
            outcome,
            inclusion,
            count_visits(np.array(row["token_ids"], dtype=np.int64), responses, success),
        )
        for row, outcome, inclusion in draw_paths(experiment.config.seed, question_id, rollouts, settings.paths_per_outcome)
    ]


class _Question:
    """Choice and measurement on the paths of one question."""

    def __init__(
        self, experiment: Experiment, settings: PaperConfig, scores: Scores, paths: Sequence[_Path], nulls: Sequence[NullTeacher]
    ) -> None:
        self._experiment, self._settings, self._scores, self._paths, self._nulls = experiment, settings, scores, paths, nulls
        self._places = [(index, position) for index, path in enumerate(paths) for position in path.response.positions]
        self._row_of = {place: row for row, place in enumerate(self._places)}

    def measure(self, tables: Tables) -> None:
        """Fill the question's rows of every table."""
        chosen = self._choose(tables)
        for chunk in self._chunks():
            rows = [row for row in range(chunk.start, chunk.start + len(chunk.student)) if row in chosen]
            if rows:
                inside = np.array(rows) - chunk.start
                student = to_numpy(chunk.student[inside])
                teachers = {name: to_numpy(values[inside]) for name, values in chunk.teachers}
                keys = [self._key(row) for row in rows]
                for null in self._nulls:
                    teachers[null.name] = null.rows(student, keys)
                for i, row in enumerate(rows):
                    own = {name: normalised(values[i]) for name, values in teachers.items()}
                    self._measure_node(row, normalised(student[i]), own, chosen[row], tables)

    def _choose(self, tables: Tables) -> dict[int, set[int]]:
        """Let each teacher choose on each path; the chosen tokens by the row of their node."""
        chosen: dict[int, set[int]] = {}
        starts = np.cumsum([0, *(len(path.response.token_ids) for path in self._paths)])
        for teacher, pairs in self._pairs().items():
            for path, start, stop in zip(self._paths, starts, starts[1:], strict=False):
                own = np.flatnonzero((pairs.row >= start) & (pairs.row < stop))
                window = depth_windows(int(stop - start), self._settings.first_window)[pairs.row[own] - start]
                mask = choose_pairs(
                    window, pairs.gradient[own], pairs.difference[own], self._settings.top_gradient, self._settings.top_difference
                )
                for pair, depth in zip(own[mask], window[mask], strict=True):
                    row, token = self._owner(int(pairs.row[pair])), int(pairs.token[pair])
                    chosen.setdefault(row, set()).add(token)
                    tables["choices"].append(self._choice(row, path, teacher, int(depth), token))
        return chosen

    def _choice(self, row: int, path: _Path, teacher: str, window: int, token: int) -> dict[str, Any]:
        index, position = self._places[row]
        return {
            "node_id": name_node(self._paths[index].response, position),
            "question_id": path.response.question_id,
            "rollout_index": path.response.rollout_index,
            "path_outcome": path.outcome,
            "teacher": teacher,
            "window": window,
            "token_id": token,
        }

    def _pairs(self) -> dict[str, _Pairs]:
        parts: dict[str, list[_Pairs]] = {}
        for chunk in self._chunks():
            for teacher, logprobs in chunk.teachers:
                for block in blocks(logprobs):
                    found = _eligible(chunk.student[block], logprobs[block], chunk.start + block.start, self._settings.candidate_threshold)
                    parts.setdefault(teacher, []).append(found)
        names = ("row", "token", "gradient", "difference")
        return {key: _Pairs(*(np.concatenate([getattr(p, name) for p in found]) for name in names)) for key, found in parts.items()}

    def _key(self, row: int) -> RowKey:
        index, position = self._places[row]
        response = self._paths[index].response
        return RowKey(response.question_id, response.rollout_index, position)

    def _chunks(self) -> Iterator[Chunk]:
        return self._scores.chunks(self._paths[0].response.question_id)

    def _same(self, row: int) -> list[int]:
        """Paths that pass through the node of a row."""
        index, position = self._places[row]
        prefix = self._paths[index].response.token_ids[:position]
        return [i for i, path in enumerate(self._paths) if path.response.token_ids[:position] == prefix and (i, position) in self._row_of]

    def _owner(self, row: int) -> int:
        return self._row_of[self._same(row)[0], self._places[row][1]]

    def _measure_node(
        self,
        row: int,
        student: Float[np.ndarray, "vocab"],
        teachers: Mapping[str, Float[np.ndarray, "vocab"]],
        chosen: set[int],
        tables: Tables,
    ) -> None:
        index, position = self._places[row]
        path, probs = self._paths[index], np.exp(student)
        highest = np.max([probs, *(np.exp(rows) for name, rows in teachers.items() if name in self._experiment.teachers)], axis=0)
        # tokens that the paths take are visited by every continuation forced further down, however unlikely they are
        taken = {self._paths[i].response.token_ids[position] for i in self._same(row)}
        tokens = np.array(sorted({*np.flatnonzero(highest > self._settings.candidate_threshold).tolist(), *taken, *chosen}))
        tokens = tokens[np.argsort(-probs[tokens], kind="stable")]
        tail = probs.copy()
        tail[tokens] = 0.0
        rest = tail if tail.sum() > 0 else None
        node_id = name_node(path.response, position)
        tables["strata"] += self._strata(row, node_id, tokens, probs, rest, chosen)
        for name, rows in teachers.items():
            for objective in self._experiment.config.objectives:
                signals = stratum_signals(student, rows, objective, tokens, rest)
                tables["node_signals"].append({"node_id": node_id, "teacher": name, "objective": objective, **signals})
        tables["nodes"].append(
            {
                "node_id": node_id,
                "question_id": path.response.question_id,
                "rollout_index": path.response.rollout_index,
                "position": position,
                "path_outcome": path.outcome,
                "path_inclusion": path.inclusion,
                "inclusion": np.nan,  # chosen for its size, not drawn: no weight makes such nodes stand for others
                "entropy": float(entropy(student)),
            }
        )

    def _strata(
        self,
        row: int,
        node_id: str,
        tokens: Int[np.ndarray, "candidate"],
        probs: Float[np.ndarray, "vocab"],
        rest: Float[np.ndarray, "vocab"] | None,
        chosen: set[int],
    ) -> list[dict[str, Any]]:
        index, position = self._places[row]
        student = self._experiment.student
        eos = set(student.eos_token_ids)
        # at the last position any token but the end is cut by the length limit: success 0, known without sampling
        last = position == self._experiment.max_length - 1
        visits, _ = self._paths[index].visits.children(position, tokens.tolist())
        rows: list[dict[str, Any]] = []
        for k, (token, seen) in enumerate(zip(tokens.tolist(), visits.tolist(), strict=True)):
            sampled = token in chosen and token not in eos and not last
            count = max(self._settings.visits - seen, 0) if sampled else 0
            terminal, prob = 0.0 if last and token not in eos else np.nan, float(probs[token])
            rows.append(stratum_row(node_id, k, token, student.token_text(token), prob, prob**2, terminal, count))
        if rest is not None:
            mass, squared = float(rest.sum()), float(np.sum(rest**2))
            rows.append(stratum_row(node_id, len(rows), TAIL, "", mass, squared, 0.0 if last else np.nan, 0))
        return rows


def _eligible(student: Array, teacher: Array, first_row: int, threshold: float) -> _Pairs:
    """The pairs of consecutive rows whose token student or teacher gives more than the threshold."""
    xp = array_namespace(student, teacher)
    probs, teacher_probs = xp.exp(student), xp.exp(teacher)
    row, token = xp.nonzero((probs > threshold) | (teacher_probs > threshold))
    gradient = distillation_gradient(student, teacher, "reverse_kl")
    difference = teacher_probs - probs
    return _Pairs(to_numpy(row) + first_row, to_numpy(token), to_numpy(gradient[row, token]), to_numpy(difference[row, token]))
