"""Questions from a file with one JSON object a line."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opdscope.config import JsonlTaskConfig, PromptFormat
from opdscope.errors import TaskError
from opdscope.records import Outcome, Question
from opdscope.tasks.answers import compile_answer_pattern
from opdscope.tasks.base import Task, VerifierSpec
from opdscope.tasks.extras import check_installed
from opdscope.tasks.verification import VerifierPool, VerifyItem
from opdscope.tasks.verifiers import build_verifier


def load_jsonl(config: JsonlTaskConfig) -> Task:
    """The first `num_questions` questions of the file whose answer the verifier can read, in the order of the file.

    Blank lines are passed over. Question and answer are texts; a number is an answer too. A GSM8K answer (`… #### 42`) is cut down to what
    follows the mark. Left out and counted are questions that stand in the file already, and those whose own answer does not verify as
    right, for example a word where a number is compared.

    Raises:
        TaskError: If the file is missing, a line is not such an object, a field is missing, no answer can be verified, or there are fewer
            such questions than asked for.
    """
    if config.verifier == "math":
        check_installed("math_verify")
    if config.answer_pattern is not None:
        compile_answer_pattern(config.answer_pattern)
    spec = VerifierSpec(kind=config.verifier, answer_pattern=config.answer_pattern, target=config.verifier_function)
    skipped: Counter[str] = Counter()
    candidates = list(_without_repetitions(_read(config), skipped))
    with VerifierPool(replace(spec, answer_pattern=None)) as pool:
        questions = _verifiable(candidates, config, _self_check(config, pool), skipped)
    if not questions:
        raise TaskError(
            f"{config.path}: none of the answers in {config.answer_field!r} can be verified as {config.verifier}, for example "
            f"{candidates[0].answer[:60]!r}; choose another answer_field or verifier"
        )
    if config.num_questions is not None and len(questions) < config.num_questions:
        raise TaskError(
            f"{config.path} has {len(questions)} different questions with an answer that can be verified, but num_questions is "
            f"{config.num_questions}; ask for fewer"
        )
    return Task(tuple(questions), spec, PromptFormat(), num_skipped=sum(skipped.values()), skipped=dict(skipped))


def _read(config: JsonlTaskConfig) -> Iterator[Question]:
    path = config.path
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise TaskError(f"there is no question file {path.absolute()}; task.path must name a file with one JSON object a line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as UTF-8 text: {error}") from error
    found = False
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = True
            yield _question(config, number, line)
    if not found:
        raise TaskError(f"{path} holds no questions; it must have one JSON object a line")


def _question(config: JsonlTaskConfig, number: int, line: str) -> Question:
    where = f"{config.path}, line {number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{where} is not JSON: {error}; the file must have one JSON object a line") from error
    if not isinstance(entry, dict):
        raise TaskError(f"{where}: expected a JSON object, found {type(entry).__name__}")
    text = _field(entry, config.question_field, "question_field", where)
    answer = _field(entry, config.answer_field, "answer_field", where)
    solution = "" if config.solution_field is None else _field(entry, config.solution_field, "solution_field", where)
    if config.verifier == "numeric":
        answer = answer.rpartition("####")[2].strip()
    metadata = json.dumps(entry) if config.verifier == "python" else "{}"
    return Question(f"{Path(config.path).stem}-{number:05d}", text, answer, metadata, solution)


def _field(entry: dict[str, Any], key: str, setting: str, where: str) -> str:
    if key not in entry:
        raise TaskError(f"{where} has no field {key!r}; found {', '.join(map(repr, entry)) or 'none'}; set task.{setting}")
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TaskError(f"{where}: field {key!r} is {json.dumps(value)[:40]}, expected a text or a number")
    return str(value)


def _without_repetitions(questions: Iterator[Question], skipped: Counter[str]) -> Iterator[Question]:
    seen: set[str] = set()
    for question in questions:
        if question.text in seen:
            skipped["the question stands in the file already"] += 1
            continue
        seen.add(question.text)
        yield question


def _verifiable(
    candidates: Sequence[Question],
    config: JsonlTaskConfig,
    self_check: Callable[[Sequence[Question]], list[Outcome]],
    skipped: Counter[str],
) -> list[Question]:
    """As many as are wanted; only as many answers are checked as it takes."""
    wanted = len(candidates) if config.num_questions is None else config.num_questions
    kept: list[Question] = []
    start = 0
    while len(kept) < wanted and start < len(candidates):
        block = candidates[start : start + wanted - len(kept)]
        start += len(block)
        for question, outcome in zip(block, self_check(block), strict=True):
            if outcome is Outcome.CORRECT and question.answer.strip():
                kept.append(question)
            else:
                skipped[f"the answer cannot be verified as {config.verifier}"] += 1
    return kept


def _self_check(config: JsonlTaskConfig, pool: VerifierPool) -> Callable[[Sequence[Question]], list[Outcome]]:
    """Whether each answer verifies against itself; math-verify and functions of your own go to worker processes, since they can hang."""
    if config.verifier == "python" and config.answer_pattern is None:
        # a function that reads whole responses need not take the bare answer for one; but it must be there to be called
        return lambda questions: [Outcome.CORRECT for _ in pool.verify([VerifyItem(q.answer, q.answer, q.metadata) for q in questions])]
    if config.verifier in ("math", "python"):
        return lambda questions: pool.verify([VerifyItem(question.answer, question.answer, question.metadata) for question in questions])
    verify = build_verifier(VerifierSpec(kind=config.verifier))
    return lambda questions: [verify(question.answer, question.answer, question.metadata) for question in questions]
