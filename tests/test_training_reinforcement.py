"""GRPO with a distillation loss beside it: TRL's own run at weight 0, the distillation loss at weight 1, and the mix that is watched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from fixtures.training import NOISE, chain_rows, model, right_answer, tokenizer
from opdscope.core.mixing import fisher_moments, group_advantage, mix, rl_signals
from opdscope.errors import TrainingError
from opdscope.store import open_training_log
from opdscope.training import MonitoredGRPOTrainer, watch
from opdscope.training.loss import ScoredRows
from opdscope.training.mixing import LiveMix, ScaledBy
from opdscope.training.steering import mix_of

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

TOLERANCE = 1e-4  # float32 logits of a few layers, once by GRPO's forward pass and once by a plain one


def arguments(folder: Path, **settings: Any) -> GRPOConfig:
    usual: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 2, "report_to": [],
        "save_strategy": "no", "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 48, "logging_steps": 1,
        "disable_tqdm": True, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "beta": 0.0,
    }  # fmt: skip
    return GRPOConfig(**{**usual, **settings})


def trainer(folder: Path, settings: dict[str, Any] | None = None, rows: int = 64, **wishes: Any) -> MonitoredGRPOTrainer:
    wishes = {"teacher_model": model("chain-teacher"), **wishes}
    return MonitoredGRPOTrainer(
        model("chain-student-weak"), right_answer, args=arguments(folder, **(settings or {})), train_dataset=chain_rows(rows),
        processing_class=tokenizer(), **wishes,
    )  # fmt: skip


def test_weight_zero_is_trls_run_and_shows_the_teacher(tmp_path: Path):
    plain = GRPOTrainer(
        model("chain-student-weak"), right_answer, args=arguments(tmp_path), train_dataset=chain_rows(), processing_class=tokenizer()
    )
    plain.train()
    seen: list[ScoredRows] = []
    ours = trainer(tmp_path, distillation_weight=0.0, observers=[lambda rows, _: seen.append(rows)])
    ours.train()
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert len(seen) == 2
    assert {ours.question_ids[int(number)] for rows in seen for number in rows.questions} <= set(chain_rows()["question_id"])
    assert all((torch.unique(rows.questions, return_counts=True)[1] == 4).all() for rows in seen)


def test_rows_are_those_of_a_plain_forward_pass_and_outcomes_belong_to_them(tmp_path: Path):
    seen: list[ScoredRows] = []
    run = trainer(
        tmp_path, {"max_steps": 1, "temperature": 0.8}, observers=[lambda rows, _: seen.append(rows)], teacher_prompts={"told": "told"}
    )
    run.context = "told"
    student, teacher, batches = model("chain-student-weak").eval(), model("chain-teacher").eval(), []
    compute = run._compute_loss
    run._compute_loss = lambda *given: (batches.append(given[1]), compute(*given))[1]
    run.train()
    batch, rows, data = batches[0], seen[0], {row["question_id"]: row for row in chain_rows()}
    for index in range(rows.num_rows):
        row = data[run.question_ids[int(batch["questions"][index])]]
        ids = batch["completion_ids"][index][batch["completion_mask"][index].bool()]
        text = tokenizer().decode(ids, skip_special_tokens=True)
        assert float(rows.outcomes[index]) == right_answer([text], [row["answer"]])[0]
        for network, prompt, found in ((student, row["prompt"], rows.student_logprob), (teacher, row["told"], rows.teacher_logprob)):
            shown = torch.tensor(tokenizer()(prompt)["input_ids"])
            with torch.no_grad():
                logits = network(torch.cat([shown, ids])[None]).logits[0, len(shown) - 1 : -1] / 0.8
            expected = torch.log_softmax(logits, -1).gather(-1, ids[:, None])[:, 0]
            torch.testing.assert_close(found[rows.row == index], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "grpo", "dr_grpo"])
def test_weight_one_is_the_distillation_loss_with_the_divisor_of_the_loss_type(tmp_path: Path, loss_type: str):
    seen: list[tuple[ScoredRows, torch.Tensor]] = []
    settings = {
        "max_steps": 1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 8,
        "loss_type": loss_type,
        "learning_rate": 0.0,
    }
    run = trainer(
        tmp_path, settings, distillation_weight=1.0, observers=[lambda *pair: seen.append(pair)], outcome_weights={"incorrect": 0.5},
        token_weights=lambda rows: 1.0 + rows.position,
    )  # fmt: skip
    run.train()
    assert len(seen) == 2
    losses: list[float] = []
    for rows, weights in seen:
        torch.testing.assert_close(weights, torch.where(rows.outcomes == 1, 1.0, 0.5)[rows.row] * (1.0 + rows.position))
        losses.append(float((rows.divergence * weights).sum()))
    tokens = [len(rows.row) for rows, _ in seen]
    expected = {
        "dapo": sum(losses) / sum(tokens),
        "dr_grpo": sum(losses) / (16 * 48),
    }.get(loss_type, np.mean([loss / count for loss, count in zip(losses, tokens, strict=True)]))
    assert run.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_the_loss_is_the_mix_of_both(tmp_path: Path):
    losses = {}
    for weight in (0.0, 0.25, 1.0):
        run = trainer(tmp_path, {"max_steps": 1, "learning_rate": 0.0, "gradient_accumulation_steps": 2}, distillation_weight=weight)
        run.train()
        losses[weight] = (run.state.log_history[0]["loss"], run.state.log_history[0]["grad_norm"])
    assert losses[0.25][0] == pytest.approx(0.75 * losses[0.0][0] + 0.25 * losses[1.0][0], abs=1e-5)
    assert losses[0.25][1] < 0.75 * losses[0.0][1] + 0.25 * losses[1.0][1]  # the triangle inequality of the two gradients


def test_the_mix_is_live_and_may_be_followed(tmp_path: Path):
    run = trainer(tmp_path, {"max_steps": 10, "per_device_train_batch_size": 32})
    callback = watch(run, tmp_path / "log", every=1, follow_mix=True, keep_best=False)
    run.train()
    assert all(part.is_on for part in callback.parts.values())
    stored = open_training_log(tmp_path / "log").table("training_steps").to_pylist()
    (last, before) = (stored[-1], stored[-2])
    assert 0.0 <= last["best_share_low"] <= last["best_share"] <= last["best_share_high"] <= 1.0
    assert last["distillation_weight"] == pytest.approx(before["best_share"]) != 0.5
    for name in ("rl_alignment", "distillation_alignment", "mixed_alignment"):
        assert -1.0 <= last[name] <= 1.0 + 1e-9
    assert any("opdscope/best_share" in entry for entry in run.state.log_history)


def test_rollouts_that_are_trained_on_twice_are_read_once(tmp_path: Path):
    seen: list[ScoredRows] = []
    settings = {"max_steps": 8, "num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
    run = trainer(tmp_path, settings, observers=[lambda rows, _: seen.append(rows)])
    callback = watch(run, tmp_path / "log", every=1, keep_best=False)
    run.train()
    assert sum(rows.num_rows for rows in seen) == 8 * 16
    assert callback.monitor.reading().num_rollouts == 4 * 16


def test_rules_change_the_share_the_context_and_the_objective(tmp_path: Path):
    run = trainer(tmp_path, {"max_steps": 6}, teacher_prompts={"told": "told"})
    actions = ("lower_weight", "switch_context", "switch_objective")
    rules = [{"name": a, "series": "success", "below": 2.0, "evaluations": 1, "most": 1, "then": {"action": a}} for a in actions]
    watch(
        run, tmp_path / "log", rules={"every": 1, "least_rollouts": 0, "rules": rules}, contexts=["told"], objectives=["forward_kl"],
        keep_best=False,
    )  # fmt: skip
    run.train()
    assert (run.distillation_weight, run.context, run.objective) == (0.25, "told", "forward_kl")


@pytest.mark.parametrize("scaled_by", ["group", "batch", "none"])
@pytest.mark.parametrize(("by_response", "policy_length"), [(False, None), (True, None), (True, 48.0)])
def test_both_pushes_are_in_the_unit_of_their_loss(scaled_by: ScaledBy, by_response: bool, policy_length: float | None):
    """Two lengths: what is divided by a response's own tokens is that much more of a mean over tokens, and what is divided by 48 that much less."""
    rng = np.random.default_rng(0)
    live = LiveMix(4, scaled_by, distils_by_length=by_response, policy_length=policy_length)
    moments = []
    for _ in range(5):
        outcomes, pushes, squares = (rng.random(8) < 0.5).astype(float), rng.normal(size=8), rng.random(8) + 1
        outcomes[:2] = (0.0, 1.0)
        lengths = np.array([10.0, 30.0] * 4)
        live.take(outcomes, np.zeros(8, dtype=int), pushes, squares, lengths)
        rate = (outcomes.sum() + 0.5) / 9
        signals = rl_signals(outcomes, lengths, group_advantage(np.array(rate), 4, scaled_by == "group"), False, 20.0)
        signals = signals * (1 if policy_length is None else 20 / 48) / (np.std(outcomes, ddof=1) + 1e-4 if scaled_by == "batch" else 1)
        share = 20 / lengths if by_response else 1.0
        moments.append(fisher_moments(outcomes, signals, pushes * share, squares * share**2))
    found, expected = live.reading(0.9), mix(np.stack(moments), 0.9)
    assert found is not None
    assert found.distillation.value == pytest.approx(expected.distillation.value)
    assert found.share.value == pytest.approx(expected.share.value)


def test_the_mix_knows_how_the_trainer_scales(tmp_path: Path):
    for settings, expected in (
        ({}, ("group", False)), ({"scale_rewards": "batch"}, ("batch", False)), ({"scale_rewards": False, "loss_type": "grpo"}, ("none", True))
    ):  # fmt: skip
        live = mix_of(trainer(tmp_path, settings, 8))
        assert live is not None
        assert (live.scale_rewards, live.by_length, live.distils_by_length, live.policy_length) == (*expected, False, None)


@pytest.mark.parametrize(
    ("settings", "wishes", "message"),
    [
        ({"loss_type": "sapo"}, {}, "loss_type 'sapo': the mix with distillation is known for dapo, bnpo, grpo, dr_grpo"),
        ({}, {"distillation_weight": 1.5}, "a share of the loss, from 0 to 1, found 1.5"),
        ({}, {"outcome_reward": 1}, "there are 1 reward functions, counted from 0, found 1"),
        ({}, {"context": "told"}, "there is no context 'told'; those there are: plain"),
        ({}, {"teacher_prompts": {"hint": "hint"}}, "context 'hint' wants the column 'hint'"),
        ({}, {"objective": "jsd"}, "unknown objective 'jsd'"),
        ({}, {"outcome_weights": {"right": 1.0}}, "unknown class 'right'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path: Path, settings: dict[str, Any], wishes: dict[str, Any], message: str):
    with pytest.raises(TrainingError, match=message):
        trainer(tmp_path, settings, 8, **wishes)


def test_trls_own_trainer_is_not_watched_in_silence(tmp_path: Path):
    run = GRPOTrainer(
        model("chain-student-weak"), right_answer, args=arguments(tmp_path), train_dataset=chain_rows(8), processing_class=tokenizer()
    )
    with pytest.raises(TrainingError, match="so nothing can be watched; use MonitoredGRPOTrainer in its place"):
        watch(run, tmp_path / "log")
