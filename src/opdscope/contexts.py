"""What a teacher is shown besides the question: nothing, the answer, solutions, mistakes, a hint, or another question's solution (a null).

Context text goes into the teacher's prompt only; the response tokens that are scored are the student's own, token for token. The student's
attempts come from demonstrations, rollouts of their own that are never measured: a rollout scored by a teacher that has seen it would score
itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdscope.config import CONTEXTS, ContextKind, PromptFormat
from opdscope.errors import ConfigError
from opdscope.records import Outcome, Question


@dataclass(frozen=True)
class Demonstration:
    """A rollout that may be shown to a teacher."""

    question_id: str
    """Whose question it answers."""
    rollout_index: int
    """Which rollout it is."""
    text: str
    """Its text."""
    outcome: str
    """What the verifier said."""


@dataclass(frozen=True)
class Context:
    """A teacher's user turn for one question, or the reason why there is none."""

    text: str | None
    """The user turn; None if the context cannot be built for this question."""
    reason: str
    """Why there is none; empty if there is one."""
    sources: tuple[Demonstration, ...] = ()
    """The demonstrations that it shows, in the order of the text."""


def fill(template: str, **values: str) -> str:
    """Replace `{name}` by each value, once and literally: braces in questions and solutions stay as they are.

    Example:
        >>> fill("{question} {answer}", question="{answer}?", answer="4")
        '{answer}? 4'
    """
    parts: list[str] = []
    rest = template
    while rest:
        found = [(rest.index("{" + name + "}"), name) for name in values if "{" + name + "}" in rest]
        if not found:
            parts.append(rest)
            break
        start, name = min(found)
        parts += [rest[:start], values[name]]
        rest = rest[start + len(name) + 2 :]
    return "".join(parts)


@dataclass(frozen=True)
class Attempts:
    """The demonstrations of one question, those of equal text once, in the order in which they were drawn."""

    correct: tuple[Demonstration, ...] = ()
    """What the verifier called correct."""
    incorrect: tuple[Demonstration, ...] = ()
    """What it called incorrect; not what was cut off or could not be verified."""


def attempts_by_question(demonstrations: Sequence[Demonstration]) -> dict[str, Attempts]:
    """The attempts of every question that has a demonstration."""
    found: dict[str, dict[str, Demonstration]] = {}
    for demonstration in sorted(demonstrations, key=lambda d: (d.question_id, d.rollout_index)):
        found.setdefault(demonstration.question_id, {}).setdefault(demonstration.text, demonstration)
    return {
        question_id: Attempts(*(tuple(d for d in own.values() if d.outcome == wanted) for wanted in (Outcome.CORRECT, Outcome.INCORRECT)))
        for question_id, own in found.items()
    }


def build_context(
    kind: ContextKind, index: int, questions: Sequence[Question], prompts: PromptFormat, attempts: Mapping[str, Attempts]
) -> Context:
    """What a teacher with a context of this kind is shown for one question.

    Args:
        kind: Which context.
        index: Which of `questions`.
        questions: All questions of the run, in order.
        prompts: The wording.
        attempts: The attempts of each question that has any.

    Returns:
        The context, or the reason why this question has none. A context that shows solutions takes the question's own first correct attempts;
        `unrelated_solution` that of the next question, in cyclic order, that has one and another answer.
    """
    question = questions[index]
    parts = _parts(kind, question, attempts.get(question.question_id, Attempts()))
    if kind == "unrelated_solution":
        parts = _unrelated(index, questions, attempts)
    if isinstance(parts, str):
        return Context(None, parts)
    values = {name: part if isinstance(part, str) else part.text for name, part in parts.items()}
    if kind == "hint":
        values["hint"] = first_half(values["hint"])
    sources = tuple(part for part in parts.values() if not isinstance(part, str))
    return Context(fill(wording(kind, prompts), question=question.text, **values), "", sources)


def wording(kind: ContextKind, prompts: PromptFormat) -> str:
    """The template of a context.

    Raises:
        ConfigError: If these prompts have none.
    """
    template: str | None = getattr(prompts, kind)
    if template is None:
        known = [name for name in CONTEXTS if getattr(prompts, name) is not None]
        raise ConfigError(
            f"privileged_context {kind!r}: the prompts of this task have no wording for it; use one of {', '.join(known)}, "
            f"or write prompt.{kind}"
        )
    return template


def _parts(kind: ContextKind, question: Question, own: Attempts) -> dict[str, str | Demonstration] | str:
    """What fills each placeholder, or the reason why there is nothing to fill it with."""
    match kind:
        case "plain" | "unrelated_solution":
            return {}
        case "answer":
            return {"answer": question.answer}
        case "reference_solution":
            return {"solution": question.solution} if question.solution else "the task has no solution to this question"
        case "solution" | "hint":
            name = "solution" if kind == "solution" else "hint"
            return {name: own.correct[0]} if own.correct else "none of the demonstrations is correct"
        case "three_solutions":
            if len(own.correct) < 3:
                return "fewer than three different demonstrations are correct"
            return {f"solution_{number}": each for number, each in enumerate(own.correct[:3], start=1)}
        case "mistake":
            return {"mistake": own.incorrect[0]} if own.incorrect else "none of the demonstrations is incorrect"
        case "solution_and_mistake":
            if not (own.correct and own.incorrect):
                return "the demonstrations are not of both outcomes"
            return {"solution": own.correct[0], "mistake": own.incorrect[0]}


def _unrelated(index: int, questions: Sequence[Question], attempts: Mapping[str, Attempts]) -> dict[str, str | Demonstration] | str:
    for step in range(1, len(questions)):
        other = questions[(index + step) % len(questions)]
        correct = attempts.get(other.question_id, Attempts()).correct
        if other.answer != questions[index].answer and correct:
            return {"solution": correct[0]}
    return "no question with another answer has a correct demonstration"


def first_half(text: str) -> str:
    """The text up to the last gap between words before its middle; up to the middle where there is no gap.

    Example:
        >>> first_half("one and two is three")
        'one and'
    """
    middle = text[: len(text) // 2]
    start, gap, _ = middle.rpartition(" ") if " " in middle else middle.rpartition("\n")
    return start if gap else middle
