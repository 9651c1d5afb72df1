"""SDFT and SDPO trainers of TRL, opened: their own run without wishes; with them weights, contexts, objectives and order are as asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.training import NOISE, chain_rows, model, right_answer, tokenizer
from opdscope.core.schedule import Schedule
from opdscope.errors import TrainingError
from opdscope.store import open_training_log
from opdscope.training import expose_rollouts, watch
from opdscope.training.loss import ScoredRows

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

SHORT: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 2, "report_to": [], "save_strategy": "no",
    "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 48, "logging_steps": 1, "disable_tqdm": True,
    "learning_rate": 1e-3, "lr_scheduler_type": "constant", "distillation_mode": "full_logits",
}  # fmt: skip
TOLERANCE = 2e-5  # float32 sums of a few dozen terms of size one


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL announces its experimental trainers."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SDFT makes its teacher from a folder."""
    folder = tmp_path_factory.mktemp("student")
    model("chain-student-weak").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def sdft(folder: Path, student: str, **settings: Any) -> Any:
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    rows = chain_rows(32)
    data = rows.add_column("privileged_context", rows["answer"])
    args = SDFTConfig(output_dir=str(folder), teacher_prompt_template="A{privileged_context} {prompt}", **{**SHORT, **settings})
    return SDFTTrainer(student, args, data, processing_class=tokenizer())


def sdpo(folder: Path, **settings: Any) -> Any:
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    wording = {
        "reprompt_template": "{solution}{feedback} {prompt}", "solution_template": "S{successful_previous_attempt}", "feedback_template": "",
    }  # fmt: skip
    args = SDPOConfig(output_dir=str(folder), **{**SHORT, **wording, **settings})
    return SDPOTrainer(model("chain-student-weak"), right_answer, args, chain_rows(8), processing_class=tokenizer())


def parameters(run: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def seen_by(exposed: Any) -> list[tuple[ScoredRows, torch.Tensor]]:
    found: list[tuple[ScoredRows, torch.Tensor]] = []
    exposed.observers.append(lambda *pair: found.append(pair))
    return found


def by_response(rows: ScoredRows, weights: torch.Tensor) -> float:
    """The loss as TRL makes it: means over each response's tokens, then over responses."""
    lengths = torch.zeros(rows.num_rows).index_add_(0, rows.row, torch.ones_like(weights))
    sums = torch.zeros(rows.num_rows).index_add_(0, rows.row, rows.divergence * weights)
    return float((sums / lengths.clamp(min=1)).mean())


@pytest.mark.parametrize("make", [sdft, sdpo])
def test_a_run_without_wishes_is_trls_run(tmp_path: Path, student: str, make: Callable[..., Any]):
    arguments = (student,) if make is sdft else ()
    plain = make(tmp_path, *arguments)
    plain.train()
    opened = make(tmp_path, *arguments)  # making a trainer seeds what it samples
    callback = watch_opened(opened, tmp_path)
    opened.train()
    assert all(torch.equal(x, y) for x, y in zip(parameters(plain), parameters(opened), strict=True))
    assert all(part.is_on for part in callback.parts.values())


def watch_opened(run: Any, folder: Path, **settings: Any) -> Any:
    expose_rollouts(run, **settings)
    return watch(run, folder / "log", every=1, keep_best=False)


@pytest.mark.parametrize("objective", ["forward_kl", "generalized_jsd(0.3)", "reverse_kl"])
def test_weights_multiply_the_loss_of_a_token_and_not_its_divisor(tmp_path: Path, student: str, objective: str):
    run = sdft(tmp_path, student, learning_rate=0.0)
    exposed = expose_rollouts(
        run, reward_func=right_answer, objective=objective, outcome_weights={"correct": 0.5, "incorrect": 2.0},
        token_weights=lambda rows: (rows.position >= 2) * 3.0,
    )  # fmt: skip
    seen = seen_by(exposed)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == len(seen) == 2
    for loss, (rows, weights) in zip(losses, seen, strict=True):
        expected = torch.where(rows.outcomes == 1, 0.5, 2.0)[rows.row] * (rows.position >= 2) * 3.0
        torch.testing.assert_close(weights, expected)
        assert loss == pytest.approx(by_response(rows, weights), rel=1e-3, abs=TOLERANCE)
        assert exposed.question_ids[int(rows.questions[0])].startswith("chain-0-")
    assert {len(set(rows.outcomes.tolist())) for rows, _ in seen} == {2}


def test_context_and_objective_may_change_mid_run(tmp_path: Path, student: str):
    run = sdft(tmp_path, student, learning_rate=0.0, max_steps=4, num_generations=1)
    only_even = {"told": "told", "some": lambda row: row["told"] if row["answer"] in "02468" else None}
    exposed = expose_rollouts(run, teacher_prompts=only_even, reward_func=right_answer)
    assert (exposed.context, exposed.contexts) == ("privileged_context", ("privileged_context", "plain", "told", "some"))
    seen, alphas = seen_by(exposed), []

    def change(*_: Any) -> None:
        alphas.append(run.args.distillation_alpha)
        exposed.context, exposed.objective = ("plain", "told", "some", "some")[len(alphas) - 1], "reverse_kl"

    exposed.observers.append(change)
    run.train()
    assert alphas[1:] == [1.0] * 3
    pushes = [float(rows.divergence.abs().max()) for rows, _ in seen]
    # a teacher with the student's weights and prompt pushes nothing; the answer in either wording does
    assert pushes[1] < TOLERANCE < min(pushes[0], pushes[2], pushes[3])
    rows, weights = seen[3]
    assert torch.equal(weights, rows.has_context[rows.row].to(weights))
    assert 0 < int(rows.has_context.sum()) < rows.num_rows
    even = dict(zip(chain_rows(32)["question_id"], chain_rows(32)["answer"], strict=True))
    assert rows.has_context.tolist() == [even[exposed.question_ids[int(number)]] in "02468" for number in rows.questions]


def test_a_softmax_that_does_not_fit_ends_the_watching_and_not_the_training(
    tmp_path: Path, student: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: Any) -> None:
        raise MemoryError("out of memory")

    run = sdft(tmp_path, student)
    callback = watch_opened(run, tmp_path)
    monkeypatch.setattr(run.exposed, "_rows", fail)
    run.train()
    assert run.state.global_step == 2
    assert callback.monitor.reading().num_rollouts == 0
    assert sum("the reading of the trainer's logits has failed" in record.message for record in caplog.records) == 1


def test_rules_switch_context_and_objective_and_lower_the_weight(tmp_path: Path, student: str):
    run = sdft(tmp_path, student, max_steps=5)
    expose_rollouts(run, teacher_prompts={"told": "told"}, reward_func=right_answer)
    actions = ("switch_context", "switch_objective", "lower_weight")
    rules = [{"name": a, "series": "success", "below": 2.0, "evaluations": 1, "most": 1, "then": {"action": a}} for a in actions]
    watch(
        run, tmp_path / "log", rules={"every": 1, "least_rollouts": 0, "rules": rules}, contexts=["told"], objectives=["reverse_kl"],
        keep_best=False,
    )  # fmt: skip
    run.train()
    stored = open_training_log(tmp_path / "log").table("training_actions").to_pylist()
    assert [(row["action"], row["after"]) for row in stored] == [
        ("switch_context", "told"), ("switch_objective", "reverse_kl"), ("lower_weight", "0.5"),
    ]  # fmt: skip
    assert (run.exposed.context, run.exposed.objective, run.args.distillation_alpha) == ("told", "reverse_kl", 1.0)


def test_a_curriculum_orders_the_questions_and_keeps_the_groups(tmp_path: Path, student: str):
    ids = [f"chain-0-{index:05d}" for index in range(32)]
    run = sdft(tmp_path, student, max_steps=4, learning_rate=0.0)
    exposed = expose_rollouts(run, curriculum=[ids[:4], ids[4:]])
    seen = seen_by(exposed)
    run.train()
    asked = [{exposed.question_ids[int(number)] for number in rows.questions} for rows, _ in seen]
    assert [len(batch) for batch in asked] == [2] * 4  # eight responses, four of each question
    assert asked[0] | asked[1] <= set(ids[:4])
    assert asked[2] | asked[3] <= set(ids[4:])


def test_an_sdpo_trainer_takes_weights_an_objective_and_a_weight_of_the_mix(tmp_path: Path):
    run = sdpo(tmp_path, max_steps=3, distillation_weight=1.0)
    exposed = expose_rollouts(run, objective="forward_kl", outcome_weights={"correct": 0.0}, token_weights=lambda rows: rows.position >= 2)
    seen = seen_by(exposed)
    rule = {"name": "r", "series": "success", "below": 2.0, "evaluations": 1, "most": 1, "then": {"action": "lower_weight", "factor": 0.5}}
    callback = watch(run, tmp_path / "log", rules={"every": 1, "least_rollouts": 0, "rules": [rule]}, keep_best=False)
    run.train()
    assert all(part.is_on for part in callback.parts.values())
    assert run.args.distillation_weight == 0.5
    assert run.args.distillation_alpha == 0.0
    assert callback.monitor.mix is not None
    assert (callback.monitor.mix.num_generations, callback.monitor.mix.distils_by_length) == (4, True)
    losses = [entry["self_distillation/distillation_loss"] for entry in run.state.log_history if "loss" in entry]
    for loss, (rows, weights) in zip(losses, seen, strict=True):
        torch.testing.assert_close(weights, (rows.has_context * (rows.outcomes == 0))[rows.row] * (rows.position >= 2) * 1.0)
        pushed = rows.has_context[rows.row]
        assert loss == pytest.approx(float((rows.divergence * weights).sum() / pushed.sum().clamp(min=1)), rel=1e-3, abs=TOLERANCE)
    # all responses count for success, also those of questions that nobody solved, whose teacher has no context
    outcomes = torch.cat([rows.outcomes for rows, _ in seen])
    equal = callback.monitor.reading()
    assert equal.success == pytest.approx(float(outcomes.mean()), abs=0.05)  # the series weighs later steps a little more
    with pytest.raises(TrainingError, match="and no schedule"):
        watch(run, tmp_path / "log", follow_mix=True, schedule=Schedule(0.1, 0.1))


@pytest.mark.parametrize(
    ("settings", "wishes", "message"),
    [
        ({"generate_from_teacher": True}, {}, "the rollouts are the teacher's; set generate_from_teacher=False"),
        ({}, {"context": "told"}, "there is no context 'told'; those there are: privileged_context, plain"),
        ({}, {"teacher_prompts": {"hint": "hint"}}, "context 'hint' wants the column 'hint'"),
        ({}, {"outcome_weights": {"correct": 0.0}}, "outcome_weights need outcomes; pass a reward_func"),
        ({}, {"objective": "jsd"}, "unknown objective 'jsd'"),
        ({"distillation_mode": "sampled_token", "distillation_alpha": 1.0}, {"objective": "forward_kl"}, "cannot become forward_kl"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, student: str, settings: dict[str, Any], wishes: dict[str, Any], message: str
):
    with pytest.raises(TrainingError, match=message):
        expose_rollouts(sdft(tmp_path, student, **settings), **wishes)


def test_what_is_no_such_trainer_or_was_not_opened_is_refused(tmp_path: Path, student: str):
    with pytest.raises(TrainingError, match="expected TRL's SDFTTrainer or SDPOTrainer, found a object"):
        expose_rollouts(object())
    with pytest.raises(TrainingError, match=r"so nothing can be watched; call expose_rollouts\(trainer\) first"):
        watch(sdft(tmp_path, student), tmp_path / "log")
    with pytest.raises(TrainingError, match="SDPO makes its teacher's context from the outcomes of a group"):
        expose_rollouts(sdpo(tmp_path), teacher_prompts={"told": "told"})
    with pytest.raises(TrainingError, match="SDPO has rewards of its own"):
        expose_rollouts(sdpo(tmp_path), reward_func=right_answer)
    run = sdft(tmp_path, student, distillation_mode="sampled_token", distillation_alpha=1.0)
    expose_rollouts(run)
    with pytest.raises(TrainingError, match="is reverse KL and cannot become forward_kl"):
        watch(run, tmp_path / "log", objectives=["forward_kl"])
    for settings, message in (({"top_p": 0.9}, "samples with top_p=0.9"), ({"mask_truncated_completions": True}, "by how they ended")):
        run = sdpo(tmp_path, **settings)
        expose_rollouts(run)
        with pytest.raises(TrainingError, match=message):
            watch(run, tmp_path / "log")
