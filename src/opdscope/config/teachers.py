"""What a teacher is: a model and what it is shown."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

ContextKind = Literal[
    "plain", "answer", "solution", "three_solutions", "solution_and_mistake", "mistake", "hint", "reference_solution", "unrelated_solution"
]

CONTEXTS: tuple[ContextKind, ...] = get_args(ContextKind)
"""What a teacher can be shown."""

NULL_CONTEXTS = frozenset({"unrelated_solution"})
"""Contexts that carry the form of help and nothing about the question: teachers shown one are nulls."""

DEMONSTRATED_CONTEXTS = frozenset(CONTEXTS) - {"plain", "answer", "reference_solution"}
"""Contexts that show attempts of the student's own."""

_PLACEHOLDERS = {
    "plain": (), "answer": ("answer",), "solution": ("solution",), "three_solutions": ("solution_1", "solution_2", "solution_3"),
    "solution_and_mistake": ("solution", "mistake"), "mistake": ("mistake",), "hint": ("hint",), "reference_solution": ("solution",),
    "unrelated_solution": ("solution",),
}  # fmt: skip
_STEPS = "Think step by step. Write the final result on the last line as `Answer: <result>`."


class TeacherConfig(BaseModel):
    """A teacher is a model plus a context; without a model it is the student itself, shown the context."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=60, pattern=r"^[^/\\\x00-\x1f]+$")
    """How the teacher is called in every table."""
    teacher_model_name_or_path: str | None = None
    """The teacher's model; None is the student's own weights (self-distillation)."""
    privileged_context: ContextKind = "plain"
    """What the teacher is shown besides the question: nothing (plain); the bare answer; one correct solution of the student's, or three, or
    one beside a wrong attempt that is marked as wrong; a wrong attempt with the verdict on it (mistake); the first half of a correct
    solution (hint); the task's own solution (reference_solution); or another question's solution (a null)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the teacher's probabilities."""
    revision: str | None = None
    """Hub revision."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""


class PromptFormat(BaseModel):
    """What the models are told, as text whose `{question}`, `{answer}`, `{solution}`, … are filled in by replacement.

    The text becomes the user's turn of the model's own chat template, or the whole prompt where a model has none. None: these models have
    no prompt for that context.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str | None = None
    """System turn, if any."""
    plain: str = f"{{question}}\n{_STEPS}"
    """The student's prompt, and a plain teacher's."""
    answer: str | None = f"{{question}}\nThe correct result is {{answer}}.\n{_STEPS}"
    """With the bare answer."""
    solution: str | None = f"{{question}}\nHere is a correct solution to this problem:\n\n{{solution}}\n\n{_STEPS}"
    """With one correct solution."""
    three_solutions: str | None = (
        "{question}\nHere are three correct solutions to this problem.\n\nFirst solution:\n\n{solution_1}\n\nSecond solution:\n\n"
        f"{{solution_2}}\n\nThird solution:\n\n{{solution_3}}\n\n{_STEPS}"
    )
    """With three correct solutions of different wording."""
    solution_and_mistake: str | None = (
        "{question}\nHere is a correct solution to this problem:\n\n{solution}\n\n"
        f"Here is an attempt that is wrong; do not imitate it:\n\n{{mistake}}\n\n{_STEPS}"
    )
    """With one correct solution and one wrong attempt."""
    mistake: str | None = (
        "{question}\nHere is an earlier attempt at this problem:\n\n{mistake}\n\n"
        f"A checker found that its final result is wrong. Do not repeat its mistake.\n{_STEPS}"
    )
    """With a wrong attempt and the verifier's verdict on it."""
    hint: str | None = f"{{question}}\nA correct solution to this problem begins like this:\n\n{{hint}}\n\n{_STEPS}"
    """With the first half of a correct solution."""
    reference_solution: str | None = f"{{question}}\nHere is a correct solution to this problem:\n\n{{solution}}\n\n{_STEPS}"
    """With the task's own solution."""
    unrelated_solution: str | None = f"{{question}}\nHere is a correct solution to another problem:\n\n{{solution}}\n\n{_STEPS}"
    """With the solution of another question."""

    @field_validator(*CONTEXTS)
    @classmethod
    def _has_placeholders(cls, text: str | None, info: ValidationInfo) -> str | None:
        for name in ("question", *_PLACEHOLDERS[info.field_name or "plain"]):
            if text is not None and f"{{{name}}}" not in text:
                raise ValueError(f"must contain {{{name}}}")
        return text
