"""Continuations that are scored: what is stored is exact, a run may take the step later, and single nodes come nearer to the truth."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import opdscope
from opdscope.config import load_config
from opdscope.models.exact import ReasoningWorld, TreeWorld
from opdscope.pipeline.experiment import load_models
from opdscope.pipeline.plan import make_plan
from opdscope.pipeline.scores import Response, Scores
from opdscope.pipeline.watching import Silent
from opdscope.store import Run
from opdscope.summary.evidence import read_foretold_kept
from opdscope.summary.headline import summarize
from opdscope.summary.measures import node_scores
from opdscope.summary.nodes import read_nodes

NAMES = ("good", "random")
SETTINGS: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "teachers": [{"name": f"{name} teacher", "teacher_model_name_or_path": f"exact:{name}"} for name in NAMES],
    "task": {"kind": "exact", "world": "tree", "num_questions": 12},
    "objectives": ["reverse_kl"],
    "rollouts": {"num_demonstrations": 0, "max_completion_length": 8},
    "targeted": {"score_continuations": True},
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opdscope.diagnose(SETTINGS, run_dir=tmp_path_factory.mktemp("controls") / "run")


def test_what_is_stored_are_the_exact_log_ratios_less_their_means(scored: Run) -> None:
    tables, world = scored.tables(), TreeWorld()
    questions = tables["questions"]["question_id"].to_pylist()
    paths = {(r["question_id"], r["rollout_index"]): r["token_ids"] for r in tables["rollouts"].to_pylist()}
    nodes = {row["node_id"]: row for row in tables["nodes"].to_pylist()}
    drawn = {(r["node_id"], r["stratum"], r["continuation_index"]): r for r in tables["continuations"].to_pylist()}
    rows, following = tables["continuation_scores"].to_pylist(), world.next_states()
    assert len(rows) == 2 * sum(len(row["token_ids"]) > 0 for row in drawn.values())
    for row in rows[:: len(rows) // 200]:
        own, node = drawn[row["node_id"], row["stratum"], row["continuation_index"]], nodes[row["node_id"]]
        index = questions.index(node["question_id"])
        student, teacher = world.student(index), world.teacher(row["teacher"].removesuffix(" teacher"), index)
        before = [*paths[node["question_id"], node["rollout_index"]][: node["position"]], own["forced_token_id"]]
        state, expected = 0, []
        for t, token in enumerate([*before, *own["token_ids"]]):
            if t >= len(before):
                ratio = teacher[t, state] - student[t, state]
                expected.append(ratio[token] - np.sum(np.exp(student[t, state]) * ratio))
            state = following[t, state, token]
        np.testing.assert_allclose(row["centred_log_ratio"], expected, atol=1e-5)  # stored as float32


def test_a_run_may_be_scored_later_and_draws_nothing_again(scored: Run, tmp_path: Path) -> None:
    plain = {**SETTINGS, "targeted": {}}
    first = opdscope.diagnose(plain, run_dir=tmp_path / "run")
    assert first.table("continuation_scores").num_rows == 0
    later = opdscope.diagnose(SETTINGS, run_dir=tmp_path / "run")
    assert later.table("continuations").equals(scored.table("continuations"))
    assert later.table("continuation_scores").equals(scored.table("continuation_scores"))
    assert node_scores(later.tables(), later.config).equals(node_scores(scored.tables(), scored.config))


def test_an_interrupted_scoring_goes_on_where_it_was(scored: Run, tmp_path: Path) -> None:
    run = opdscope.diagnose(SETTINGS, run_dir=tmp_path / "run")
    next(iter(sorted((run.path / "continuation_scores").glob("*.parquet")))).unlink()
    again = opdscope.diagnose(SETTINGS, run_dir=tmp_path / "run")
    assert again.table("continuation_scores").equals(scored.table("continuation_scores"))


def test_single_nodes_come_nearer_to_the_truth(scored: Run) -> None:
    tables, world = scored.tables(), TreeWorld()
    questions = tables["questions"]["question_id"].to_pylist()
    paths = {(r["question_id"], r["rollout_index"]): r["token_ids"] for r in tables["rollouts"].to_pylist()}
    plain = load_config({**SETTINGS, "targeted": {}})
    errors = []
    for config in (plain, scored.config):
        squared = []
        for row in node_scores(tables, config).to_pylist():
            if row["teacher"] == "good teacher":
                index, state = questions.index(row["question_id"]), 0
                for t in range(row["position"]):
                    state = world.next_states()[t, state, paths[row["question_id"], row["rollout_index"]][t]]
                truth = world.node_gains(index, "good", "reverse_kl")[row["position"], state]
                squared.append((row["natural_gain"] - truth) ** 2)
        errors.append(np.mean(squared))
    # this teacher tilts by the exact advantage: it foretells the luck of a continuation to the last digit
    assert errors[1] < 0.01 * errors[0]


MAP: dict[str, Any] = {
    **SETTINGS,
    "teachers": [{"name": f"{name} teacher", "teacher_model_name_or_path": f"exact:{name}"} for name in ("good", "weak")],
    "task": {"kind": "exact", "num_questions": 20, "length": 18},
    "rollouts": {"num_rollouts": 8, "num_demonstrations": 0, "max_completion_length": 19},
    "targeted": {"paths_per_outcome": 1, "nodes_per_path": 4},
    "target": {"kind": "map", "width": 0.12},
}
"""Chains, in which a teacher foretells a part of an outcome's luck."""


def with_controls(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "targeted": {**settings["targeted"], "score_continuations": True}}


def tokens_of(run: Run) -> int:
    return sum(map(len, run.table("continuations")["token_ids"].to_pylist()))


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opdscope.diagnose(with_controls(MAP), run_dir=tmp_path_factory.mktemp("map") / "run")


def test_a_map_with_controls_takes_fewer_tokens_for_intervals_of_the_same_width_that_hold(mapped: Run, tmp_path: Path) -> None:
    plain = opdscope.diagnose(MAP, run_dir=tmp_path / "plain")
    assert tokens_of(mapped) < 0.8 * tokens_of(plain)
    assert mapped.table("forecasts")["tokens"].to_pylist() == [tokens_of(mapped)]  # lengths are certain here, and so is what is foretold
    world, tables = ReasoningWorld(18), mapped.tables()
    questions = tables["questions"]["question_id"].to_pylist()
    paths = {(r["question_id"], r["rollout_index"]): r["token_ids"] for r in tables["rollouts"].to_pylist()}
    spread = {r["node_id"]: r["signal_variance"] for r in tables["node_signals"].to_pylist() if r["teacher"] == "good teacher"}
    narrow, held = [], np.zeros((2, len(questions)))
    for row in node_scores(tables, mapped.config).to_pylist():
        if row["teacher"] == "good teacher" and spread[row["node_id"]] > 1e-6:
            index, state = questions.index(row["question_id"]), 0
            for t in range(row["position"]):
                state = world.next_states()[t, state, paths[row["question_id"], row["rollout_index"]][t]]
            truth = world.node_gains(index, "good", "reverse_kl")[row["position"], state]
            narrow.append(row["natural_gain_high"] - row["natural_gain_low"] <= 1.1 * 0.12 * np.sqrt(spread[row["node_id"]]))
            held[:, index] += row["natural_gain_low"] <= truth <= row["natural_gain_high"], 1
    assert np.mean(narrow) > 0.8  # as without controls: shares of the variance are foretold, one for all nodes
    share = held[0].sum() / held[1].sum()
    # nodes of a question share continuations: a ratio of sums over questions, four standard errors below what is claimed
    error = np.sqrt(np.sum((held[0] - share * held[1]) ** 2)) / held[1].sum()
    assert share >= 0.9 - 4 * error


def test_what_controls_are_foretold_to_leave_does_not_look_at_a_questions_own_outcomes(mapped: Run) -> None:
    tables, config = mapped.tables(), mapped.config
    nodes = read_nodes(tables)
    first = np.minimum(nodes.outcomes.num_verified, 3)

    def kept(continuations: pa.Table) -> np.ndarray:
        own = {**tables, "continuations": continuations}
        return read_foretold_kept(own, nodes.rows, nodes.probs, nodes.is_tail, first, config)

    table = tables["continuations"]
    question = nodes.rows[0]["question_id"]
    mine = np.array([node_id.startswith(f"{question}/") for node_id in table["node_id"].to_pylist()])
    later = table["continuation_index"].to_numpy() >= 3
    other = {"correct": "incorrect", "incorrect": "correct"}

    def turned(which: np.ndarray) -> pa.Table:
        values = [other.get(v, v) if turn else v for v, turn in zip(table["outcome"].to_pylist(), which, strict=True)]
        return table.set_column(table.column_names.index("outcome"), "outcome", pa.array(values, table["outcome"].type))

    found, same = kept(table), np.array([row["question_id"] == question for row in nodes.rows])
    assert np.all((found > 0.2) & (found < 0.9))
    np.testing.assert_array_equal(kept(turned(mine))[same], found[same])
    assert not np.array_equal(kept(turned(mine)), found)  # the other questions did see them
    np.testing.assert_array_equal(kept(turned(later)), found)  # what came after the pilot is not looked at


def test_teachers_that_know_nothing_make_a_map_no_cheaper(tmp_path: Path) -> None:
    random = {**MAP, "teachers": [{"name": "random teacher", "teacher_model_name_or_path": "exact:random"}]}
    plain, controlled = (
        opdscope.diagnose(settings, run_dir=tmp_path / name)
        for name, settings in (("plain", random), ("controlled", with_controls(random)))
    )
    # the jackknife draws the share to one unless it is two errors away: nothing is promised that is not there
    assert 0.95 * tokens_of(plain) <= tokens_of(controlled) <= tokens_of(plain)


def test_the_summary_and_the_plan_say_what_it_costs(scored: Run) -> None:
    tables = scored.tables()
    drawn = sum(map(len, tables["continuations"]["token_ids"].to_pylist()))
    with_scores, without = (
        summarize(own, scored.config).data["spent"]["scored_tokens"]
        for own in (tables, {**tables, "continuation_scores": tables["continuation_scores"].slice(0, 0)})
    )
    assert with_scores - without == 3 * drawn  # the student and two teachers
    stages = {stage.name: stage for stage in make_plan(SETTINGS, measure=False).stages}
    assert stages["scoring of continuations"].expected_tokens == 3 * stages["continuations"].expected_tokens
    assert "scoring of continuations" not in {stage.name for stage in make_plan({**SETTINGS, "targeted": {}}, measure=False).stages}


def test_tokens_read_with_the_prompt_change_no_number() -> None:
    """On a real transformer: a continuation's rows are the same whether its path is read with it or before it."""
    teacher = {"name": "teacher", "teacher_model_name_or_path": "embedded:chain-teacher"}
    student = {"model_name_or_path": "embedded:chain-student-weak"}
    config = load_config({"student": student, "teachers": [teacher], "task": {"kind": "chain", "num_questions": 1}})
    model, teachers = load_models(config)
    parts: dict[str, Any] = {"config": config, "student": model, "teachers": teachers, "temperature": 1.0, "watcher": Silent()}
    experiment: Any = SimpleNamespace(**parts, student_prompts={"q": (1, 2, 3)})
    tokens = tuple(np.random.default_rng(0).integers(4, 20, size=12).tolist())
    found = []
    for shared in (0, 5):
        response = Response("q", 0, tokens, (6, 7, 11), shared)
        scores = Scores(experiment, [response], {("teacher", "q"): (1, 2, 3, 4)})
        (chunk,) = scores.chunks("q")
        ((_, rows),) = chunk.teachers
        found.append(np.stack([np.asarray(chunk.student), np.asarray(rows)]))
    np.testing.assert_allclose(found[0], found[1], atol=2e-5)  # float32
