"""The models that ship with the package: small, complete, loadable without a network, and as good as their cards say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import opdscope
from opdscope.config import CONTEXTS, EmbeddedTaskConfig
from opdscope.records import Outcome
from opdscope.tasks import load_task
from opdscope.tasks.embedded import EMBEDDED
from opdscope.tasks.verifiers import build_verifier

MODELS = Path(opdscope.__file__).parent / "data" / "models"
NAMES = [f"{task}-{role}" for task in ("addition", "chain") for role in ("student-strong", "student-weak", "teacher")]
CHARACTERS = "0123456789+-*=;>:QAS "


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def card(name: str) -> dict[str, Any]:
    return json.loads((MODELS / name / "card.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "chain-teacher")


def test_the_shipped_models_are_these():
    assert sorted(path.name for path in MODELS.iterdir() if path.is_dir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_complete_and_small(name: str):
    sizes = {path.name: path.stat().st_size for path in (MODELS / name).iterdir()}
    assert sorted(sizes) == [
        "card.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(sizes.values()) < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_model_loads_as_float32_with_tied_embeddings_and_the_shared_vocabulary(name: str):
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() == card(name)["parameters"]
    vocabulary = AutoTokenizer.from_pretrained(MODELS / name).get_vocab()
    assert vocabulary == {token: index for index, token in enumerate(["<pad>", "</s>", *CHARACTERS])}
    assert model.config.vocab_size == len(vocabulary)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (vocabulary["</s>"], vocabulary["<pad>"])


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_was_measured_and_meets_its_target(name: str):
    facts = card(name)
    assert facts["name"] == name
    assert set(facts["success"]) == {"plain", "answer", "solution", "unrelated_solution"}
    assert facts["questions_measured"] >= 2_000
    assert facts["max_completion_length"] == EMBEDDED[facts["task"]].max_completion_length
    if name.endswith("teacher"):
        assert facts["success"]["plain"] >= 0.95
    else:
        assert facts["success"]["plain"] == pytest.approx({"weak": 0.45, "strong": 0.65}[name.rpartition("-")[2]], abs=0.05)


@pytest.mark.parametrize("task", ["addition", "chain"])
def test_students_and_teacher_of_a_task_were_trained_independently(task: str):
    cards = [card(name) for name in NAMES if name.startswith(task)]
    assert len({facts["seed"] for facts in cards}) == 3
    teacher, students = cards[2], cards[:2]
    assert all(teacher["hidden_size"] != student["hidden_size"] for student in students)


@given(text=st.text(CHARACTERS))
def test_text_survives_the_tokenizer_one_token_a_character(tokenizer: Any, text: str):
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_a_character_that_no_model_knows_is_an_error_and_not_left_out(tokenizer: Any):
    with pytest.raises(Exception, match="WordLevel error"):
        tokenizer.encode("5*8?")


@pytest.mark.parametrize("kind", ["addition", "chain"])
def test_every_prompt_and_solution_of_a_task_can_be_encoded(tokenizer: Any, kind: Any):
    task = load_task(EmbeddedTaskConfig(kind=kind, num_questions=50))
    for question in task.questions:
        solution = EMBEDDED[kind].worked_solution(question.text)
        for context in CONTEXTS:
            template: str | None = getattr(task.prompt_format, context)
            if template is None:
                continue
            prompt = template.replace("{question}", question.text).replace("{answer}", question.answer).replace("{solution}", solution)
            assert tokenizer.decode(tokenizer.encode(prompt + solution)) == prompt + solution


@pytest.mark.parametrize("name", ["addition-student-strong", "chain-student-weak", "chain-teacher"])
def test_success_measured_here_agrees_with_the_card(tokenizer: Any, name: str):
    facts, num_questions = card(name), 300
    task = load_task(EmbeddedTaskConfig(kind=facts["task"], num_questions=num_questions, seed=99))
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)
    prompts = tokenizer([f"Q{question.text}:" for question in task.questions], return_tensors="pt", padding=True)
    set_seed(0)
    sampled = model.generate(**prompts, max_new_tokens=facts["max_completion_length"])[:, prompts["input_ids"].shape[1] :]
    responses = tokenizer.batch_decode(sampled, skip_special_tokens=True)
    verify = build_verifier(task.verifier)
    outcomes = [verify(response, q.answer, q.metadata) for response, q in zip(responses, task.questions, strict=True)]
    share, expected = outcomes.count(Outcome.CORRECT) / num_questions, facts["success"]["plain"]
    error = math.sqrt(expected * (1 - expected) * (1 / num_questions + 1 / facts["questions_measured"]))
    assert abs(share - expected) < 4 * error  # one run in 16,000 would fail by chance
