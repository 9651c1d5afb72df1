"""Nodes drawn further after the pilot: within the budget, resumable, and decided without a look at the outcomes that they are to measure."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opdscope
from opdscope.config import load_config
from opdscope.errors import ConfigError
from opdscope.pipeline import rounds
from opdscope.store import Run
from opdscope.summary.nodes import read_nodes

CONFIG: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "teachers": [{"name": "weak teacher", "teacher_model_name_or_path": "exact:weak"}],
    "task": {"kind": "exact", "num_questions": 4, "length": 18},
    "objectives": ["reverse_kl"],
    "rollouts": {"num_rollouts": 8, "num_demonstrations": 0, "max_completion_length": 19},
    "targeted": {"paths_per_outcome": 1, "nodes_per_path": 3},
    "target": {"kind": "tokens", "tokens": 20_000, "rounds": 2, "expand": True},
}
STORED = ("nodes", "strata", "node_signals", "draws", "rounds", "continuations")


@pytest.fixture(scope="module")
def expanded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opdscope.diagnose(CONFIG, run_dir=tmp_path_factory.mktemp("expansion") / "run")


def test_a_large_budget_buys_further_nodes_and_is_kept(expanded: Run) -> None:
    draws = expanded.table("draws").to_pylist()
    assert max(row["num_draws"] for row in draws) > 1
    spent = sum(len(row) for row in expanded.table("continuations")["token_ids"].to_pylist())
    assert 20_000 - 3 * 19 <= spent <= 20_000
    nodes = read_nodes(expanded.tables())
    assert len(nodes.rows) == expanded.table("nodes").num_rows > 4 * 2 * 3


def test_nodes_of_several_draws_weigh_as_those_of_one_for_what_they_have_in_common(expanded: Run) -> None:
    rows, first = read_nodes(expanded.tables()).rows, {row["node_id"]: row for row in expanded.table("nodes").to_pylist()}
    for draw in expanded.table("draws").to_pylist():
        stored = first[draw["node_id"]]["inclusion"]
        times = draw["num_draws"] * stored / draw["inclusion"]
        further = stored == draw["inclusion"]  # a node of a later draw is stored with what all draws make of it
        assert further or round(times) == pytest.approx(times)
    paths: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        paths.setdefault((row["question_id"], row["rollout_index"]), []).append(row["position"])
    for positions in paths.values():
        assert positions == sorted(set(positions))


@pytest.mark.parametrize("lost", ["draws", "nodes", "rounds"])
def test_a_run_that_ends_while_it_expands_goes_on_as_if_undisturbed(expanded: Run, lost: str, tmp_path: Path) -> None:
    shutil.copytree(expanded.path, tmp_path / "run")
    later = STORED[STORED.index("rounds") :]
    for name in STORED:
        for part in (tmp_path / "run" / name).glob("*.parquet"):
            further = part.stem.startswith("further-") and lost in ("draws", "nodes")
            half = lost == "nodes" and name == "strata"  # they are stored before the nodes that finish a unit
            decided = name == "draws" and lost == "draws"
            if (further and not half) or decided or (name in later and part.stem >= "001"):
                part.unlink()
    again = opdscope.diagnose(CONFIG, run_dir=tmp_path / "run")
    for name in STORED:
        assert repr(again.table(name).to_pylist()) == repr(expanded.table(name).to_pylist()), name  # a NaN equals no other


def test_how_often_nodes_are_drawn_at_a_question_does_not_depend_on_its_outcomes(
    expanded: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(expanded.path, tmp_path / "run")
    for name in STORED:
        for part in (tmp_path / "run" / name).glob("*.parquet"):
            if part.stem.startswith("further-") or name == "draws" or (name in ("rounds", "continuations") and part.stem >= "001"):
                part.unlink()
    pilot = Run(tmp_path / "run", expanded.config)
    draws = rounds.Rounds(pilot, pilot.config).draws()
    stored = {row["question_id"]: row["num_draws"] for row in expanded.table("draws").to_pylist()}
    assert {q: count for q, count in draws.items() if count > 1} == stored
    plain = rounds.Rounds._pilot_outcomes
    for question in draws:

        def without(self: rounds.Rounds, question: str = question) -> Any:
            found = plain(self)
            own = np.array([row["question_id"] == question for row in self._rows])
            found.num_correct[own] = found.num_verified[own] - found.num_correct[own]
            found.num_correct[~own] = found.num_correct[~own] * 0  # where nothing succeeds, nothing differs
            return found

        monkeypatch.setattr(rounds.Rounds, "_pilot_outcomes", without)
        assert rounds.Rounds(pilot, pilot.config).draws()[question] == 1


def test_where_every_position_is_a_node_there_is_nothing_to_expand(tmp_path: Path) -> None:
    config = {**CONFIG, "task": {"kind": "exact", "world": "tree", "num_questions": 4}, "targeted": {"paths_per_outcome": 1}}
    config["target"] = {**CONFIG["target"], "tokens": 3_000}
    run = opdscope.diagnose(config, run_dir=tmp_path / "run")
    assert run.table("draws").num_rows == 0
    plain = opdscope.diagnose({**config, "target": {**config["target"], "expand": False}}, run_dir=tmp_path / "plain")
    assert run.table("continuations").equals(plain.table("continuations"))


def test_other_targets_have_nothing_to_expand() -> None:
    with pytest.raises(ConfigError, match="has no expand"):
        load_config({**CONFIG, "target": {"kind": "map", "expand": True}})
