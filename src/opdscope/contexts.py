"""What a teacher is shown besides the question: nothing, the answer, one correct solution, or another question's solution (a null).

Context text goes into the teacher's prompt only; the response tokens that are scored are the student's own, token for token. Solutions come
from demonstrations, rollouts of their own that are never measured: a rollout scored by a teacher that has seen it would score itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opdscope.config import PromptFormat
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
    source: Demonstration | None
    """The demonstration that it shows, if any."""


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


def correct_demonstrations(demonstrations: Sequence[Demonstration]) -> dict[str, Demonstration]:
    """The first correct demonstration of each question that has one."""
    chosen: dict[str, Demonstration] = {}
    for demonstration in sorted(demonstrations, key=lambda d: (d.question_id, d.rollout_index)):
        if demonstration.outcome == Outcome.CORRECT:
            chosen.setdefault(demonstration.question_id, demonstration)
    return chosen


def build_context(
    kind: str, index: int, questions: Sequence[Question], prompts: PromptFormat, demonstrations: Mapping[str, Demonstration]
) -> Context:
    """What a teacher with a context of this kind is shown for one question.

    Args:
        kind: One of :data:`opdscope.config.CONTEXTS`.
        index: Which of `questions`.
        questions: All questions of the run, in order.
        prompts: The wording.
        demonstrations: One correct demonstration per question that has any.

    Returns:
        The context, or the reason why this question has none. `solution` takes the question's own demonstration; `unrelated_solution` that of the
        next question, in cyclic order, that has one and another answer.
    """
    question = questions[index]
    if kind == "plain":
        return Context(fill(prompts.plain, question=question.text), "", None)
    if kind == "answer":
        return Context(fill(prompts.answer, question=question.text, answer=question.answer), "", None)
    if kind == "solution":
        source = demonstrations.get(question.question_id)
        if source is None:
            return Context(None, "none of the demonstrations is correct", None)
        return Context(fill(prompts.solution, question=question.text, solution=source.text), "", source)
    others = (questions[(index + step) % len(questions)] for step in range(1, len(questions)))
    for other in others:
        if other.answer != question.answer and other.question_id in demonstrations:
            source = demonstrations[other.question_id]
            return Context(fill(prompts.unrelated_solution, question=question.text, solution=source.text), "", source)
    return Context(None, "no question with another answer has a correct demonstration", None)
