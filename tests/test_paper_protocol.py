"""The preset `protocol: paper` as a whole: what it chooses and spends, that it resumes, and what its section of the summary says."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opdscope
from opdscope.config import Config, load_config
from opdscope.core.paper import depth_windows
from opdscope.errors import ConfigError
from opdscope.models.exact import ReasoningWorld
from opdscope.pipeline import make_plan
from opdscope.records import Role
from opdscope.report import render_summary, write_report
from opdscope.store import Run
from opdscope.summary.nodes import read_nodes
from opdscope.summary.visits import read_tree

TEACHERS = ("good", "harmful", "itself")
SMALL: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "teachers": [{"name": name, "teacher_model_name_or_path": f"exact:{name}"} for name in TEACHERS],
    "task": {"kind": "exact", "num_questions": 5, "length": 24, "spacing": 4, "seed": 3},
    "rollouts": {"num_rollouts": 40, "num_demonstrations": 1, "max_completion_length": 32},
    "protocol": "paper",
    "paper": {"visits": 30, "first_window": 5, "top_gradient": 2, "top_difference": 1},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opdscope.diagnose(SMALL, run_dir=tmp_path_factory.mktemp("finished") / "run")


def section(run: Run, config: Config | None = None) -> dict[str, Any]:
    return opdscope.summarize(run.tables(), config or run.config).data["paper"]


def test_choices_keep_to_their_windows_and_a_teacher_that_is_the_student_chooses_nothing(finished: Run) -> None:
    choices = finished.table("choices").to_pylist()
    positions = {row["node_id"]: row["position"] for row in finished.table("nodes").to_pylist()}
    assert {row["teacher"] for row in choices} == {"good", "harmful"}
    window = depth_windows(25, 5)
    assert all(row["window"] == window[positions[row["node_id"]]] for row in choices)
    spent = Counter((row["teacher"], row["question_id"], row["rollout_index"], row["window"]) for row in choices)
    assert max(spent.values()) <= 2 + 1
    assert Counter(len({r["rollout_index"] for r in choices if r["question_id"] == q}) for q in {r["question_id"] for r in choices}) == {
        4: 5
    }


def test_the_largest_gradients_of_a_window_are_chosen(finished: Run) -> None:
    """Against the world's own tables: no unchosen token of the path's window has a larger gradient than the largest that was chosen."""
    world = ReasoningWorld(24, 4, 3)
    question, rollout = next((r["question_id"], r["rollout_index"]) for r in finished.table("choices").to_pylist())
    (tokens,) = (
        r["token_ids"] for r in finished.table("rollouts").to_pylist() if (r["question_id"], r["rollout_index"]) == (question, rollout)
    )
    number, state, following = int(question.rsplit("-", 1)[1]), 0, world.next_states()
    student, teacher, pairs = world.student(number), world.teacher("good", number), {}
    for position, token in enumerate(tokens):
        p, q = np.exp(student[position, state]), np.exp(teacher[position, state])
        signal = teacher[position, state] - student[position, state]
        gradient = p * (signal - np.sum(p * signal))
        pairs |= {(position, j): abs(gradient[j]) for j in range(len(p)) if max(p[j], q[j]) > 0.02}
        state = following[position, state, token]
    positions = {row["node_id"]: row["position"] for row in finished.table("nodes").to_pylist()}
    own = [
        r
        for r in finished.table("choices").to_pylist()
        if (r["question_id"], r["rollout_index"], r["teacher"]) == (question, rollout, "good")
    ]
    window = depth_windows(25, 5)
    for depth in {row["window"] for row in own}:
        largest = max((place for place in pairs if window[place[0]] == depth), key=lambda place: round(pairs[place], 5))
        assert largest in {(positions[row["node_id"]], row["token_id"]) for row in own}


def test_each_chosen_token_is_brought_to_its_visits_and_shared_nodes_are_stored_once(finished: Run) -> None:
    rollouts = [row for row in finished.table("rollouts").to_pylist() if row["role"] == Role.MEASURED]
    tokens = {(row["question_id"], row["rollout_index"]): row["token_ids"] for row in rollouts}
    nodes = {row["node_id"]: row for row in finished.table("nodes").to_pylist()}
    prefixes = [(n["question_id"], *tokens[n["question_id"], n["rollout_index"]][: n["position"]]) for n in nodes.values()]
    assert len(set(prefixes)) == len(prefixes)
    assert all(np.isnan(node["inclusion"]) for node in nodes.values())
    chosen = {(row["node_id"], row["token_id"]) for row in finished.table("choices").to_pylist()}
    for row in finished.table("strata").to_pylist():
        node = nodes[row["node_id"]]
        child = [*tokens[node["question_id"], node["rollout_index"]][: node["position"]], row["token_id"]]
        seen = sum(r["question_id"] == node["question_id"] and r["token_ids"][: len(child)] == child for r in rollouts)
        ends = not np.isnan(row["terminal"])
        expected = max(30 - seen, 0) if (row["node_id"], row["token_id"]) in chosen and not ends else 0
        assert row["forced_token_ids"] == [row["token_id"]] * expected


def test_the_tree_counts_every_response_wherever_it_was_forced(finished: Run) -> None:
    tables = finished.tables()
    nodes, settings = read_nodes(tables), finished.config.paper
    assert settings is not None
    tree = read_tree(tables, nodes, settings)
    rollouts = {(r["question_id"], r["rollout_index"]): r for r in tables["rollouts"].to_pylist() if r["role"] == Role.MEASURED}
    rows = {row["node_id"]: row for row in nodes.rows}
    responses = [(r["question_id"], r["token_ids"], r["outcome"]) for r in rollouts.values()]
    for c in tables["continuations"].to_pylist():
        node = rows[c["node_id"]]
        prefix = rollouts[node["question_id"], node["rollout_index"]]["token_ids"][: node["position"]]
        responses.append((node["question_id"], [*prefix, c["forced_token_id"], *c["token_ids"]], c["outcome"]))
    index_of = {row["node_id"]: i for i, row in enumerate(nodes.rows)}
    more = 0
    for row in tables["strata"].to_pylist()[:60]:
        node, i = rows[row["node_id"]], index_of[row["node_id"]]
        if row["token_id"] >= 0 and np.isnan(row["terminal"]):
            child = [*rollouts[node["question_id"], node["rollout_index"]]["token_ids"][: node["position"]], row["token_id"]]
            through = [outcome == "correct" for q, own, outcome in responses if q == node["question_id"] and own[: len(child)] == child]
            assert tree.visits[i, row["stratum"]] == len(through)
            if through:
                assert tree.success[i, row["stratum"]] == pytest.approx(np.mean(through), rel=1e-12)
            more += len(through) > 40 + 30
    assert more > 0, "no token was visited by what was forced below it: the test would show nothing"
    assert tree.half_verified.sum() == tables["continuations"].num_rows


def test_the_section_has_the_papers_numbers_beside_sound_ones(finished: Run) -> None:
    data = section(finished)
    teachers = {teacher["name"]: teacher for teacher in data["teachers"]}
    assert set(teachers) >= {*TEACHERS, "sharpened", "flattened", "random logits"}
    for paths in ("all", "correct", "incorrect"):
        good, harmful = teachers["good"]["paths"][paths], teachers["harmful"]["paths"][paths]
        assert good["paper"]["mean_cosine"]["value"] > 0 > harmful["paper"]["mean_cosine"]["value"]
        assert good["sound"]["mean_score"]["value"] > 0 > harmful["sound"]["mean_score"]["value"]
        assert good["paper"]["oracle_filter"]["value"] >= good["paper"]["mean_cosine"]["value"]
        assert 0 < good["paper"]["num_scored"] <= good["paper"]["num_nodes"]
    counts = [teachers["good"]["paths"][paths]["paper"]["num_nodes"] for paths in ("all", "correct", "incorrect")]
    assert counts[0] == counts[1] + counts[2]
    assert teachers["itself"]["paths"]["all"]["paper"]["num_nodes"] > 0  # it chose nothing and is measured where others chose
    assert teachers["itself"]["paths"]["all"]["paper"]["num_scored"] == 0
    assert opdscope.summarize(finished.tables(), finished.config).data["targeted"] is None


def test_nodes_that_lie_on_several_paths_are_never_backed_up(finished: Run) -> None:
    analysis = finished.config.analysis.model_copy(update={"back_up": False})
    without = finished.config.model_copy(update={"analysis": analysis})
    tables = finished.tables()
    assert finished.config.analysis.back_up
    assert opdscope.summarize(tables, finished.config).to_json() == opdscope.summarize(tables, without).to_json()


def test_a_second_run_repeats_no_finished_work_and_an_interrupted_one_ends_alike(finished: Run, tmp_path: Path) -> None:
    again = opdscope.diagnose(SMALL, run_dir=tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in again.path.rglob("*.parquet")}
    opdscope.diagnose(SMALL, run_dir=again.path, overrides=["paper.min_visits=25"])
    assert {path: path.stat().st_mtime_ns for path in again.path.rglob("*.parquet")} == before
    # torn within the last two stages: choices are written, nodes are not, and only the first continuations are
    for part in [*(again.path / "nodes").glob("*.parquet"), *sorted((again.path / "continuations").glob("*.parquet"))[1:]]:
        part.unlink()
    resumed = opdscope.diagnose(SMALL, run_dir=again.path)
    for name, table in finished.tables().items():
        # as text, in which an undefined number equals itself
        assert json.dumps(resumed.table(name).to_pylist()) == json.dumps(table.to_pylist()), name
    assert section(resumed) == section(finished)


def test_an_unfinished_run_has_a_summary(finished: Run) -> None:
    tables = finished.tables()
    part = {**tables, "continuations": tables["continuations"].slice(0, 400)}
    assert 0 < opdscope.summarize(part, finished.config).data["paper"]["num_nodes"] < section(finished)["num_nodes"]
    screened = {name: table if name not in ("choices", "nodes", "strata") else table.slice(0, 0) for name, table in tables.items()}
    assert opdscope.summarize(screened, finished.config).data["paper"] is None


def test_analysis_settings_change_what_is_kept_without_sampling(finished: Run) -> None:
    stricter = load_config(finished.config, ["paper.min_visits=30", "paper.min_children=3"])
    assert stricter.identity() == finished.config.identity()
    before, after = (
        data["teachers"][0]["paths"]["all"]["paper"]["num_scored"] for data in (section(finished), section(finished, stricter))
    )
    assert after < before


def test_the_command_line_prints_the_section(finished: Run) -> None:
    command = [sys.executable, "-m", "opdscope.cli", "summary", str(finished.path)]
    shown = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    assert json.loads(shown.stdout)["paper"] == section(finished)
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "The source paper's protocol" in text
    assert render_summary(opdscope.summarize(finished.tables(), finished.config).data)


def test_the_plan_is_an_upper_bound_of_what_is_spent(finished: Run) -> None:
    plan = {stage.name: stage for stage in make_plan(SMALL, run_dir=finished.path, measure=False).stages}
    lengths = [len(row) for row in finished.table("continuations")["token_ids"].to_pylist()]
    assert plan["continuations, at most"].num_samples >= len(lengths)
    assert plan["continuations, at most"].expected_tokens >= sum(lengths)


def test_the_preset_fills_in_its_own_defaults_and_leaves_what_the_user_set() -> None:
    plain = {**SMALL, "paper": None, "rollouts": {}}
    assert load_config(plain).rollouts.num_rollouts == 200
    assert load_config(plain).paper is not None
    assert load_config({**plain, "rollouts": {"num_rollouts": 40}}).rollouts.num_rollouts == 40
    default = load_config({**plain, "protocol": "default"})
    assert default.paper is None
    assert default.rollouts.num_rollouts == 16
    assert load_config(load_config(SMALL)) == load_config(SMALL)
    assert load_config(default) == default


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"protocol": "default"}, "add `protocol: paper`, or remove them"),
        ({"protocol": "papier"}, "protocol"),
        ({"targeted": {"nodes_per_path": 3}}, "use the section `paper`"),
        ({"objectives": ["forward_kl"]}, "add reverse_kl"),
        ({"paper": {"visit": 3}}, "did you mean 'visits'"),
        ({"paper": {"visits": 10}}, "no chosen token would be kept"),
        ({"paper": {"top_gradient": 0, "top_difference": 0}}, "no token would be chosen"),
        ({"rollouts": 3}, "rollouts"),
    ],
)
def test_a_users_error_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config({**SMALL, **changes})


def test_the_report_shows_the_papers_numbers_beside_sound_ones(finished: Run, tmp_path: Path) -> None:
    text = write_report(finished, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The source paper’s numbers" in text
    matched = {row["teacher"] for row in finished.table("nulls").to_pylist() if row["matched_teacher"]}
    for teacher in (t for t in section(finished)["teachers"] if t["name"] not in matched):
        for value in (
            teacher["paths"]["correct"]["paper"]["mean_cosine"]["value"],
            teacher["paths"]["all"]["sound"]["mean_score"]["value"],
        ):
            assert value is None or f'data-value="{value}"' in text
