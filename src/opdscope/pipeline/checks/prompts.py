"""What student and teachers are shown: rendered prompts, contexts that arrive, and where a thought begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdscope.config import DEMONSTRATED_CONTEXTS, TeacherConfig
from opdscope.contexts import Attempts, Demonstration, build_context
from opdscope.errors import ModelError
from opdscope.models.base import Sample
from opdscope.pipeline.checks.lines import CheckLine, State, some
from opdscope.pipeline.checks.setup import Setup
from opdscope.records import Outcome, Question

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Shown:
    """What one model is shown for one question."""

    turn: str
    """The user's turn."""
    prompt: str
    """The rendered prompt."""
    token_ids: tuple[int, ...]
    """Its tokens."""

    @property
    def arrives(self) -> bool:
        """The turn stands in the prompt, white space aside."""
        return _squeezed(self.turn) in _squeezed(self.prompt)

    @property
    def rest(self) -> str:
        """What follows the user's turn: where the model begins to write."""
        return self.prompt.rpartition(self.turn.rstrip()[-40:])[2]

    @property
    def thought(self) -> str:
        """Where the response begins, with regard to a thought."""
        opened, closed = self.rest.rfind(_OPEN), self.rest.rfind(_CLOSE)
        if opened < 0 and closed < 0:
            return "before any thought"
        return f"inside {_OPEN}" if opened > closed else f"after {_CLOSE}"


def refusal(setup: Setup) -> CheckLine | None:
    """A line if the student's chat template refuses the prompt: then nothing else can be tried."""
    try:
        _shown_to_student(setup)
    except ModelError as error:
        return CheckLine("prompt of student", State.FAIL, str(error), "change the section `prompt`, and check again")
    return None


def check_prompts(setup: Setup, samples: Mapping[str, Sequence[Sample]]) -> tuple[list[CheckLine], dict[str, str]]:
    """Lines about prompts, and the rendered prompts of the first question.

    Args:
        setup: What is checked.
        samples: The student's own short responses by question; they stand in for solutions that a run would have.
    """
    student = _shown_to_student(setup)
    lines = [_arrival("student", student, setup.prompts.system), _reopened(setup, student, samples)]
    shown = {"student": student.prompt}
    for spec in setup.config.teachers:
        if spec.name not in setup.teachers:
            continue
        try:
            own = _shown_to_teacher(setup, spec, samples)
        except ModelError as error:
            lines.append(CheckLine(f"prompt of {spec.name}", State.FAIL, str(error), "change the section `prompt`"))
            continue
        if own is None:
            value = "cannot be built for the first question: no other one has another answer"
            lines.append(CheckLine(f"context of {spec.name}", State.WARN, value, "use questions whose answers differ"))
            continue
        shown[spec.name] = own.prompt
        lines += [_arrival(spec.name, own, setup.prompts.system), _context(setup, spec, own, student), _boundary(spec.name, own, student)]
    return lines, shown


def teacher_prompts_of(setup: Setup, question: Question) -> dict[str, tuple[int, ...]]:
    """Prompt tokens of every usable teacher for a question, contexts left out: a number that compares models needs no solution."""
    turn = setup.student_turn(question)
    return {name: model.render_prompt(turn, setup.prompts.system)[1] for name, model in setup.teachers.items()}


def _shown_to_student(setup: Setup) -> Shown:
    question = setup.task.questions[0]
    return Shown(setup.student_turn(question), *setup.student_prompt(question))


def _shown_to_teacher(setup: Setup, spec: TeacherConfig, samples: Mapping[str, Sequence[Sample]]) -> Shown | None:
    stand_ins = {
        name: _attempts(name, [setup.student.decode(sample.token_ids) for sample in drawn]) for name, drawn in samples.items() if drawn
    }
    turn = build_context(spec.privileged_context, 0, setup.task.questions, setup.prompts, stand_ins).text
    return None if turn is None else Shown(turn, *setup.teachers[spec.name].render_prompt(turn, setup.prompts.system))


def _attempts(question_id: str, texts: Sequence[str]) -> Attempts:
    """As many attempts of either outcome as a context can show, whatever the texts are worth."""

    def attempts(count: int, outcome: Outcome) -> tuple[Demonstration, ...]:
        return tuple(Demonstration(question_id, index, texts[index % len(texts)], outcome) for index in range(count))

    return Attempts(attempts(3, Outcome.CORRECT), attempts(1, Outcome.INCORRECT))


def _arrival(name: str, shown: Shown, system: str | None) -> CheckLine:
    title, size = f"prompt of {name}", f"{len(shown.token_ids)} tokens"
    if not shown.arrives:
        return CheckLine(
            title,
            State.FAIL,
            "the chat template drops the question",
            "use the model's own chat template, or one that renders the user's turn",
        )
    if system is not None and _squeezed(system) not in _squeezed(shown.prompt):
        return CheckLine(
            title,
            State.FAIL,
            "the chat template drops the system message",
            "put its text into the prompt's wording and leave prompt.system out",
        )
    if len(shown.token_ids) > 1 and shown.token_ids[0] == shown.token_ids[1] and shown.prompt.startswith("<"):
        return CheckLine(
            title, State.WARN, f"{size}; the first token stands there twice", "let the chat template or the tokenizer write it, not both"
        )
    around = "no chat template: the question stands alone" if shown.prompt == shown.turn else f"response begins after {shown.rest[-40:]!r}"
    return CheckLine(title, State.PASS, f"{size}; {around}")


def _context(setup: Setup, spec: TeacherConfig, own: Shown, student: Shown) -> CheckLine:
    """A context that does not reach the teacher is a silent nothing."""
    title, kind, is_student = f"context of {spec.name}", spec.privileged_context, setup.teachers[spec.name] is setup.student
    if is_student and own.token_ids == student.token_ids:
        remedy = "give it a model or a privileged_context: a student that teaches itself the same gains nothing"
        return CheckLine(title, State.WARN, "the same weights and the same prompt as the student", remedy)
    shown = f"{kind} (a response of the student stands in for it)" if kind in DEMONSTRATED_CONTEXTS else kind
    return CheckLine(title, State.PASS, f"{shown}, {len(own.token_ids) - len(student.token_ids):+d} tokens against the student's prompt")


def _boundary(name: str, own: Shown, student: Shown) -> CheckLine:
    title = f"thought of {name}"
    if own.thought == student.thought:
        return CheckLine(title, State.PASS, f"student and teacher begin {own.thought}")
    value = f"the student begins {student.thought}, the teacher {own.thought}"
    remedy = (
        "give both the same chat template: scored from another side of the boundary, the student's tokens are out of place for the teacher"
    )
    return CheckLine(title, State.FAIL, value, remedy)


def _reopened(setup: Setup, student: Shown, samples: Mapping[str, Sequence[Sample]]) -> CheckLine:
    """The student's own responses against what its prompt promises."""
    title = "thought of the student"
    drawn = [sample for own in samples.values() for sample in own]
    texts = ["".join(map(setup.student.token_text, sample.token_ids[:8])) for sample in drawn]
    opening = sum(text.lstrip().startswith(_OPEN) for text in texts)
    value = f"responses begin {student.thought}; {opening} of {len(texts)} open one themselves"
    if opening and student.thought == f"inside {_OPEN}":
        return CheckLine(
            title, State.WARN, value, "the template opens a thought and the model opens another: use the template it was trained with"
        )
    return CheckLine(title, State.PASS, value)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def describe_missing(setup: Setup) -> list[CheckLine]:
    """One line for all teachers that could not be looked at."""
    missing = [spec.name for spec in setup.config.teachers if spec.name not in setup.teachers]
    if not missing:
        return []
    return [CheckLine("not checked", State.WARN, f"prompts and numbers of {some(missing)}", "mend the lines above and check again")]
