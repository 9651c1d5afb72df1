"""On-policy distillation of a tiny model that is watched and steered; a minute on two cores, offline.

    python examples/train_monitored.py
    opdscope watch runs/train_monitored

The teacher is an independent model that is worse than the student: after a while it is no better than sharpening. The live monitor sees it, and a
rule goes to the context in which the same teacher helps: it is shown a worked solution.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig

from opdscope.config import EmbeddedTaskConfig
from opdscope.models.packaged import resolve_model
from opdscope.tasks import load_task
from opdscope.tasks.embedded import EMBEDDED
from opdscope.training import MonitoredDistillationTrainer, ProbeSet, TaskReward, training_rows, watch

OUT = Path("runs/train_monitored")
STUDENT, TEACHER = resolve_model("embedded:addition-student-strong"), resolve_model("embedded:addition-student-weak")

RULES = {
    "every": 5,
    "least_rollouts": 300,
    "rules": [
        {"name": "no better than sharpening", "series": "gain_over_null", "below": 0.0, "then": {"action": "switch_context"}},
        {"name": "it harms", "series": "natural_gain", "below": 0.0, "then": {"action": "lower_weight", "factor": 0.5}},
        {"name": "collapse", "series": "success", "falls_by": 0.02, "evaluations": 3, "then": {"action": "stop"}},
    ],
}

PROBE = {
    "student": {"model_name_or_path": STUDENT},
    "teachers": [{"name": "weak teacher", "teacher_model_name_or_path": TEACHER}],
    "task": {"kind": "addition", "num_questions": 24, "seed": 7},
    "objectives": ["reverse_kl"],
    "rollouts": {"num_rollouts": 8, "num_demonstrations": 1, "max_completion_length": 64},
}


def main() -> None:
    """Train, and say where to look."""
    task = load_task(EmbeddedTaskConfig(kind="addition", num_questions=2000, seed=1))
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    with TaskReward(task, [tokenizer.eos_token_id]) as reward:
        trainer = MonitoredDistillationTrainer(
            AutoModelForCausalLM.from_pretrained(STUDENT),
            AutoModelForCausalLM.from_pretrained(TEACHER),
            args=DistillationConfig(
                output_dir=str(OUT / "trl"), max_steps=120, per_device_train_batch_size=32, learning_rate=1e-4, max_completion_length=64,
                use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], logging_steps=10, save_strategy="no",
            ),
            train_dataset=training_rows(task),
            processing_class=tokenizer,
            reward_func=reward,
            teacher_prompts={"solution": lambda row: f"S{EMBEDDED['addition'].worked_solution(row['prompt'][1:-1])} {row['prompt']}"},
        )  # fmt: skip
        watch(trainer, OUT, rules=RULES, contexts=["solution"], probe=ProbeSet(PROBE, OUT / "probes", every=50, budget=0.3))
        trainer.train()
    print(f"Look at it: opdscope watch {OUT}")


if __name__ == "__main__":
    main()
