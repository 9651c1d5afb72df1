"""Watching real runs: the monitor's numbers, what it leaves alone, and what is stored."""

import io
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import DistillationTrainer

from fixtures.training import NOISE, arguments, chain_rows, model, right_answer, tokenizer
from opdscope.core.aggregation import clustered_mean
from opdscope.core.streaming import step_gain
from opdscope.errors import RunDirectoryError, TrainingError
from opdscope.records import to_table
from opdscope.report import render_training
from opdscope.store import TrainingLog, open_run, open_training_log
from opdscope.summary import summarize
from opdscope.summary.teachers import question_success
from opdscope.training import MonitoredDistillationTrainer, ProbeSet, watch
from opdscope.training.guard import Part, undisturbed
from opdscope.training.loss import ScoredRows
from opdscope.training.mixing import LiveMix
from opdscope.training.monitor import FreeMonitor
from opdscope.training.resuming import read_resumed
from opdscope.training.steering import check_trainer

pytestmark = [pytest.mark.filterwarnings(text) for text in NOISE]

PROBE = {
    "student": {"model_name_or_path": "embedded:chain-student-weak"},
    "teachers": [{"name": "teacher", "teacher_model_name_or_path": "embedded:chain-teacher"}],
    "task": {"kind": "chain", "num_questions": 6, "seed": 3},
    "objectives": ["reverse_kl"],
    "rollouts": {"num_rollouts": 4, "num_demonstrations": 1, "max_completion_length": 48},
    "engine": {"verifier_workers": 1},
}


def trainer(folder: Path, steps: int = 4, settings: dict[str, Any] | None = None, **options: Any) -> MonitoredDistillationTrainer:
    return MonitoredDistillationTrainer(
        model("chain-student-weak"),
        model("chain-teacher"),
        args=arguments(folder / "trl", max_steps=steps, **(settings or {})),
        train_dataset=chain_rows(),
        processing_class=tokenizer(),
        reward_func=right_answer,
        **options,
    )


def weights(run: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def global_states() -> tuple[object, list[int], torch.Tensor]:
    arrays = np.random.get_state()[1].tolist()  # noqa: NPY002 - what is tested is that the global generator stays as it was
    return random.getstate(), arrays, torch.get_rng_state()


def random_rows(seed: int, num_rows: int = 12, length: int = 40) -> ScoredRows:
    generator = torch.Generator().manual_seed(seed)
    row = torch.arange(num_rows).repeat_interleave(length)

    def draw() -> torch.Tensor:
        return torch.randn(len(row), generator=generator)

    return ScoredRows(
        row=row, position=torch.arange(length).repeat(num_rows), token_ids=row, student_logprob=-draw().abs(), teacher_logprob=-draw().abs(),
        entropy=draw().abs(), divergence=draw().abs(), signal=draw(), reverse_kl=draw().abs(),
        outcomes=(torch.rand(num_rows, generator=generator) < 0.5).float(), has_context=torch.ones(num_rows, dtype=torch.bool),
        questions=torch.arange(num_rows), num_rows=num_rows,
    )  # fmt: skip


def test_the_monitors_gain_is_screenings_and_its_bins_add_up():
    monitor, rows = FreeMonitor(), random_rows(0)
    monitor.observe(rows, torch.ones_like(rows.signal))
    monitor.end_step()
    monitor.flush()
    reading = monitor.reading()
    pushes = rows.signal.reshape(rows.num_rows, -1).sum(1).double().numpy()[None]
    expected = step_gain(rows.outcomes.double().numpy(), rows.questions.numpy(), pushes)
    assert reading.natural_gain == pytest.approx(expected.value[0], rel=1e-4)
    assert reading.natural_gain_error == pytest.approx(expected.error[0], rel=1e-4)
    for axis in ("depth", "entropy"):
        own = [bin for bin in reading.bins if bin[0] == axis]
        assert sum(bin[3] for bin in own) == pytest.approx(reading.natural_gain, rel=1e-3)
        assert sum(bin[5] for bin in own) == pytest.approx(40)
    assert reading.reverse_kl == pytest.approx(float(rows.reverse_kl.sum()) / rows.num_rows, rel=1e-4)


def test_micro_batches_make_one_step():
    whole, parts, rows = FreeMonitor(), FreeMonitor(), [random_rows(1), random_rows(2)]
    for monitor in (whole, parts):
        for batch in rows:
            monitor.observe(batch, torch.ones_like(batch.signal))
        monitor.end_step()
        monitor.flush()
    assert whole.reading().num_rollouts == 24
    assert whole.reading().num_steps == pytest.approx(1.0)


def test_the_mix_of_two_pushes_finds_the_useful_one():
    """Four questions, eight rollouts each: one teacher pushes at random, the other along the outcome."""
    rng = np.random.default_rng(0)
    shares = {}
    for strength in (0.0, 1.0):
        live = LiveMix(8, "none")
        for _ in range(30):
            questions = np.repeat(np.arange(4), 8)
            outcomes = (rng.random(32) < 0.5).astype(float)
            pushes = rng.normal(size=32) + strength * 4 * (outcomes - 0.5)
            live.take(outcomes, questions, pushes, np.full(32, 1.0 + 4 * strength), np.full(32, 20.0))
        found = live.reading(0.9)
        assert found is not None
        # Dr. GRPO's expected gradient is the ideal one times 7/8 on every question: nothing is better aligned
        assert found.rl.value == pytest.approx(1.0, abs=0.02)
        shares[strength] = found.share
    assert shares[0.0].low <= 0.05
    assert shares[0.0].value < 0.2


def test_the_monitor_reads_less_when_it_is_too_slow():
    monitor = FreeMonitor(budget=0.02)
    for _ in range(32):
        monitor.end_step()
    monitor.seconds, monitor.stride = 1e6, 1
    for _ in range(32):
        monitor.end_step()
    assert monitor.stride == 2


def test_a_watched_run_is_the_unwatched_run_and_is_stored(tmp_path: Path):
    plain = trainer(tmp_path)
    plain.train()
    watched = trainer(tmp_path)
    callback = watch(watched, tmp_path / "log", every=2, probe=ProbeSet(PROBE, tmp_path / "probes", every=3, budget=1.0))
    watched.train()
    assert all(torch.equal(x, y) for x, y in zip(weights(plain), weights(watched), strict=True))
    assert all(part.is_on for part in callback.parts.values())
    tables = open_training_log(tmp_path / "log").tables()
    assert tables["training_steps"]["step"].to_pylist() == [2, 4]
    assert tables["training_steps"]["num_rollouts"].to_pylist() == [
        16,
        64,
    ]  # the batch of the present step is read at the next one, or at the end
    assert set(tables["training_bins"]["axis"].to_pylist()) == {"depth", "entropy"}
    logged = [entry for entry in watched.state.log_history if "opdscope/natural_gain" in entry]
    assert len(logged) >= 2
    assert (tmp_path / "log" / "best" / "model.safetensors").is_file()
    probes = tables["training_probes"].to_pylist()
    assert [row["step"] for row in probes] == [0, 3]
    assert (probes[0]["success_change"], probes[0]["success_change_high"]) == (0.0, 0.0)
    successes = [question_success(open_run(row["run"]).tables()) for row in probes]
    paired = clustered_mean(np.array([after - before for before, after in zip(*(s.values() for s in successes), strict=True)]), 0.9)
    assert (probes[1]["success_change"], probes[1]["success_change_low"]) == (paired.value, paired.low)
    assert np.isnan(probes[1]["advantage"])  # without targeted rollouts
    run = open_run(probes[-1]["run"])
    assert summarize(run.tables(), run.config).data["teachers"][0]["natural_gain"]["value"] is not None
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(render_training(tables))
    text = console.export_text()
    assert "Step 4 · reverse_kl · context plain · weight 1" in text
    assert "Probe set" in text
    assert "Where the natural gain comes from" in text


def test_rules_steer_and_stop_and_say_why(tmp_path: Path):
    rules = {
        "every": 1,
        "least_rollouts": 0,
        "rules": [
            {
                "name": "less",
                "series": "success",
                "below": 2.0,
                "evaluations": 1,
                "most": 1,
                "then": {"action": "lower_weight", "factor": 0.25},
            },
            {"name": "away", "series": "success", "below": 2.0, "evaluations": 2, "most": 1, "then": {"action": "switch_context"}},
            {"name": "enough", "series": "success", "below": 2.0, "evaluations": 3, "then": {"action": "stop"}},
        ],
    }
    run = trainer(tmp_path, 20, teacher_prompts={"told": "told"})
    watch(run, tmp_path / "log", rules=rules, contexts=["told"], keep_best=False)
    run.train()
    actions = open_training_log(tmp_path / "log").table("training_actions").to_pylist()
    assert [(row["action"], row["before"], row["after"]) for row in actions] == [
        ("lower_weight", "1", "0.25"), ("switch_context", "plain", "told"), ("stop", "training", "stopped"),
    ]  # fmt: skip
    assert run.state.global_step == actions[-1]["step"] < 20
    assert (run.distillation_weight, run.context) == (0.25, "told")
    assert all("success [" in row["reason"] for row in actions)


def test_dry_rules_only_report(tmp_path: Path):
    run = trainer(tmp_path, 4)
    rule = {"name": "less", "series": "success", "below": 2.0, "evaluations": 1, "then": {"action": "lower_weight"}}
    watch(run, tmp_path / "log", rules={"every": 1, "least_rollouts": 0, "dry": True, "rules": [rule]})
    run.train()
    (row, *_) = open_training_log(tmp_path / "log").table("training_actions").to_pylist()
    assert row["dry"]
    assert run.distillation_weight == 1.0


def test_what_fails_is_switched_off_and_never_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    run = trainer(tmp_path, 3)
    callback = watch(run, tmp_path / "log", every=1, probe=ProbeSet(PROBE, tmp_path / "probes", every=1))
    monkeypatch.setattr(callback.monitor, "reading", fail)
    monkeypatch.setattr(callback.probe, "_run", fail)
    run.train()
    assert run.state.global_step == 3
    assert {name for name, part in callback.parts.items() if not part.is_on} == {"monitor", "probe set"}
    assert sum("the probe set has failed" in record.message for record in caplog.records) == 1


def test_randomness_and_training_flags_are_left_as_they_were():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    network[1].eval()
    before = global_states()

    def disturb() -> None:
        with undisturbed(network):
            network.eval()
            torch.rand(3), random.random(), np.random.rand(3)  # noqa: NPY002 - disturbs the global generator on purpose
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        disturb()
    assert [module.training for module in network.modules()] == [True, True, False]
    after = global_states()
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])


def test_a_part_that_failed_is_off():
    part = Part("x")
    with part.trying():
        raise ValueError
    assert not part.is_on


def actions(*steps: int) -> pa.Table:
    row = {"rule": "r", "action": "stop", "before": "training", "after": "stopped", "reason": "", "dry": True}
    return to_table("training_actions", [{"step": step, **row} for step in steps])


def test_a_long_log_has_few_parts_and_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, folder = TrainingLog(tmp_path), tmp_path / "training_actions"
    for step in range(1, 201):
        log.write("training_actions", step, actions(step))
        log.write("training_actions", step, actions(step))  # a step that is written again replaces itself
    assert log.table("training_actions")["step"].to_pylist() == list(range(1, 201))
    assert len(list(folder.iterdir())) <= 65
    monkeypatch.setattr(Path, "unlink", lambda _: None)  # killed before what was put together is taken away
    for step in range(201, 301):
        log.write("training_actions", step, actions(step))
    assert log.table("training_actions")["step"].to_pylist() == list(range(1, 301))
    pq.write_table(pa.table({"step": [999]}), folder / "000000999.parquet")
    with pytest.raises(RunDirectoryError, match=r"000000999.parquet was written by another version of opdscope"):
        log.table("training_actions")


def test_a_log_goes_back_with_the_checkpoint(tmp_path: Path):
    log = TrainingLog(tmp_path)
    for step in (5, 10, 15):
        log.write("training_actions", step, actions(step - 1, step))
    log.rewind(14)  # within a part: its earlier row stays
    assert log.table("training_actions")["step"].to_pylist() == [4, 5, 9, 10, 14]
    log.write("training_actions", 14, actions(14))  # what is written at the step of the checkpoint comes after
    assert log.table("training_actions")["step"].to_pylist() == [4, 5, 9, 10, 14, 14]
    log.rewind(3)
    assert not log.table("training_actions").num_rows
    with pytest.raises(RunDirectoryError, match="holds no record of a training run"):
        open_training_log(tmp_path / "nothing")


def test_any_trainer_may_have_the_probe_set_and_its_rules(tmp_path: Path):
    """A plain `Trainer` with a causal loss: no rollouts to read, and no weight."""
    token_ids = tokenizer()(list(chain_rows(8)["told"]))["input_ids"]
    data = [{"input_ids": ids, "labels": ids} for ids in token_ids]
    args = TrainingArguments(
        output_dir=str(tmp_path / "hf"), max_steps=2, per_device_train_batch_size=1, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1
    )  # fmt: skip
    run = Trainer(model("chain-student-weak"), args, train_dataset=data, processing_class=tokenizer())
    rule = {"name": "r", "series": "probe.success", "below": 2.0, "evaluations": 1, "then": {"action": "stop"}}
    watch(
        run, tmp_path / "log", rules={"every": 1, "rules": [rule]}, probe=ProbeSet(PROBE, tmp_path / "probes", every=1), keep_best=False
    )  # fmt: skip
    run.train()
    assert run.state.global_step == 1  # stopped before the first step, which such a trainer takes still
    assert open_training_log(tmp_path / "log").table("training_actions")["step"].to_pylist() == [0]
    assert any("opdscope/probe/teacher/natural_gain" in entry for entry in run.state.log_history)
    with pytest.raises(TrainingError, match="needs a trainer that shows its rollouts"):
        watch(run, tmp_path / "log", rules={"rules": [{**rule, "series": "success"}]}, probe=ProbeSet(PROBE, tmp_path / "probes"))
    with pytest.raises(
        TrainingError, match="a Trainer does not show its rollouts, student and teacher, and there is no probe set, so nothing"
    ):
        watch(run, tmp_path / "log")
    with pytest.raises(TrainingError, match="contexts and objectives can be changed in a MonitoredDistillationTrainer"):
        watch(run, tmp_path / "log", contexts=["told"])


def test_a_teacher_whose_gain_is_negative_changes_no_weight_and_the_first_ones_are_kept(tmp_path: Path):
    student = model("chain-student-weak")
    flattened = {**PROBE, "teachers": [{"name": "unrelated", "privileged_context": "unrelated_solution"}, *PROBE["teachers"]]}
    run = trainer(tmp_path, 3)
    rule = {"name": "it harms", "series": "probe.advantage", "below": 2.0, "evaluations": 1, "then": {"action": "stop"}}
    probe = ProbeSet(
        {**flattened, "targeted": {"paths_per_outcome": 1, "nodes_per_path": 2}},
        tmp_path / "probes",
        every=1,
        measure="success",
        measure_first="targeted",
    )
    watch(run, tmp_path / "log", rules={"every": 1, "rules": [rule]}, probe=probe)
    run.train()
    assert run.state.global_step == 1
    kept = load_file(tmp_path / "log" / "best" / "model.safetensors")
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, dict(run.model.named_parameters())[name])
        assert name not in kept or torch.equal(parameter, kept[name])
    row = open_training_log(tmp_path / "log").table("training_probes").to_pylist()[0]
    assert row["advantage_low"] < row["advantage"] < row["advantage_high"]
    with pytest.raises(TrainingError, match=r"probe.advantage needs probes that measure 'targeted', and these measure 'gains'"):
        watch(run, tmp_path / "log", rules={"rules": [rule]}, probe=ProbeSet(PROBE, tmp_path / "probes", every=1))


def test_a_run_that_goes_on_is_held_against_the_student_before_training(tmp_path: Path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    first = trainer(tmp_path, 2, settings)
    watch(first, tmp_path / "log", probe=ProbeSet(PROBE, tmp_path / "probes", every=2, budget=1.0), keep_best=False)
    first.train()
    second = trainer(tmp_path, 4, settings)
    watch(second, tmp_path / "log", probe=ProbeSet(PROBE, tmp_path / "probes", every=4, budget=1.0), keep_best=False)
    second.train(resume_from_checkpoint=True)
    steps, changes = (open_training_log(tmp_path / "log").table("training_probes")[name].to_pylist() for name in ("step", "success_change"))
    assert steps == [0, 2, 4]
    start, end = (question_success(open_run(tmp_path / "probes" / f"step-000000{step}").tables()) for step in (0, 4))
    assert changes[2] == pytest.approx(np.mean([end[name] - start[name] for name in start]))


def test_what_will_not_be_known_is_said_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = MonitoredDistillationTrainer(
        model("chain-student-weak"), model("chain-teacher"), args=arguments(tmp_path), train_dataset=chain_rows(8), processing_class=tokenizer()
    )  # fmt: skip
    watch(run, tmp_path / "log")
    assert "raise the batch size" not in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"the records cannot go to .*file: File exists; choose another log_dir"):
        watch(run, tmp_path / "file")
    watch(trainer(tmp_path, settings={"per_device_train_batch_size": 2}), tmp_path / "log")
    assert "a step has 2 rollouts, and success and gains take 3: raise the batch size" in caplog.text
    assert "has no reward function: divergence, entropy and length are watched, success and gains are not known" in caplog.text
    plain = DistillationTrainer(
        model("chain-student-weak"), model("chain-teacher"), args=arguments(tmp_path), train_dataset=chain_rows(8), processing_class=tokenizer()
    )  # fmt: skip
    with pytest.raises(TrainingError, match="so nothing can be watched; use MonitoredDistillationTrainer in its place"):
        watch(plain, tmp_path / "log")


def test_a_run_that_goes_on_keeps_what_rules_had_made_of_it(tmp_path: Path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    actions = ("lower_weight", "switch_context", "switch_objective")
    rules = [{"name": a, "series": "success", "below": 2.0, "evaluations": 1, "most": 1, "then": {"action": a}} for a in actions]
    ends: list[tuple[float, str, str]] = []
    for steps in (4, 6):
        run = trainer(tmp_path, steps, settings, teacher_prompts={"told": "told"})
        callback = watch(
            run, tmp_path / "log", rules={"every": 1, "least_rollouts": 0, "rules": rules}, contexts=["told"], objectives=["forward_kl"]
        )  # fmt: skip
        run.train(resume_from_checkpoint=steps == 6)
        ends.append((run.distillation_weight, run.context, run.objective))
        assert all(part.is_on for part in callback.parts.values())
    assert ends == [(0.5, "told", "forward_kl")] * 2
    stored = open_training_log(tmp_path / "log").table("training_actions").to_pylist()
    # the checkpoint of step 3 knows of the first two; what came after it is done again, and nothing twice
    assert [row["action"] for row in stored] == list(actions)
    best = read_resumed(open_training_log(tmp_path / "log"), has_probe=False, z=1.0).best
    assert best == callback._best > 0


class GKDTrainer:
    """Looks like TRL's as far as it is looked at."""

    def __init__(self, lmbda: float, temperature: float) -> None:
        self.lmbda, self.temperature, self.args = lmbda, temperature, object()

    def add_callback(self, callback: TrainerCallback) -> None: ...


def test_a_trainer_whose_rollouts_say_nothing_is_refused(tmp_path: Path):
    check_trainer(GKDTrainer(1.0, 1.0))
    with pytest.raises(TrainingError, match=r"set lmbda=1.0 and temperature=1.0"):
        check_trainer(GKDTrainer(0.5, 0.9))
    with pytest.raises(TrainingError, match="expected a Hugging Face trainer, found a int"):
        check_trainer(3)
    with pytest.raises(TrainingError, match=r"the trainer samples with top_p=0.9: such rollouts are not"):
        watch(trainer(tmp_path, settings={"top_p": 0.9}), tmp_path / "log")


def test_probes_keep_their_budget_and_one_that_would_not_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A clock on which a step takes 1 s, the first probe 8 s and each other one 2 s."""
    now = [0.0]

    def run(probe: ProbeSet, _: Any, step: int, measure: str) -> str:
        now[0] += 8.0 if measure == "targeted" else 2.0
        return f"{measure} at {step}"

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(ProbeSet, "_run", run)
    trained = SimpleNamespace(model=torch.nn.Linear(1, 1))
    probe = ProbeSet(PROBE, tmp_path, every=10, budget=0.2, measure="success", measure_first="targeted")
    probe.begin(trained, 0)
    taken: list[int] = []
    for step in range(1, 201):
        now[0] += 1.0
        if probe.maybe(trained, step) is not None:
            taken.append(step)
            # the first of its kind is taken to learn its cost; from then on the share holds
            assert len(taken) == 1 or probe.seconds <= 0.2 * now[0] + 1e-9
    assert taken[0] == 10
    assert taken[1] > 20  # it waited: 8 s + 2 s were spent of 20
    assert len(taken) > 10
