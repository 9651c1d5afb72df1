"""The verifier: right answers are right, wrong ones wrong, and what holds no answer is wrong too."""

import re
from collections.abc import Sequence

from opdscope.contexts import fill
from opdscope.errors import TaskError
from opdscope.pipeline.checks.lines import CheckLine, State, some
from opdscope.pipeline.checks.setup import Setup
from opdscope.records import Outcome, Question
from opdscope.tasks import VerifierPool, VerifyItem
from opdscope.tasks.numbers import parse_number

_QUESTIONS = 16
_ASKED = re.compile(r"`([^`<]*)<[^`>]+>([^`]*)`")
"""How a prompt says in which form it wants the answer: `Answer: <result>` between backticks."""

_USUAL = ("Answer: {answer}", r"\boxed{{answer}}", ">{answer}", "#### {answer}", "The answer is {answer}.", "{answer}")
_NO_ANSWER = ("", "I do not know.", "???")
_FEW_WRONG = 0.1
"""Share of wrong answers up to which an accepted one may be a second right answer."""


def check_verifier(setup: Setup) -> list[CheckLine]:
    """Three lines: reference answers, wrong answers, and responses without an answer."""
    questions = setup.task.questions
    chosen = [q for q in questions[:: max(1, len(questions) // _QUESTIONS)] if q.answer.strip()][:_QUESTIONS]
    if not chosen:
        return [CheckLine("verifier", State.WARN, "no question has a reference answer to try", "try the verifier on responses of your own")]
    engine = setup.config.engine
    asked = [before + "{answer}" + after for before, after in _ASKED.findall(setup.prompts.plain)]
    try:
        with VerifierPool(setup.task.verifier, engine.verifier_workers, engine.verifier_deadline_seconds) as pool:
            form, gold = _gold(pool, chosen, asked)
            if form is None:
                return [gold]
            return [gold, _wrong(pool, chosen, questions, form), _no_answer(pool, chosen, form)]
    except TaskError as error:
        return [CheckLine("verifier", State.FAIL, str(error), "mend what the sentence names, and check again")]


def _gold(pool: VerifierPool, questions: Sequence[Question], asked: Sequence[str]) -> tuple[str | None, CheckLine]:
    """The form in which answers are read, and whether reference answers are right in it."""
    title = "verifier, reference answers"
    best: tuple[str, list[Outcome]] | None = None
    for form in asked or _USUAL:
        outcomes = pool.verify([_item(q, fill(form, answer=q.answer)) for q in questions])
        if best is None or outcomes.count(Outcome.CORRECT) > best[1].count(Outcome.CORRECT):
            best = form, outcomes
    assert best is not None
    form, outcomes = best
    refused = [q.answer for q, outcome in zip(questions, outcomes, strict=True) if outcome is not Outcome.CORRECT]
    accepted = f"{len(questions) - len(refused)} of {len(questions)} are right when written {form!r}"
    if not refused:
        return form, CheckLine(title, State.PASS, accepted)
    if len(refused) == len(questions) and not asked:
        remedy = "write into prompt.plain how the answer is to be written, for example `Answer: <result>`, so that it can be tried"
        return None, CheckLine(title, State.WARN, "in none of the usual forms is a reference answer right", remedy)
    remedy = "make task.answer_pattern read what the prompt asks for, or choose another verifier: a student can never be right there"
    return form, CheckLine(title, State.FAIL, f"{accepted}; not, for example, {some(refused)}", remedy)


def _wrong(pool: VerifierPool, chosen: Sequence[Question], questions: Sequence[Question], form: str) -> CheckLine:
    title = "verifier, wrong answers"
    tried = [(q, wrong) for q in chosen for wrong in _wrong_answers(q, questions)]
    if not tried:
        return CheckLine(
            title, State.WARN, "all questions have the same answer", "use questions whose answers differ: this one can be guessed"
        )
    outcomes = pool.verify([_item(q, fill(form, answer=wrong)) for q, wrong in tried])
    accepted = [f"{wrong} for {q.answer}" for (q, wrong), outcome in zip(tried, outcomes, strict=True) if outcome is Outcome.CORRECT]
    unknown = outcomes.count(Outcome.UNVERIFIABLE)
    value = f"{len(accepted)} of {len(tried)} count as right" + (f", {unknown} as unverifiable" if unknown else "")
    if accepted:
        state = State.FAIL if len(accepted) > _FEW_WRONG * len(tried) else State.WARN
        remedy = "make the verifier or task.answer_pattern stricter: success that is not one misleads every number"
        return CheckLine(title, state, f"{value}: {some(accepted)}", remedy)
    return _unknown(title, value, unknown)


def _no_answer(pool: VerifierPool, chosen: Sequence[Question], form: str) -> CheckLine:
    title = "verifier, no answer"
    texts = dict.fromkeys([*_NO_ANSWER, *(fill(form, answer=text) for text in _NO_ANSWER)])
    outcomes = pool.verify([_item(q, text) for q in chosen for text in texts])
    accepted, unknown = outcomes.count(Outcome.CORRECT), outcomes.count(Outcome.UNVERIFIABLE)
    value = f"of {len(outcomes)} responses such as {some(texts, 2)}, {accepted} count as right, {unknown} as unverifiable"
    if accepted:
        remedy = "make the verifier stricter: a response without an answer must be wrong"
        return CheckLine(title, State.FAIL, value, remedy)
    return _unknown(title, value, unknown)


def _unknown(title: str, value: str, unknown: int) -> CheckLine:
    if not unknown:
        return CheckLine(title, State.PASS, value)
    remedy = "let the verifier say wrong instead, and raise engine.verifier_deadline_seconds: unverifiable responses are left out of every estimate"
    return CheckLine(title, State.WARN, value, remedy)


def _wrong_answers(question: Question, questions: Sequence[Question]) -> list[str]:
    """Another question's answer, and one more where it is a whole number; only answers that differ however they are read."""
    own = parse_number(question.answer)
    found: list[str] = []
    other = next((q.answer for q in questions if q.answer.strip() and not _alike(q.answer, question.answer)), None)
    if other is not None:
        found.append(other)
    if own is not None and own.denominator == 1:
        found.append(str(int(own) + 1))
    return found


def _alike(first: str, second: str) -> bool:
    plain = [re.sub(r"\W", "", text).casefold() for text in (first, second)]
    numbers = [parse_number(text) for text in (first, second)]
    return plain[0] == plain[1] or (numbers[0] is not None and numbers[0] == numbers[1])


def _item(question: Question, response: str) -> VerifyItem:
    return VerifyItem(response, question.answer, question.metadata)
