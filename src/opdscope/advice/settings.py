"""A recipe in the words of three trainers, ready to paste. Only options that these trainers document are used; what they cannot do is said.

TRL 1.16 (`DistillationConfig`, `experimental.sdft.SDFTConfig`), verl (`docs/algo/opd.md` of September 2026), ms-swift
(`docs/source_en/Instruction/Distillation.md`).
"""

import shlex
from collections.abc import Sequence

from opdscope.advice.recipe import Recipe, TeacherStamp
from opdscope.core.divergences import split_objective


def trainer_settings(recipe: Recipe) -> dict[str, str]:
    """Settings by file name; empty unless the recipe is to distil."""
    if recipe.teacher is None or recipe.objective is None:
        return {}
    teacher, objective = recipe.teacher, recipe.objective
    found = {
        "trl.py": _trl(recipe, teacher, objective),
        "verl.sh": _verl(recipe, teacher, objective),
        "ms_swift.sh": _ms_swift(recipe, teacher),
    }
    return {name: _document(_left_out(recipe, teacher), text) for name, text in found.items()}


def _left_out(recipe: Recipe, teacher: TeacherStamp) -> list[str]:
    """What of the recipe these settings cannot say."""
    weightings = {"outcome": recipe.outcome_weighting, "token": recipe.token_weighting, "question": recipe.question_weighting}
    used = [name for name, weighting in weightings.items() if weighting.use]
    weights = f" weights by {' and '.join(used)}," if used else ""
    notes = [f"Not in here, since it takes opdscope's trainer:{weights} curriculum and dynamic weight; see recipe.yaml"]
    if any(model.startswith(("embedded:", "exact:")) for model in (recipe.student.model_name_or_path, teacher.model_name_or_path)):
        notes.append("embedded: and exact: models are known to opdscope only; put a directory or hub name in their place")
    return notes


def _command(*lines: str) -> str:
    return " \\\n  ".join(lines)


def _document(notes: Sequence[str], body: str) -> str:
    # a line break in a name would end the comment
    return "".join(f"# {' '.join(note.split())}\n" for note in notes) + body.rstrip("\n") + "\n"


def _shows(teacher: TeacherStamp) -> bool:
    return teacher.privileged_context != "plain"


def _trl(recipe: Recipe, teacher: TeacherStamp, objective: str) -> str:
    if teacher.self_distillation and _shows(teacher):
        notes = [
            f"TRL: the student is its own teacher, shown {teacher.privileged_context!r}; data set columns: prompt and privileged_context",
            "full_logits is what was measured; topk_logits with distillation_topk takes less memory and drops the rest of the vocabulary",
        ]
        body = f"""from trl.experimental.sdft import SDFTConfig, SDFTTrainer

args = SDFTConfig(
    distillation_alpha={recipe.beta!r},  # {objective}
    distillation_mode="full_logits",
    distillation_topk=None,
    teacher_model_kind="base",
    generate_from_teacher=False,
    temperature={recipe.temperature!r},
    max_completion_length={recipe.max_completion_length!r},
)"""
        return _document(notes, body)
    notes = ["TRL; the data set needs the column prompt"]
    if _shows(teacher):
        notes.append(
            f"TRL's trainer shows the teacher the student's prompt; this one was measured with {teacher.privileged_context!r}: "
            "use opdscope's trainer, which takes it"
        )
    body = f"""from trl import DistillationConfig, DistillationTrainer

args = DistillationConfig(
    teacher_model_name_or_path={teacher.model_name_or_path!r},
    beta={recipe.beta!r},  # {objective}
    temperature={recipe.temperature!r},
    max_completion_length={recipe.max_completion_length!r},
)"""
    return _document(notes, body)


def _verl(recipe: Recipe, teacher: TeacherStamp, objective: str) -> str:
    if _shows(teacher):
        note = f"verl: its on-policy distillation shows the teacher the student's prompt; this one needs {teacher.privileged_context!r} in its own"
        return _document([note, "nothing to paste: use TRL, ms-swift or opdscope's trainer"], ":")
    base, _ = split_objective(objective)
    if base == "generalized_jsd":
        return _document([f"verl: it has no {objective}; the nearest are k1 (reverse KL) and forward_kl_topk", "nothing to paste"], ":")
    loss = {
        "reverse_kl": ["distillation_loss.loss_mode=k1", "distillation_loss.use_policy_gradient=true"],
        "forward_kl": [
            "distillation_loss.loss_mode=forward_kl_topk",
            "distillation_loss.topk=32",
            "distillation_loss.use_policy_gradient=false",
        ],
    }[base]
    what = {
        "reverse_kl": "reverse KL by the sampled token: in expectation what was measured, with more variance",
        "forward_kl": "forward KL on the teacher's 32 likeliest tokens: a truncation of what was measured",
    }[base]
    options = [
        "distillation.enabled=true",
        "distillation.nnodes=1",
        f"distillation.teacher_models.teacher_model.model_path={teacher.model_name_or_path}",
        *(f"distillation.{option}" for option in loss),
        "distillation.distillation_loss.use_task_rewards=false",
        f"actor_rollout_ref.model.path={recipe.student.model_name_or_path}",
        f"actor_rollout_ref.rollout.temperature={recipe.temperature!r}",
        f"data.max_response_length={recipe.max_completion_length!r}",
    ]
    notes = [f"verl; {what}", "add your data, batch sizes and the GPUs of the teacher (distillation.n_gpus_per_node)"]
    return _document(notes, _command("python3 -m verl.trainer.main_ppo", *map(shlex.quote, options)))


def _ms_swift(recipe: Recipe, teacher: TeacherStamp) -> str:
    notes = ["ms-swift; add your data set and batch sizes"]
    if _shows(teacher):
        notes.append(f"the data set needs the column teacher_prompt: the question with {teacher.privileged_context!r}")
    options = [
        "--rlhf_type gkd",
        f"--model {shlex.quote(recipe.student.model_name_or_path)}",
        f"--teacher_model {shlex.quote(teacher.model_name_or_path)}",
        f"--beta {recipe.beta!r}",
        "--lmbda 1",
        f"--temperature {recipe.temperature!r}",
        f"--max_completion_length {recipe.max_completion_length!r}",
    ]
    return _document(notes, _command("swift rlhf", *options))
