"""The distillation trainer: TRL's own loss where nothing is asked for, and exactly what is asked for elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.distillation_trainer import DistillationTrainer, _chunked_divergence_loss

from fixtures.training import NOISE, arguments, chain_rows, model, right_answer, tokenizer
from opdscope.config import EmbeddedTaskConfig
from opdscope.core.divergences import signal_of
from opdscope.core.nulls import tempered
from opdscope.core.screening import StudentRows, reduce_rows
from opdscope.errors import TrainingError
from opdscope.tasks import load_task
from opdscope.tasks.embedded import EMBEDDED
from opdscope.training.distillation import MonitoredDistillationTrainer, self_teacher
from opdscope.training.loss import LossRequest, ScoredRows, beta_of, objective_of, weighted_divergence_loss
from opdscope.training.questions import TaskReward, training_rows

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

ROWS, LENGTH, HIDDEN, WIDER, VOCAB = 3, 5, 6, 8, 11
TOLERANCE = 2e-5  # float32 sums of a few dozen terms of size one


def request(**changes: Any) -> LossRequest:
    generator = torch.Generator().manual_seed(1)
    settings: dict[str, Any] = {
        "completion_ids": torch.randint(VOCAB, (ROWS, LENGTH), generator=generator),
        "outcomes": torch.tensor([1.0, 0.0, float("nan")]),
        "questions": torch.arange(ROWS),
        "has_context": torch.ones(ROWS, dtype=torch.bool),
        "row_weights": torch.ones(ROWS),
        "token_weights": None,
        "observers": (),
        "teacher_temperature": 1.0,
        **changes,
    }
    return LossRequest(**settings)


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 3, 2])
    return {
        "student_hidden_states": torch.randn(ROWS, LENGTH, HIDDEN, generator=generator).requires_grad_(),
        "teacher_hidden_states": torch.randn(ROWS, LENGTH, WIDER, generator=generator),
        "student_lm_head_weight": torch.randn(VOCAB, HIDDEN, generator=generator),
        "teacher_lm_head_weight": torch.randn(VOCAB, WIDER, generator=generator),
        "completion_mask": (torch.arange(LENGTH) < lengths[:, None]).int(),
        "student_lm_head_bias": torch.randn(VOCAB, generator=generator),
        "temperature": 1.3,
    }


def logprobs(given: dict[str, Any], teacher_temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    valid = given["completion_mask"].bool()
    student = given["student_hidden_states"][valid] @ given["student_lm_head_weight"].T + given["student_lm_head_bias"]
    teacher = given["teacher_hidden_states"][valid] @ given["teacher_lm_head_weight"].T / teacher_temperature
    return tuple(torch.log_softmax(logits / given["temperature"], -1).detach().double().numpy() for logits in (student, teacher))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("total", [None, torch.tensor(25)])
def test_weight_one_is_trls_loss_and_gradient(beta: float, total: torch.Tensor | None):
    ours, theirs = inputs(), inputs()
    loss, entropy, count = weighted_divergence_loss(request(), **ours, beta=beta, num_items_in_batch=total)
    expected = _chunked_divergence_loss(**theirs, beta=beta, num_items_in_batch=total)
    torch.testing.assert_close((loss, entropy, count), expected, atol=TOLERANCE, rtol=TOLERANCE)
    loss.backward()
    expected[0].backward()
    torch.testing.assert_close(ours["student_hidden_states"].grad, theirs["student_hidden_states"].grad, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_token_weight_scales_its_divergence_and_not_the_normaliser():
    def later_ones(rows: ScoredRows) -> torch.Tensor:
        return 0.5 * rows.position.float()

    seen: list[ScoredRows] = []
    loss, _, count = weighted_divergence_loss(
        request(token_weights=later_ones, observers=(lambda rows, _: seen.append(rows),)), **inputs(), beta=1.0
    )
    rows = seen[0]
    assert loss.item() == pytest.approx(float((0.5 * rows.position * rows.divergence).sum() / count), rel=1e-5)


def test_a_row_of_weight_zero_has_no_gradient():
    given = inputs()
    loss, _, _ = weighted_divergence_loss(request(row_weights=torch.tensor([1.0, 0.0, 1.0])), **given, beta=1.0)
    loss.backward()
    per_row = given["student_hidden_states"].grad.abs().sum((1, 2))
    assert (per_row > 0).tolist() == [True, False, True]


@pytest.mark.parametrize("objective", ["forward_kl", "generalized_jsd(0.3)", "reverse_kl"])
@pytest.mark.parametrize("teacher_temperature", [1.0, 0.7])
def test_the_free_signal_is_screenings_centred_signal(objective: str, teacher_temperature: float):
    given, seen = inputs(), []
    weighted_divergence_loss(
        request(observers=(lambda rows, _: seen.append(rows),), teacher_temperature=teacher_temperature), **given, beta=beta_of(objective)
    )
    rows: ScoredRows = seen[0]
    student, teacher = logprobs(given, teacher_temperature)
    expected = reduce_rows(StudentRows.of(student), teacher, rows.token_ids.numpy(), objective).taken_signal
    np.testing.assert_allclose(rows.signal, expected, atol=TOLERANCE)
    sharpened = reduce_rows(StudentRows.of(student), tempered(student, 0.5), rows.token_ids.numpy(), "reverse_kl").taken_signal
    np.testing.assert_allclose(rows.sharpening_signal, sharpened, atol=TOLERANCE)  # temperature 1/2: factor 1/τ - 1 = 1
    assert rows.row.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert rows.position.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]


def test_the_gradient_ascends_the_signal():
    """Pulling the centred signal back is minus the loss's gradient on the student's logits."""
    given = inputs()
    given["student_lm_head_weight"], given["student_hidden_states"] = torch.eye(VOCAB), torch.randn(ROWS, LENGTH, VOCAB).requires_grad_()
    given["temperature"] = 1.0
    weighted_divergence_loss(request(), **given, beta=1.0, num_items_in_batch=1)[0].backward()
    student, teacher = logprobs(given)
    signal, probs = signal_of("reverse_kl")(student, teacher), np.exp(student)
    pulled = probs * (signal - (probs * signal).sum(-1, keepdims=True))
    gradient = given["student_hidden_states"].grad[given["completion_mask"].bool()]
    np.testing.assert_allclose(-gradient, pulled, atol=TOLERANCE)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_an_objectives_name_and_beta_are_inverse(beta: float):
    assert beta_of(objective_of(beta)) == beta


def trainer(folder: Path, teacher: Any = None, student: Any = None, steps: int = 2, **settings: Any) -> MonitoredDistillationTrainer:
    return MonitoredDistillationTrainer(
        student or model("chain-student-weak"),
        teacher or model("chain-teacher"),
        args=arguments(folder, max_steps=steps),
        train_dataset=chain_rows(),
        processing_class=tokenizer(),
        **settings,
    )


def test_a_run_without_wishes_is_trls_run(tmp_path: Path):
    plain = DistillationTrainer(
        model("chain-student-weak"), model("chain-teacher"), args=arguments(tmp_path, max_steps=3), train_dataset=chain_rows(),
        processing_class=tokenizer(),
    )  # fmt: skip
    plain.train()
    watched: list[ScoredRows] = []
    ours = trainer(tmp_path, steps=3, reward_func=right_answer, observers=[lambda rows, _: watched.append(rows)])
    ours.train()
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)  # Adam turns rounding of tiny gradients into 1e-6 or so
    assert len(watched) == 3
    assert all(set(rows.outcomes.tolist()) <= {0.0, 1.0} for rows in watched)
    ids = set(chain_rows()["question_id"])
    assert {ours.question_ids[int(number)] for rows in watched for number in rows.questions} <= ids


def test_a_teacher_with_a_context_reads_its_own_prompt(tmp_path: Path):
    seen: list[ScoredRows] = []
    student = model("chain-student-weak")
    run = trainer(
        tmp_path, self_teacher(student, live=False), student, 1, teacher_prompts={"told": "told"}, context="told",
        observers=[lambda rows, _: seen.append(rows)],
    )  # fmt: skip
    fresh, batches = model("chain-student-weak").eval(), []
    compute = run._compute_loss
    run._compute_loss = lambda *a: (batches.append(a[1]), compute(*a))[1]
    run.train()
    batch, rows, data = batches[0], seen[0], chain_rows()
    told = dict(zip(data["question_id"], data["told"], strict=True))
    ids = batch["completion_ids"][0][batch["completion_mask"][0].bool()]
    prompt = torch.tensor(tokenizer()(told[run.question_ids[int(batch["questions"][0])]])["input_ids"])
    with torch.no_grad():
        logits = fresh(torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(rows.teacher_logprob[rows.row == 0], expected, atol=1e-4, rtol=1e-4)


def test_the_live_student_is_no_teacher_until_it_is_sharpened(tmp_path: Path):
    seen: list[ScoredRows] = []
    student = model("chain-student-weak")
    run = trainer(tmp_path, self_teacher(student, live=True), student, 3, observers=[lambda rows, _: seen.append(rows)])
    run.train()
    assert all(float(rows.divergence.abs().max()) < TOLERANCE for rows in seen)
    sharpened = trainer(
        tmp_path, self_teacher(student, live=True), student, 1, teacher_temperature=0.8, observers=[lambda rows, _: seen.append(rows)]
    )
    sharpened.train()
    torch.testing.assert_close(seen[-1].signal, (1 / 0.8 - 1) * seen[-1].sharpening_signal, atol=1e-4, rtol=1e-4)


def test_only_the_wanted_outcomes_and_rows_with_a_context_push(tmp_path: Path):
    weights: list[tuple[ScoredRows, torch.Tensor]] = []
    prompts = {"told": lambda row: row["told"] if row["answer"] in "02468" else None}
    run = trainer(
        tmp_path, steps=1, reward_func=right_answer, teacher_prompts=prompts, context="told", outcome_weights={"correct": 0.5, "incorrect": 2},
        observers=[lambda *pair: weights.append(pair)],
    )  # fmt: skip
    run.train()
    (rows, given), answers = weights[0], dict(zip(chain_rows()["question_id"], chain_rows()["answer"], strict=True))
    has_context = torch.tensor([answers[run.question_ids[int(number)]] in "02468" for number in rows.questions])
    expected = has_context * torch.where(rows.outcomes == 1, 0.5, 2.0)
    torch.testing.assert_close(given, expected[rows.row])
    assert 0 < int(has_context.sum()) < rows.num_rows


def test_the_distillation_weight_scales_the_learning_rate_of_a_step(tmp_path: Path):
    still = trainer(tmp_path, distillation_weight=0.0)
    before = [parameter.detach().clone() for parameter in still.model.parameters()]
    still.train()
    assert all(torch.equal(x, y) for x, y in zip(before, still.model.parameters(), strict=True))
    whole = trainer(tmp_path, steps=1)  # making a trainer seeds what it samples
    whole.train()
    half = trainer(tmp_path, steps=1, distillation_weight=0.5)
    half.train()
    for start, x, y in zip(before, whole.model.parameters(), half.model.parameters(), strict=True):
        torch.testing.assert_close(y - start, 0.5 * (x - start), atol=1e-7, rtol=1e-3)  # the difference of nearby float32 numbers
    assert half.optimizer.param_groups[0]["lr"] == half.args.learning_rate


def test_objective_and_context_may_change_mid_run(tmp_path: Path):
    run = trainer(tmp_path, steps=3, objective="reverse_kl", teacher_prompts={"told": "told"})
    used: list[tuple[float, bool]] = []

    def change(rows: ScoredRows, _: torch.Tensor) -> None:
        used.append((run.beta, "teacher_prompt_ids" in run._request))
        run.objective, run.context = "generalized_jsd(0.5)", "told"

    run.observers.append(change)
    run.train()
    assert used == [(1.0, False), (0.5, True), (0.5, True)]


def test_a_curriculum_leaves_the_number_of_steps_as_it_was(tmp_path: Path):
    settings = {"max_steps": -1, "num_train_epochs": 2, "learning_rate": 0.0}
    order = [[f"chain-0-{index:05d}" for index in range(start, start + 32)] for start in (0, 32)]
    runs = [
        MonitoredDistillationTrainer(
            model("chain-student-weak"), model("chain-teacher"), args=arguments(tmp_path, **settings), train_dataset=chain_rows(),
            processing_class=tokenizer(), curriculum=curriculum,
        )
        for curriculum in ((), order)
    ]  # fmt: skip
    for run in runs:
        run.train()
    assert [run.state.global_step for run in runs] == [8, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": "solution"}, "there is no context 'solution'; those there are: plain"),
        ({"teacher_prompts": {"told": "hint"}}, "wants the column 'hint', and the data set has question_id, prompt, told, answer"),
        ({"objective": "jsd"}, "unknown objective 'jsd'"),
        ({"outcome_weights": {"correct": 0.0}}, "outcome_weights need outcomes; pass a reward_func"),
        ({"outcome_weights": {"right": 0.0}, "reward_func": right_answer}, "unknown class 'right'"),
        ({"distillation_weight": -1.0}, "at least 0, found -1.0"),
        ({"teacher_temperature": 0.0}, "must be positive"),
    ],
)
def test_a_wrong_setting_is_refused_before_training(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(TrainingError, match=message):
        trainer(tmp_path, **settings)


def test_a_data_set_without_prompts_is_refused(tmp_path: Path):
    with pytest.raises(TrainingError, match="no column 'prompt', which the student is asked; it has question_id, told, answer"):
        MonitoredDistillationTrainer(
            model("chain-student-weak"), model("chain-teacher"), args=arguments(tmp_path), processing_class=tokenizer(),
            train_dataset=chain_rows(8).remove_columns("prompt"),
        )  # fmt: skip


def test_the_student_itself_is_refused_as_its_teacher(tmp_path: Path):
    student = model("chain-student-weak")
    with pytest.raises(TrainingError, match="self_teacher"):
        trainer(tmp_path, student, student)


def test_a_tasks_verifier_rewards_what_is_right_and_whole():
    task = load_task(EmbeddedTaskConfig(kind="chain", num_questions=4))
    rows, eos = training_rows(task), tokenizer().eos_token_id
    texts = [EMBEDDED["chain"].worked_solution(q.text) for q in task.questions]
    texts[1] = texts[1][:-1] + ("3" if texts[1][-1] != "3" else "4")
    ids = [[5, eos], [5, eos], [5, 6], [5, eos]]
    with TaskReward(task, [eos]) as reward:
        assert reward(completions=texts, completion_ids=ids, **rows[:]) == [1.0, 0.0, 0.0, 1.0]
        with pytest.raises(TrainingError, match="no column 'answer'"):
            reward(completions=texts, completion_ids=ids)
    assert rows["prompt"][0] == f"Q{task.questions[0].text}:"
    assert rows["teacher_solution"][0] is None  # there was no demonstration
