"""Verifiers: does the final answer of a response equal the reference answer?

Pure functions of (response, answer, metadata). A finished response without an answer is INCORRECT. A reference answer that the verifier
cannot read, and a verifier that crashes, are UNVERIFIABLE: a fault of ours says nothing about the response. Deadlines are kept by
`opdscope.tasks.verification`, which runs these functions in processes of their own.
"""

import importlib
import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from opdscope.errors import TaskError
from opdscope.records import Outcome
from opdscope.tasks.answers import compile_answer_pattern, extract_answer
from opdscope.tasks.base import VerifierSpec
from opdscope.tasks.extras import require
from opdscope.tasks.numbers import parse_number
from opdscope.tasks.reasoning_gym import reasoning_gym_scorer

_GROUPED_NUMBER = re.compile(r"[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")

Verifier = Callable[[str, str, str], Outcome]
"""(response, answer, metadata as JSON) → outcome."""


def build_verifier(spec: VerifierSpec) -> Verifier:
    """The function that judges the responses of a task.

    Raises:
        TaskError: If `answer_pattern` is not a regular expression, or the function or package that is named cannot be imported.
    """
    compare = _comparison(spec)
    if spec.kind == "final_answer" or spec.answer_pattern is None:
        return compare
    pattern = compile_answer_pattern(spec.answer_pattern)

    def verify(response: str, answer: str, metadata: str) -> Outcome:
        found = extract_answer(pattern, response)
        return Outcome.INCORRECT if found is None else compare(found, answer, metadata)

    return verify


def _comparison(spec: VerifierSpec) -> Verifier:
    match spec.kind:
        case "final_answer":
            return final_answer
        case "exact":
            return exact
        case "numeric":
            return numeric
        case "math":
            require("math_verify")  # here, since importing it would count against the first item's deadline
            return math if spec.answer_pattern is not None else math_in_text
        case "reasoning_gym":
            scorer = reasoning_gym_scorer(spec)
            return lambda response, answer, metadata: full_marks(response, answer, metadata, scorer)
        case "python":
            function = import_function(spec.target or "")
            return lambda response, answer, metadata: python(response, answer, metadata, function)


def final_answer(response: str, answer: str, metadata: str = "{}") -> Outcome:
    """Compares what follows the last `>`, character by character; the steps before it are not looked at.

    Example:
        >>> final_answer("5*8=0;0+7=7;7-3=4;>4", "4")
        <Outcome.CORRECT: 'correct'>
    """
    _, mark, found = response.rpartition(">")
    return _verdict(mark == ">" and found.strip() == answer)


def exact(response: str, answer: str, metadata: str = "{}") -> Outcome:
    """Compares as text after trimming white space at both ends."""
    return _verdict(response.strip() == answer.strip())


def numeric(response: str, answer: str, metadata: str = "{}") -> Outcome:
    """Compares as exact rational numbers: `1,000` = `1000.0`, `1/2` = `0.5` = `50%`; see `opdscope.tasks.numbers` for what is read."""
    expected = parse_number(answer)
    if expected is None:
        return Outcome.UNVERIFIABLE
    return _verdict(parse_number(response) == expected)


def math(response: str, answer: str, metadata: str = "{}") -> Outcome:
    r"""Compares two expressions, in LaTeX or plain, with math-verify: symbolically, so `1/2` = `\frac{2}{4}`.

    Its own timeouts are switched off, since they rest on signals and can hang; the pool's deadline takes their place. Letters are symbols
    and adjoining ones are multiplied, so it is not a comparison of words.
    """
    return _compare_math(_as_expression(response), answer)


def math_in_text(response: str, answer: str, metadata: str = "{}") -> Outcome:
    r"""As `math`, with the expression looked for by math-verify in a whole response: best in `\boxed{}` or between `$`."""
    return _compare_math(response, answer)


def _compare_math(response: str, answer: str) -> Outcome:
    expected, found = _parse_math(_as_expression(answer)), _parse_math(response)
    if not expected:
        return Outcome.UNVERIFIABLE
    return _verdict(require("math_verify").verify(list(expected), list(found), timeout_seconds=None, raise_on_error=True))


def _as_expression(text: str) -> str:
    """Between `$` unless marked already: without, math-verify takes `2*sqrt(3)` for the number 2."""
    return text if any(mark in text for mark in ("$", "\\boxed", "\\(", "\\[")) else f"${text}$"


@lru_cache(maxsize=4096)
def _parse_math(text: str) -> tuple[Any, ...]:
    return tuple(require("math_verify").parse(text, parsing_timeout=None, raise_on_error=True))


def full_marks(response: str, answer: str, metadata: str, scorer: Callable[[str, str], float]) -> Outcome:
    """CORRECT if the scorer of a reasoning-gym generator gives 1.0.

    Many scorers give part of the marks to an answer that is wrong (0.01 for one that is merely well formed, 0.5 for one that contains the
    right one); only full marks count as success. Thousands commas of a number are taken out where the reference answer has none.
    """
    if "," not in answer and _GROUPED_NUMBER.fullmatch(response):
        response = response.replace(",", "")
    return _verdict(scorer(response, metadata) == 1.0)


def python(response: str, answer: str, metadata: str, function: Callable[[str, str, dict[str, Any]], Any]) -> Outcome:
    """Asks a function (response, answer, metadata as a dict) → bool, or None for UNVERIFIABLE, or an Outcome."""
    verdict = function(response, answer, json.loads(metadata))
    if verdict is None:
        return Outcome.UNVERIFIABLE
    return Outcome(verdict) if isinstance(verdict, str) else _verdict(verdict)


def _verdict(correct: object) -> Outcome:
    return Outcome.CORRECT if correct else Outcome.INCORRECT


def import_function(path: str) -> Callable[..., Any]:
    """The function at `module:function`.

    Raises:
        TaskError: If the path is malformed, or there is no such module or function.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise TaskError(f"verifier {path!r}: expected an import path module:function, for example my_package.checks:is_right")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise TaskError(f"verifier {path!r} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    if not callable(function):
        raise TaskError(f"verifier {path!r} is a {type(function).__name__}, expected a function (response, answer, metadata) -> bool")
    return function
