"""What watching costs: the free monitor's and the whole callback's share of a training step, on the tiny model and on a large vocabulary.

    python bench/monitor.py

Prints tables, writes bench/results/monitor.json. Targets: the free monitor takes less than 2 % of a step, and probes at most the share of the whole
time that they were given.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import DistillationConfig

from opdscope.config import EmbeddedTaskConfig
from opdscope.models.packaged import resolve_model
from opdscope.tasks import load_task
from opdscope.training import MonitoredDistillationTrainer, ProbeSet, training_rows, watch
from opdscope.training.probe import Measure

RESULTS = Path(__file__).parent / "results" / "monitor.json"
LARGE_VOCABULARY = 32_000


def random_model(seed: int) -> Any:
    """A random model with a vocabulary as large as real ones: the worst case, since its output head is most of it."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=LARGE_VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None, max_position_embeddings=256,
        )
    )  # fmt: skip


def measure(name: str, student: Any, teacher: Any, rows: Dataset, steps: int, batch: int, length: int) -> dict[str, Any]:
    """Train and measure the shares."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("embedded:chain-student-weak"))
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, max_completion_length=length, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to=[], logging_steps=10, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = MonitoredDistillationTrainer(
            student, teacher, args=args, train_dataset=rows, processing_class=tokenizer,
            reward_func=lambda completions, **_: [float(len(text) % 2) for text in completions],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        callback = watch(trainer, Path(folder) / "log", every=10, keep_best=False, budget=1.0)
        spent = {"callback": 0.0}
        original = callback.on_step_end

        def timed(*args: Any, **kwargs: Any) -> None:
            begun = time.perf_counter()
            original(*args, **kwargs)
            spent["callback"] += time.perf_counter() - begun

        callback.on_step_end = timed
        started = time.perf_counter()
        trainer.train()
        total = time.perf_counter() - started
    # what happens at the end of a step is in both numbers
    observed = callback.monitor.seconds
    return {
        "case": name,
        "step_ms": total / steps * 1e3,
        "monitor_share": observed / total,
        "share_with_evaluations_log_and_files": max(spent["callback"], observed) / total,
    }


PROBE = {
    "student": {"model_name_or_path": "embedded:chain-student-weak"},
    "teachers": [{"name": "teacher", "teacher_model_name_or_path": "embedded:chain-teacher"}],
    "task": {"kind": "chain", "num_questions": 8, "seed": 1},
    "objectives": ["reverse_kl"],
    "rollouts": {"num_rollouts": 8, "num_demonstrations": 1, "max_completion_length": 48},
    "engine": {"verifier_workers": 1},
}
"""A probe set of half a second or so on the tiny model."""


def measure_probes(rows: Dataset, budget: float, measured: Measure, steps: int) -> dict[str, Any]:
    """Train with a probe set that would be taken every five steps if its budget allowed, and measure its share of the whole time."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("embedded:chain-student-weak"))
    student, teacher = (AutoModelForCausalLM.from_pretrained(resolve_model(f"embedded:chain-{who}")) for who in ("student-weak", "teacher"))
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=32, max_completion_length=48, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to=[], logging_steps=50, save_strategy="no", disable_tqdm=True, learning_rate=0.0,
        )  # fmt: skip
        trainer = MonitoredDistillationTrainer(student, teacher, args=args, train_dataset=rows, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        probe = ProbeSet(PROBE, Path(folder) / "probes", every=5, budget=budget, measure=measured)
        watch(trainer, Path(folder) / "log", every=10, keep_best=False, probe=probe)
        started = time.perf_counter()
        trainer.train()
        total = time.perf_counter() - started
        taken = len(list((Path(folder) / "probes").iterdir()))
    return {"measure": measured, "budget": budget, "share": probe.seconds / total, "probes": taken, "steps": steps, "seconds": total}


def main() -> None:
    """Both models, and two budgets."""
    rows = training_rows(load_task(EmbeddedTaskConfig(kind="chain", num_questions=512)))
    tiny = (AutoModelForCausalLM.from_pretrained(resolve_model(f"embedded:chain-{who}")) for who in ("student-weak", "teacher"))
    found = [
        measure("0.1 M parameters, 23 tokens, 32 × 48", *tiny, rows, steps=40, batch=32, length=48),
        measure("11 M parameters, 32,000 tokens, 8 × 48", random_model(0), random_model(1), rows, steps=4, batch=8, length=48),
    ]
    probes = [
        measure_probes(rows, budget, measured, steps=400) for budget, measured in ((0.05, "success"), (0.1, "success"), (0.2, "gains"))
    ]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"monitor": found, "probes": probes}, indent=2) + "\n", encoding="utf-8")
    table = Table(
        "model, tokens, batch", "ms a step", "free monitor", "with evaluations, log and files every 10 steps", title="What watching costs"
    )
    for case in found:
        shares = (case["monitor_share"], case["share_with_evaluations_log_and_files"])
        table.add_row(case["case"], f"{case['step_ms']:.0f}", *(f"{share:.2%}" for share in shares))
    Console().print(table)
    table = Table("probes measure", "budget", "share of the time", "probes taken", "steps", "seconds", title="What probes cost")
    for case in probes:
        numbers = (f"{case['budget']:.0%}", f"{case['share']:.1%}", str(case["probes"]), str(case["steps"]), f"{case['seconds']:.0f}")
        table.add_row(case["measure"], *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
