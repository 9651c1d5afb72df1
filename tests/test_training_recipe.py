"""Recipes applied to a real trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fixtures.training import NOISE, arguments, chain_rows, model, right_answer, tokenizer
from opdscope.advice import LoadedRecipe, Recipe, load_recipe, write_recipe
from opdscope.advice.files import TABLES
from opdscope.core.schedule import Schedule
from opdscope.errors import RecipeError, TrainingError
from opdscope.models.vocabulary import tokenizer_hash
from opdscope.store import open_training_log
from opdscope.training import MonitoredDistillationTrainer, next_contexts, open_recipe, recipe_settings, watch
from opdscope.training.curriculum import curriculum_order, question_number

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

NUMBER = {"value": 0.2, "low": 0.1, "high": 0.3}
IDS = [f"chain-0-{index:05d}" for index in range(64)]


def written(folder: Path, **changes: Any) -> Path:
    """A recipe that uses everything: token bins by depth, weights of two questions, two batches."""
    own = tokenizer()
    student = {
        "model_name_or_path": "embedded:chain-student-weak", "fingerprint": None,
        "tokenizer_hash": tokenizer_hash(own.get_vocab(), own.all_special_ids),
    }  # fmt: skip
    teacher = {
        **student, "name": "self + answer", "self_distillation": True, "privileged_context": "answer", "prompt": "A{answer} Q{question}:",
        "objective": "forward_kl", "example": "", "gain_over_null": NUMBER, "verdict": "helps",
    }  # fmt: skip
    evidence = {"use": True, "improvement": NUMBER, "reason": "a test"}
    recipe = Recipe.model_validate({
        "opdscope": "0", "run": "test", "kind": "distil", "text": "Use it.", "confidence": 0.9, "student": student, "teacher": teacher,
        "objective": "forward_kl", "criterion": "gain", "temperature": 1.0, "max_completion_length": 48,
        "schedule": {"start_success": 0.4, "start_gain": 0.2}, "outcome_weights": {"correct": 0.5},
        "outcome_weighting": evidence, "token_weighting": {**evidence, "feature": "depth"}, "question_weighting": evidence,
        "order_reliability": 0.5, "files": {}, **changes,
    })  # fmt: skip
    questions = [
        {"question_id": key, "question": "", "place": place, "batch": -1 if place == 63 else place // 32, "held_back": place == 63,
         "weight": 3.0 if place < 2 else 1.0, "success": 0.5, "gain": 0.1, "gain_sd": 0.1}
        for place, key in enumerate(IDS)
    ]  # fmt: skip
    bins = [
        {"feature": "depth", "low": low, "high": high, "weight": weight, "share_of_tokens": 0.5, "share_of_push": 0.5, "gain": 0.1,
         "gain_low": 0.0, "gain_high": 0.2}
        for low, high, weight in ((-np.inf, 10.0, 2.0), (10.0, np.inf, 0.25))
    ]  # fmt: skip
    rows = {"questions.parquet": questions, "token_weights.parquet": bins}
    write_recipe(folder, recipe, {name: pa.Table.from_pylist(values, schema=TABLES[name]) for name, values in rows.items()})
    return folder


def data() -> Any:
    rows = chain_rows(64)
    return rows.add_column("teacher_answer", rows["told"])


def opened(folder: Path, **changes: Any) -> LoadedRecipe:
    return open_recipe(written(folder, **changes), tokenizer(), arguments(folder))


def test_a_recipe_sets_objective_context_weights_order_and_schedule(tmp_path: Path):
    loaded, seen = opened(tmp_path / "recipe"), []
    assert loaded.recipe.schedule is not None
    run = MonitoredDistillationTrainer(
        model("chain-student-weak"), model("chain-teacher"), args=arguments(tmp_path / "trl", max_steps=4), train_dataset=data(),
        processing_class=tokenizer(), reward_func=right_answer, observers=[lambda *pair: seen.append(pair)], **recipe_settings(loaded, data()),
    )  # fmt: skip
    watch(run, tmp_path / "log", every=1, schedule=loaded.recipe.schedule.build(), keep_best=False)
    assert (run.objective, run.context) == ("forward_kl", "answer")
    run.train()
    asked = [{run.question_ids[int(number)] for number in rows.questions} for rows, _ in seen]
    assert all(batch <= set(IDS[:32]) for batch in asked[:2])
    assert all(batch <= set(IDS[32:63]) for batch in asked[2:])
    heavy = torch.tensor([question_number({"question_id": key}) for key in IDS[:2]])
    for rows, weights in seen:
        per_row = torch.where(torch.isin(rows.questions, heavy), 3.0, 1.0) * torch.where(rows.outcomes == 1, 0.5, 1.0)
        torch.testing.assert_close(weights, per_row[rows.row] * torch.where(rows.position < 10, 2.0, 0.25))


def test_the_schedule_takes_the_weight_from_success_and_gain(tmp_path: Path):
    run = MonitoredDistillationTrainer(
        model("chain-student-weak"), model("chain-teacher"), args=arguments(tmp_path / "trl", max_steps=4, per_device_train_batch_size=64),
        train_dataset=data(), processing_class=tokenizer(), reward_func=right_answer,
    )  # fmt: skip
    callback = watch(run, tmp_path / "log", every=1, schedule=Schedule(0.1, 0.01, ceiling=1.0), keep_best=False)
    run.train()
    stored = open_training_log(tmp_path / "log").table("training_steps").to_pylist()
    # the weight is what the evaluation before it made of success: the gain is far above the one of the beginning
    room = 1 - callback.monitor.reading().success
    assert run.distillation_weight == pytest.approx(room / 0.9) or stored[-1]["gain_over_null"] < 0.01
    assert stored[0]["distillation_weight"] == 1.0
    rule = {"name": "r", "series": "success", "below": 0.9, "evaluations": 1, "then": {"action": "lower_weight"}}
    with pytest.raises(TrainingError, match="leave out one of them"):
        watch(run, tmp_path / "log", schedule=Schedule(0.1, 0.1), rules={"every": 1, "least_rollouts": 0, "rules": [rule]})


def test_the_schedule_is_a_factor_of_the_weight_that_the_run_begins_with(tmp_path: Path):
    run = MonitoredDistillationTrainer(
        model("chain-student-weak"), model("chain-teacher"), args=arguments(tmp_path / "trl", max_steps=5, per_device_train_batch_size=64),
        train_dataset=data(), processing_class=tokenizer(), reward_func=right_answer, distillation_weight=0.25,
    )  # fmt: skip
    # success and gain of the beginning so low that neither factor is below 1 unless the gain is gone
    watch(run, tmp_path / "log", every=1, schedule=Schedule(0.99, 1e-6, ceiling=1.0), keep_best=False)
    run.train()
    assert run.distillation_weight in (0.25, 0.0)


def test_alternatives_are_the_contexts_to_go_to(tmp_path: Path):
    written(tmp_path)
    whole = load_recipe(tmp_path)
    teacher = whole.recipe.teacher
    assert teacher is not None
    others = [
        teacher.model_copy(update={"privileged_context": name, "model_name_or_path": path})
        for name, path in (("solution", teacher.model_name_or_path), ("answer", teacher.model_name_or_path), ("hint", "another model"))
    ]
    found = LoadedRecipe(whole.path, whole.recipe.model_copy(update={"alternatives": tuple(others)}), whole.questions, whole.token_weights)
    assert next_contexts(found) == ("solution",)
    settings = recipe_settings(found, data().add_column("teacher_solution", data()["told"]))
    assert (settings["context"], list(settings["teacher_prompts"])) == ("answer", ["answer", "solution"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.7}, "measured at temperature 0.7, and the trainer samples at 1"),
        ({"kind": "none", "teacher": None, "objective": None, "schedule": None}, "the recipe says 'none', there is nothing to apply"),
    ],
)
def test_a_recipe_that_does_not_fit_the_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(TrainingError, match=message):
        opened(tmp_path, **changes)


def test_a_recipe_for_another_tokenizer_is_refused(tmp_path: Path):
    written(tmp_path)
    assert load_recipe(tmp_path).recipe.kind == "distil"
    other = tokenizer()
    other.add_tokens(["<new>"])
    with pytest.raises(RecipeError, match="has another one"):
        open_recipe(tmp_path, other, arguments(tmp_path))


def test_data_that_the_recipe_does_not_know_are_refused(tmp_path: Path):
    loaded = opened(tmp_path)
    with pytest.raises(TrainingError, match="no column 'teacher_answer' with its prompt"):
        recipe_settings(loaded, chain_rows(4))
    with pytest.raises(TrainingError, match="no column 'question_id'"):
        recipe_settings(loaded, data().remove_columns("question_id"))
    with pytest.raises(TrainingError, match="none of them is in the data set"):
        recipe_settings(loaded, data().map(lambda row: {"question_id": "x" + row["question_id"]}))


def test_a_curriculum_gives_every_batch_its_share_and_leaves_out_the_rest():
    order = curriculum_order(list("abcdab"), [["a", "b"], ["c"]], 10, seed=1)
    assert len(order) == 10
    assert sorted(order[:4]) == [0, 1, 4, 5]
    assert set(order[5:]) == {2}
    assert order == curriculum_order(list("abcdab"), [["a", "b"], ["c"]], 10, seed=1)
    with pytest.raises(TrainingError, match="batch 2 of the curriculum has no question"):
        curriculum_order(["a"], [["a"], ["z"]], 4, seed=0)
