"""A second look at continuations: student and teachers read what the student drew, for the controls of its outcomes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from opdscope.config import NULL_CONTEXTS
from opdscope.core.controls import centred_log_ratio
from opdscope.pipeline.experiment import Experiment
from opdscope.pipeline.scores import Response, Scores, blocks, teacher_prompts, to_numpy
from opdscope.records import to_table

_Key = tuple[str, int, int]  # node, stratum and index of a continuation


def score_continuations(experiment: Experiment, stage: str, units: Sequence[tuple[str, int]]) -> None:
    """Store every informing teacher's centred log-ratio at each token of the continuations of these units; nulls inform nothing.

    Args:
        experiment: Models and settings.
        stage: Name for people.
        units: Name and size of the finished units of the table `continuations`; each has its scores under the same name.
    """
    informing = [teacher.name for teacher in experiment.config.teachers if teacher.privileged_context not in NULL_CONTEXTS]
    prompts = teacher_prompts(experiment)
    rollouts = experiment.run.table("rollouts", ["question_id", "rollout_index", "token_ids"]).to_pylist()
    paths = {(row["question_id"], row["rollout_index"]): tuple(row["token_ids"]) for row in rollouts}
    nodes = {row["node_id"]: row for row in experiment.run.table("nodes").to_pylist()}

    def work(unit: int) -> int:
        by_question: dict[str, list[tuple[_Key, Response]]] = {}
        for row in experiment.run.unit("continuations", units[unit][0]).to_pylist():
            node, key = nodes[row["node_id"]], (row["node_id"], row["stratum"], row["continuation_index"])
            before = paths[node["question_id"], node["rollout_index"]][: node["position"]]
            tokens = (*before, row["forced_token_id"], *row["token_ids"])
            response = Response(node["question_id"], node["rollout_index"], tokens, tuple(range(len(before) + 1, len(tokens))), len(before))
            if response.positions:
                by_question.setdefault(node["question_id"], []).append((key, response))
        scores = Scores(experiment, [response for own in by_question.values() for _, response in own], prompts, informing)
        rows = [row for question_id, own in by_question.items() for row in _score_question(scores, question_id, own)]
        experiment.run.write("continuation_scores", units[unit][0], to_table("continuation_scores", rows))
        drawn = sum(len(response.positions) for own in by_question.values() for _, response in own)
        return drawn + sum(len(row["centred_log_ratio"]) for row in rows)

    experiment.run_units(stage, "continuation_scores", units, work)


def _score_question(scores: Scores, question_id: str, continuations: Sequence[tuple[_Key, Response]]) -> list[Mapping[str, Any]]:
    taken_ids = np.array([response.token_ids[t] for _, response in continuations for t in response.positions], dtype=np.int64)
    found: dict[str, np.ndarray] = {}
    for chunk in scores.chunks(question_id):
        xp, pieces = array_namespace(chunk.student), blocks(chunk.student)
        taken = xp.asarray(taken_ids[chunk.start : chunk.start + chunk.student.shape[0]], device=device(chunk.student))
        for teacher, logprobs in chunk.teachers:
            own = found.setdefault(teacher, np.empty(len(taken_ids), dtype=np.float32))
            for block in pieces:
                values = to_numpy(centred_log_ratio(chunk.student[block], logprobs[block], taken[block]))
                own[chunk.start + block.start : chunk.start + block.stop] = values
    bounds = np.cumsum([0, *(len(response.positions) for _, response in continuations)])
    return [
        {"node_id": key[0], "stratum": key[1], "continuation_index": key[2], "teacher": teacher, "centred_log_ratio": values[start:stop]}
        for teacher, values in found.items()
        for (key, _), start, stop in zip(continuations, bounds, bounds[1:], strict=False)
    ]
