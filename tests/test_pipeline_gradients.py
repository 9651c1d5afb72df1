"""Gradients in the parameters of a real transformer: against automatic differentiation of the losses, resumed, and refused where there is nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import opdscope
from opdscope.core.gradients import distillation_gradient, pullback
from opdscope.errors import ModelError, RunDirectoryError
from opdscope.models.base import ScoreRequest
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers.language_model import LanguageModel
from opdscope.models.transformers.loading import load_language_model
from opdscope.models.transformers.parameter_gradients import LogitGraph, Sketch
from opdscope.pipeline.diagnosis import open_experiment
from opdscope.pipeline.gradients import IDEAL, directions, measured_rows, whole_response
from opdscope.pipeline.scores import Scores, teacher_prompts
from opdscope.records import Outcome
from opdscope.report import write_report
from opdscope.summary import summarize
from opdscope.summary.plain import plain

SETTINGS = {
    "student": {"model_name_or_path": "embedded:chain-student-weak"},
    "teachers": [
        {"name": "teacher", "teacher_model_name_or_path": "embedded:chain-teacher"},
        {"name": "itself", "privileged_context": "plain"},
    ],
    "task": {"kind": "chain", "num_questions": 6},
    "objectives": ["reverse_kl", "forward_kl"],
    "rollouts": {"num_rollouts": 6, "num_demonstrations": 0, "max_completion_length": 48},
    "engine": {"device": "cpu", "verifier_workers": 1},
}


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    return load_language_model(resolve_model("embedded:chain-student-weak"), device="cpu", trainable=True)


def _request(model: LanguageModel, question: str, response: str) -> ScoreRequest:
    tokens = tuple(model.tokenizer.encode(response, add_special_tokens=False))
    return ScoreRequest(model.render_prompt(f"Q{question}:")[1], tokens, tuple(range(len(tokens))))


def _loss(student: torch.Tensor, teacher: torch.Tensor, objective: str) -> torch.Tensor:
    if objective == "forward_kl":
        return torch.sum(torch.exp(teacher) * (teacher - student))
    if objective == "reverse_kl":
        return torch.sum(torch.exp(student) * (student - teacher))
    mixture = torch.logaddexp(student, teacher) - np.log(2.0)
    return 0.5 * torch.sum(torch.exp(student) * (student - mixture)) + 0.5 * torch.sum(torch.exp(teacher) * (teacher - mixture))


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl", "generalized_jsd(0.5)"])
def test_a_distillation_gradient_in_parameters_is_that_of_the_loss(student: LanguageModel, objective: str):
    teacher = load_language_model(resolve_model("embedded:chain-teacher"), device="cpu")
    requests = [_request(student, "5*8+7", "5*8=0;0+7=7;>7"), _request(student, "3-9*2", "3-9=4;")]
    rows = teacher.scorer().encode(requests).logprobs(0, sum(len(r.positions) for r in requests), 0.8).clone()
    graph = LogitGraph(student, requests, 0.8)
    found = graph.pull_back(distillation_gradient(graph.logprobs, rows, objective))
    total = torch.zeros(())
    start = 0
    for request in requests:  # each response by itself: padding plays no part
        prompt = len(request.prompt_ids)
        logits = student.model(input_ids=torch.tensor([[*request.prompt_ids, *request.response_ids]])).logits
        own = torch.log_softmax(logits[0, prompt - 1 : -1, : student.vocab_size] / 0.8, dim=-1)
        total = total + _loss(own, rows[start : start + len(own)], objective)
        start += len(own)
    expected = torch.autograd.grad(total, graph.parameters)
    for ours, theirs in zip(found, expected, strict=True):
        # float32: sums over 24 positions of terms of the size of the largest entry
        assert torch.allclose(ours, -theirs, atol=2e-5 * float(theirs.abs().max()) + 1e-7)


def test_the_mean_direction_of_rollouts_is_the_ideal_gradient():
    probs, success = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.1, 0.4])
    value = float(probs @ success)
    mean = sum(p * (s - value) * (np.eye(3)[j] - probs) for j, (p, s) in enumerate(zip(probs, success, strict=True)))
    assert np.allclose(mean, pullback(probs, success))


def test_a_sketch_keeps_inner_products():
    source = torch.Generator().manual_seed(0)
    shapes = [(40, 30), (70,), (25, 20)]
    one, other = ([torch.randn(shape, generator=source) for shape in shapes] for _ in range(2))
    exact = float(sum(torch.sum(x * y) for x, y in zip(one, other, strict=True)))
    lengths = np.prod([np.sqrt(sum(float(torch.sum(x**2)) for x in vector)) for vector in (one, other)])
    found = []
    for seed in range(200):
        sketch = Sketch(one, 101, seed)
        found.append(float(sketch(one) @ sketch(other)))
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / np.sqrt(len(found))
    # the deviation that is promised, and four of its own standard errors
    assert np.std(found) < np.sqrt(2 / 101) * lengths * (1 + 4 / np.sqrt(2 * len(found)))
    whole = Sketch(one, 5000, 0)
    assert float(whole(one) @ whole(other)) == pytest.approx(exact, rel=1e-4, abs=1e-3)
    assert float(whole([one[0], None, one[2]]) @ whole([None, other[1], None])) == 0.0


def test_gradients_of_a_run_resume_and_are_summarised(tmp_path: Path):
    run = opdscope.screen(SETTINGS, run_dir=tmp_path / "run")
    assert summarize(run.tables(), run.config).data["parameters"] is None
    run = opdscope.carry_gradients(run.path)
    before = run.table("parameter_gradients")
    (run.path / "parameter_gradients" / "000002.parquet").unlink()
    again = opdscope.carry_gradients(run.path).table("parameter_gradients")
    assert again.equals(before)
    rows = {(row["teacher"], row["objective"]): row for row in summarize(run.tables(), run.config).data["parameters"]}
    assert {objective for _, objective in rows} == {"reverse_kl", "forward_kl"}
    gains = {teacher: rows[teacher, "reverse_kl"]["gain"] for teacher in ("itself", "teacher")}
    # the student itself pushes nowhere, but for rounding in float32
    assert abs(gains["itself"]["value"]) < 1e-5 * abs(gains["teacher"]["value"])
    assert gains["teacher"]["num_clusters"] == 6
    page = write_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    shown = json.loads(found)["parameters"]
    assert {(line["name"], objective) for line in shown["lines"] for objective in shown["objectives"]} == {
        key for key in rows if "its entropy" not in key[0]
    }
    for line in shown["lines"]:
        for objective, cell in zip(shown["objectives"], line["cells"], strict=True):
            assert cell == plain(rows[line["name"], objective]["alignment"])
    assert 'id="parameters"' in page
    ideal = [row for row in before.to_pylist() if row["teacher"] == ""]
    assert len(ideal) == 6
    mixed = {q for q, outcomes in _outcomes(run).items() if len(outcomes) == 2}
    order = run.table("questions")["question_id"].to_pylist()
    for row in ideal:  # where all rollouts end alike there is nothing to learn from them
        assert (np.linalg.norm(row["coordinates"]) > 0) == (order[row["group"]] in mixed)


def test_the_ideal_direction_is_the_gradient_of_the_taken_tokens_log_probability(tmp_path: Path):
    run = opdscope.screen(SETTINGS, run_dir=tmp_path / "run")
    with open_experiment(run.config, run.path, (), None) as experiment:
        rows = next(iter(measured_rows(run).values()))[:2]
        responses = [whole_response(row) for row in rows]
        size = sum(len(r.token_ids) for r in responses)
        logits = torch.randn(size, experiment.student.vocab_size, generator=torch.Generator().manual_seed(0), requires_grad=True)
        logprobs = torch.log_softmax(logits, dim=-1)
        taken = torch.tensor([token for r in responses for token in r.token_ids])
        weights = torch.linspace(-1.0, 1.0, size)
        scores = Scores(experiment, responses, teacher_prompts(experiment))
        key, found = next(iter(directions(experiment, scores, logprobs.detach(), responses, weights.numpy(), [])))
    assert key == IDEAL
    (expected,) = torch.autograd.grad(torch.sum(weights * logprobs[torch.arange(size), taken]), logits)
    assert torch.allclose(found, expected, atol=1e-6)


def _outcomes(run: opdscope.Run) -> dict[str, set[bool]]:
    found: dict[str, set[bool]] = {}
    for row in run.table("rollouts").to_pylist():
        found.setdefault(row["question_id"], set()).add(row["outcome"] == Outcome.CORRECT)
    return found


def test_what_has_no_parameters_or_is_not_screened_is_refused_with_a_sentence(tmp_path: Path):
    exact = {**SETTINGS, "student": {"model_name_or_path": "exact:itself"}, "task": {"kind": "exact", "num_questions": 4}}
    exact["teachers"] = [{"name": "good", "teacher_model_name_or_path": "exact:good"}]
    run = opdscope.screen(exact, run_dir=tmp_path / "exact")
    with pytest.raises(ModelError, match="without parameters"):
        opdscope.carry_gradients(run.path)
    few = opdscope.screen({**SETTINGS, "task": {"kind": "chain", "num_questions": 3}}, run_dir=tmp_path / "few")
    with pytest.raises(RunDirectoryError, match="at least 4"):
        opdscope.carry_gradients(few.path)
