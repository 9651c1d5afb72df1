"""Questions and models: whether they load, and whether they belong together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from opdscope.config import Config, ModelConfig, PromptFormat, TeacherConfig
from opdscope.contexts import fill
from opdscope.errors import ModelError, TaskError
from opdscope.models.base import Model, require_same_vocabulary
from opdscope.pipeline.checks.lines import CheckLine, State, some
from opdscope.pipeline.experiment import model_loader
from opdscope.records import Question
from opdscope.tasks import Task, load_task

_FEW_QUESTIONS = 8
"""Intervals are clustered by question; with fewer clusters than this they are wide and rest on few degrees of freedom."""


@dataclass(frozen=True)
class Setup:
    """A configuration with what of it could be loaded."""

    config: Config
    """The resolved configuration."""
    task: Task
    """Questions and verifier."""
    student: Model
    """The policy."""
    teachers: Mapping[str, Model] = field(default_factory=dict[str, Model])
    """Teachers that load and have the student's vocabulary, by name."""

    @property
    def prompts(self) -> PromptFormat:
        """The wording that a run would use."""
        return self.config.prompt or self.task.prompt_format

    def student_turn(self, question: Question) -> str:
        """The user's turn that the student is shown."""
        return fill(self.prompts.plain, question=question.text)

    def student_prompt(self, question: Question) -> tuple[str, tuple[int, ...]]:
        """The student's prompt as rendered text and token ids."""
        return self.student.render_prompt(self.student_turn(question), self.prompts.system)


def load_questions(config: Config) -> tuple[Task | None, list[CheckLine]]:
    """The task and what is to be said of it."""
    try:
        task = load_task(config.task)
    except TaskError as error:
        return None, [CheckLine("questions", State.FAIL, str(error), "mend what the sentence names, and check again")]
    count, value = len(task.questions), f"{len(task.questions)} questions"
    if task.skipped:
        value += "; left out: " + ", ".join(f"{number} ({reason})" for reason, number in task.skipped.items())
        return task, [CheckLine("questions", State.WARN, value, "see whether the questions that are left are the ones you mean")]
    if count < _FEW_QUESTIONS:
        remedy = f"use more questions (task.num_questions): intervals are clustered by question and need {_FEW_QUESTIONS} at least"
        return task, [CheckLine("questions", State.WARN, value, remedy)]
    return task, [CheckLine("questions", State.PASS, value)]


def load_each_model(config: Config) -> tuple[Model | None, dict[str, Model], list[CheckLine]]:
    """The student, the teachers that can be used with it, and a line for each set of weights and each vocabulary.

    Loading itself compares the shared-prefix attention with the model's own forward, and refuses a model where they disagree.
    """
    load = model_loader(config)
    student, line = _load("student", config.student, load)
    lines = [line]
    teachers: dict[str, Model] = {}
    if student is None:
        return None, teachers, lines
    for spec in config.teachers:
        if spec.teacher_model_name_or_path is None:
            teachers[spec.name] = student
            continue
        teacher, line = _load(f"teacher {spec.name}", spec, load)
        lines.append(line)
        if teacher is not None:
            vocabulary = _vocabulary(spec.name, student, teacher)
            lines.append(vocabulary)
            if vocabulary.state is not State.FAIL:
                teachers[spec.name] = teacher
                lines.append(_ends(spec.name, student, teacher))
    return student, teachers, lines


def _load(
    name: str, spec: ModelConfig | TeacherConfig, load: Callable[[ModelConfig | TeacherConfig], Model]
) -> tuple[Model | None, CheckLine]:
    try:
        model = load(spec)
    except ModelError as error:
        return None, CheckLine(name, State.FAIL, str(error), "mend what the sentence names, and check again")
    value = f"{model.name}: {model.num_parameters / 1e6:,.1f} M parameters, {model.dtype}, {model.vocab_size:,} tokens, {model.engine}"
    if model.dtype in ("bfloat16", "float16"):
        remedy = "use dtype: float32 if there is memory for it; half precision shifts log-probabilities by 0.07–0.23 nats"
        return model, CheckLine(name, State.WARN, value, remedy)
    return model, CheckLine(name, State.PASS, value)


def _vocabulary(name: str, student: Model, teacher: Model) -> CheckLine:
    title = f"vocabulary of {name}"
    try:
        require_same_vocabulary(student, teacher)
    except ModelError as error:
        return CheckLine(title, State.FAIL, str(error), "choose a teacher with the student's tokenizer, or the student shown a context")
    # equal maps may still be read differently: what the student writes must be the same text for both
    ids = [index for index in student.token_to_id.values() if index < student.vocab_size]
    probe = ids[:: max(1, len(ids) // 512)]
    differing = [student.token_text(i) for i in probe if student.decode([i]) != teacher.decode([i])]
    if differing:
        value = f"the same {student.vocab_size:,} tokens, but {len(differing)} of {len(probe)} tried have another text: {some(differing)}"
        return CheckLine(
            title, State.FAIL, value, "the two tokenizers differ in their decoder; copy the student's tokenizer files to the teacher"
        )
    return CheckLine(title, State.PASS, f"the same {student.vocab_size:,} tokens, and {len(probe)} tried have the same text")


def _ends(name: str, student: Model, teacher: Model) -> CheckLine:
    """A student that ends its answers with a token that the teacher never ends with is pushed away from ending."""
    own, theirs = (some([model.token_text(i) for i in model.eos_token_ids]) or "none" for model in (student, teacher))
    title = f"end of response of {name}"
    if not student.eos_token_ids:
        remedy = "set eos_token_id in the student's generation_config.json: without it every response is cut and none counts as correct"
        return CheckLine(title, State.FAIL, "the student has no token that ends a response", remedy)
    if not set(student.eos_token_ids) & set(teacher.eos_token_ids):
        remedy = "compare a chat model with a chat model: this teacher does not end where the student does, and pushes it away from ending"
        return CheckLine(title, State.WARN, f"student ends with {own}, teacher with {theirs}", remedy)
    return CheckLine(title, State.PASS, f"both end with {own}" if own == theirs else f"student ends with {own}, teacher with {theirs}")
