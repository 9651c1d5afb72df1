"""The same question on a real small language model, reduced: SmolLM2-135M on additions, five teachers, few steps, few held-out questions."""

import itertools
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from record_names import REAL
from run_records import Records
from short_training import arguments
from transformers import AutoModelForCausalLM, AutoTokenizer

import opdscope
from opdscope.config import PromptFormat, ReasoningGymTaskConfig
from opdscope.contexts import fill
from opdscope.core.randomness import derive_seed
from opdscope.models.base import SampleRequest
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers import load_language_model
from opdscope.records import Question
from opdscope.summary import summarize
from opdscope.tasks import load_task
from opdscope.training.distillation import MonitoredDistillationTrainer, self_teacher

STEPS, BATCH, RATE, LENGTH, SEEDS = 6, 32, 2e-5, 32, (0, 1, 2)
HELD_OUT, _PREDICTION_QUESTIONS, _PREDICTION_ROLLOUTS = 512, 48, 8
SHARPENED, FLATTENED = 0.7, 1.4
TEACHERS: Mapping[str, tuple[str, float]] = {
    "self + solution": ("reference_solution", 1.0),
    "flattened": ("plain", FLATTENED),
    "self + answer": ("answer", 1.0),
    "sharpened": ("plain", SHARPENED),
    "self + unrelated": ("unrelated_solution", 1.0),
}
"""Context and temperature of the teacher, which is the student as it was; all by reverse KL."""
_END = "Show the calculation and end with the result."
PROMPTS = PromptFormat(
    plain=f"{{question}}\n{_END}",
    answer=f"{{question}}\nThe correct result is {{answer}}.\n{_END}",
    reference_solution=f"{{question}}\nA correct solution: {{solution}}\n{_END}",
    unrelated_solution=f"{{question}}\nA correct solution of another problem: {{solution}}\n{_END}",
)
_TASK = ReasoningGymTaskConfig(
    kind="reasoning_gym", dataset="basic_arithmetic", seed=11, num_questions=2600,
    options={
        "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2, "operators": ["+"], "allow_parentheses": False, "allow_negation": False
    },
)  # fmt: skip


def run_real_model(records: Records, work: Path, predictions: Path, go_on: Callable[[], bool]) -> None:
    """Predict, then train what has no record yet, seed by seed."""
    folder = _model_folder(work)
    if not predictions.exists():
        predictions.write_text(json.dumps(_predict(folder, work), indent=0) + "\n", encoding="utf-8")
    for seed in SEEDS:
        for teacher in TEACHERS:
            key = f"{REAL} | {teacher} | {seed}"
            if key not in records:
                if not go_on():
                    return
                found = _train(folder, teacher, seed)
                records.add(REAL, key, {"teacher": teacher, "seed": seed, **found})
                print(f"{key}: {found['change']:+.3f} in {found['training_seconds']:.0f} s", flush=True)


def _model_folder(work: Path) -> Path:
    """SmolLM2 as an ordinary model folder; it comes as a quantised file."""
    folder = work / "smollm2"
    if not (folder / "config.json").exists():
        source = Path(resolve_model("packaged:smollm2"))
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
        model.hf_quantizer = None
        del model.config.quantization_config
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


@cache
def _questions() -> tuple[Question, ...]:
    """Distinct questions, each with a worked solution: those of the prediction first, then the held-out ones, then the trained ones."""
    found: dict[str, Question] = {}
    for question in load_task(_TASK).questions:
        terms = re.findall(r"\d+", question.text)
        found.setdefault(
            question.text,
            Question(question.question_id, question.text, question.answer, solution=f"{' + '.join(terms)} = {question.answer}"),
        )
    return tuple(found.values())


def _predict(folder: Path, work: Path) -> dict[str, dict[str, float]]:
    path = work / "additions.jsonl"
    rows = [{"question": q.text, "answer": q.answer, "solution": q.solution} for q in _questions()[:_PREDICTION_QUESTIONS]]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    config = {
        "student": {"model_name_or_path": str(folder)}, "objectives": ["reverse_kl"],
        "teachers": [{"name": name, "privileged_context": context} for name, (context, heat) in TEACHERS.items() if heat == 1.0],
        "task": {"kind": "jsonl", "path": str(path), "solution_field": "solution", "answer_pattern": r"(-?\d+)"},
        "prompt": PROMPTS.model_dump(), "nulls": {"sharpened": SHARPENED, "flattened": FLATTENED},
        "rollouts": {
            "num_rollouts": _PREDICTION_ROLLOUTS, "num_demonstrations": 4, "teacher_rollouts": 2, "max_completion_length": LENGTH,
        },
        "engine": {"device": "cpu", "verifier_workers": 1},
    }  # fmt: skip
    run = opdscope.screen(config, run_dir=work / "real-model")
    rows = {row["name"]: row for row in summarize(run.tables(), run.config).data["teachers"]}
    return {name: {key: value for key, value in _numbers(rows[name]).items() if value is not None} for name in TEACHERS}


def _numbers(row: Mapping[str, Any]) -> dict[str, float | None]:
    gain, gap = row["natural_gain"], row.get("accuracy_gap") or {}
    return {
        "gain": gain["value"], "gain error": gain["standard_error"], "gain / √KL": row["natural_gain_per_sqrt_kl"]["value"],
        "reverse KL": row["rivals"]["reverse_kl"], "accuracy gap": gap.get("value"),
    }  # fmt: skip


def _rows(seed: int) -> Dataset:
    """Trained questions with the teacher's prompts."""
    own = list(_questions()[_PREDICTION_QUESTIONS + HELD_OUT :])
    random.Random(seed).shuffle(own)
    rows: list[dict[str, Any]] = []
    for question, other in itertools.pairwise(own):
        values = {"answer": question.answer, "solution": question.solution}
        prompts = {
            name: fill(getattr(PROMPTS, name), question=question.text, **values) for name in ("plain", "answer", "reference_solution")
        }
        prompts["unrelated_solution"] = fill(PROMPTS.unrelated_solution or "", question=question.text, solution=other.solution)
        messages = {name: [{"role": "user", "content": text}] for name, text in prompts.items()}
        rows.append({"question_id": question.question_id, "prompt": messages.pop("plain"), "expected": question.answer, **messages})
    return Dataset.from_list(rows)


def _is_right(text: str, answer: str) -> bool:
    """The last number that is written down is the answer."""
    found = re.findall(r"-?\d+", text)
    return bool(found) and found[-1] == answer


def _train(folder: Path, teacher: str, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    context, temperature = TEACHERS[teacher]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ends = {tokenizer.eos_token_id}

    def reward(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], expected: Sequence[str], **_: Any) -> list[float]:
        texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        triples = zip(texts, completion_ids, expected, strict=True)
        return [float(bool(ends & set(ids)) and _is_right(text, answer)) for text, ids, answer in triples]

    with tempfile.TemporaryDirectory() as output:
        trainer = MonitoredDistillationTrainer(
            model=model, teacher_model=self_teacher(model, live=False),
            args=arguments(output, LENGTH, RATE, seed, STEPS, per_device_train_batch_size=BATCH), train_dataset=_rows(seed),
            processing_class=tokenizer, reward_func=reward, objective="reverse_kl", context=context, teacher_temperature=temperature,
            teacher_prompts={name: name for name, _ in TEACHERS.values() if name != "plain"},
        )  # fmt: skip
        trainer.train()
        seconds = time.perf_counter() - started
        after_folder = Path(output) / "after"
        trainer.model.save_pretrained(after_folder)
        tokenizer.save_pretrained(after_folder)
        after, before = _success(after_folder, seed), _success_before(folder, seed)
    difference = after - before
    return {
        "before": float(before.mean()), "after": float(after.mean()), "change": float(difference.mean()),
        "change_error": float(difference.std(ddof=1) / np.sqrt(len(difference))), "training_seconds": round(seconds, 1),
    }  # fmt: skip


@cache
def _success_before(folder: Path, seed: int) -> np.ndarray:
    return _success(folder, seed)


def _success(folder: Path, seed: int) -> np.ndarray:
    """Outcome of one response to each held-out question, 0 or 1, under random numbers that depend on question and seed alone."""
    language_model = load_language_model(str(folder), device="cpu")
    questions = _questions()[_PREDICTION_QUESTIONS : _PREDICTION_QUESTIONS + HELD_OUT]
    prompts = [language_model.render_prompt(fill(PROMPTS.plain, question=question.text))[1] for question in questions]
    requests = [
        SampleRequest(prompt, len(prompt), (), (derive_seed(seed, "held out", question.question_id),), LENGTH)
        for prompt, question in zip(prompts, questions, strict=True)
    ]
    samples = [group[0] for group in language_model.sampler(256).sample(requests, 1.0)]
    pairs = zip(questions, samples, strict=True)
    return np.array([float(s.finished and _is_right(language_model.decode(s.token_ids), q.answer)) for q, s in pairs])
