"""What is trained: students, teachers, and configurations of (teacher, objective, mask, outcome filter)."""

from collections.abc import Mapping
from dataclasses import dataclass

STEPS = 16
BATCH_SIZE = 32
STEP_SIZES = {"small": 1e-4, "large": 3e-4}
"""Learning rates of Adam."""
GENTLE, GENTLE_RATE, GENTLE_BATCH, GENTLE_WARM_UP = "gentle", 1e-4, 256, 8
"""The small rate with eight times as many rollouts a step and with warming up: less of the noise of training, that no prediction can know."""
EXCESSIVE, EXCESSIVE_RATE = "excessive", 1e-3
"""A third one, under which the strong teacher harms two of three students: for one seed, to see what a first-order prediction cannot say."""
SEEDS = (0, 1, 2)
HELD_OUT_QUESTIONS = 2048
"""One response to each, under the same random numbers before and after training; another set for each seed."""
HIGH_ENTROPY_SHARE = 0.2
"""Share of the starting student's tokens, by entropy, that the mask keeps."""


@dataclass(frozen=True)
class Student:
    """A policy that is trained, and the task that it is trained on."""

    task: str
    strength: str
    max_completion_length: int
    """No worked solution of the task reaches it."""

    @property
    def name(self) -> str:
        """In every table."""
        return f"{self.task} {self.strength}"

    @property
    def model(self) -> str:
        """Name of the embedded model."""
        return f"embedded:{self.task}-student-{self.strength}"

    @property
    def peer(self) -> str:
        """The other student of the task, trained from another seed."""
        return f"embedded:{self.task}-student-{'strong' if self.strength == 'weak' else 'weak'}"


STUDENTS = {
    student.name: student
    for student in (
        Student("chain", "weak", 48), Student("addition", "strong", 64), Student("chain", "strong", 48), Student("addition", "weak", 64),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Teacher:
    """Whose next-token distribution the student is pulled to."""

    kind: str
    """model: a model of the task under the plain prompt; context: the student as it was, shown something; temperature: likewise, softened;
    leaking: a model that is shown something."""
    value: str
    """Model (strong, peer, weakened, wrong rule), context, or temperature."""

    @property
    def is_null(self) -> bool:
        """It knows nothing about the question."""
        return self.kind == "temperature" or self.value == "unrelated_solution"


SHARPENED, FLATTENED = 0.7, 1.4

TEACHERS: Mapping[str, Teacher] = {
    "strong": Teacher("model", "strong"),
    "peer": Teacher("model", "peer"),
    "weakened": Teacher("model", "weakened"),
    "wrong rule": Teacher("model", "wrong rule"),
    "self + answer": Teacher("context", "answer"),
    "self + solution": Teacher("context", "reference_solution"),
    "self + unrelated": Teacher("context", "unrelated_solution"),
    "sharpened": Teacher("temperature", str(SHARPENED)),
    "flattened": Teacher("temperature", str(FLATTENED)),
}
"""strong: the task's 0.98 model. weakened: the same with noise on its weights, about as good as the student. wrong rule: the same, taught one false
rule on top. peer: the other student."""

UNSOUND_TEACHERS: Mapping[str, Teacher] = {"leaking": Teacher("leaking", "answer")}
"""Outside the grid. leaking: the student itself, shown the answer, half of whose solutions write that answer down at once: what a student
learns from it is to guess."""

OBJECTIVES = ("reverse_kl", "forward_kl", "generalized_jsd(0.5)")


@dataclass(frozen=True)
class Configuration:
    """One way to train one student."""

    student: str
    teacher: str
    objective: str = "reverse_kl"
    mask: str = "none"
    """none, or high entropy: only tokens at which the starting student's entropy is among the highest fifth."""
    outcomes: str = "all"
    """all, correct or incorrect: whose tokens are trained on."""

    @property
    def name(self) -> str:
        """Unique; key of the stored records."""
        return " | ".join((self.student, self.teacher, self.objective, self.mask, self.outcomes))

    @property
    def cluster(self) -> str:
        """Configurations that share a teacher share the errors of their predictions."""
        return f"{self.student} | {self.teacher}"


def _core(student: str) -> list[Configuration]:
    return [
        *(Configuration(student, teacher) for teacher in TEACHERS),
        *(Configuration(student, teacher, "forward_kl") for teacher in ("weakened", "wrong rule", "self + solution")),
        Configuration(student, "strong", outcomes="incorrect"),
        Configuration(student, "strong", outcomes="correct"),
        Configuration(student, "strong", mask="high entropy"),
    ]


def _further(student: str) -> list[Configuration]:
    filtered = [
        Configuration(student, teacher, outcomes=outcomes)
        for teacher in ("weakened", "self + solution")
        for outcomes in ("incorrect", "correct")
    ]
    forward = [Configuration(student, teacher, "forward_kl") for teacher in ("strong", "peer")]
    mixed = Configuration(student, "weakened", "generalized_jsd(0.5)")
    return [*filtered, *forward, mixed, Configuration(student, "weakened", mask="high entropy")]


TOO_FAST = [Configuration(student, teacher) for student in list(STUDENTS)[:3] for teacher in TEACHERS]
"""Trained with the excessive step size, one seed."""
_FIRST, _LAST = list(STUDENTS)[:3], list(STUDENTS)[3:]
CONFIGURATIONS = [configuration for student in _FIRST for configuration in _core(student)]
"""The main grid."""
FURTHER = [configuration for student in _FIRST for configuration in _further(student)] + [
    configuration for student in _LAST for configuration in _core(student) + _further(student)
]
"""Trained after it, as far as time allows: more outcome filters, masks and objectives, and the fourth student."""
