"""Verifiers as pure functions, the reading of numbers, and the finding of answers."""

import doctest
import importlib
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdscope.config import JsonlTaskConfig
from opdscope.errors import TaskError
from opdscope.records import Outcome
from opdscope.tasks import VerifierSpec
from opdscope.tasks.answers import compile_answer_pattern, extract_answer
from opdscope.tasks.embedded import EMBEDDED
from opdscope.tasks.extras import require
from opdscope.tasks.numbers import parse_number
from opdscope.tasks.verifiers import build_verifier, exact, final_answer, math, math_in_text, numeric

CORRECT, INCORRECT, UNVERIFIABLE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE
DEFAULT_PATTERN = JsonlTaskConfig(kind="jsonl", path="x").answer_pattern or ""


@pytest.mark.parametrize("module", ["addition", "answers", "chain", "numbers", "verifiers"])
def test_the_examples_of_the_docstrings_hold(module: str):
    assert doctest.testmod(importlib.import_module(f"opdscope.tasks.{module}")).failed == 0


@pytest.mark.parametrize("name", sorted(EMBEDDED))
@given(seed=st.integers(0, 2**32))
def test_a_worked_solution_verifies_and_a_corrupted_answer_does_not(name: str, seed: int):
    task, rng = EMBEDDED[name], np.random.default_rng(seed)
    question = task.draw_question(rng)
    solution = task.worked_solution(question)
    answer = task.answer(question)
    assert final_answer(solution, answer) is CORRECT
    position = int(rng.integers(1, len(answer) + 1))
    other = str((int(solution[-position]) + int(rng.integers(1, 10))) % 10)
    corrupted = solution[: len(solution) - position] + other + solution[len(solution) - position + 1 :]
    assert final_answer(corrupted, answer) is INCORRECT
    assert final_answer(solution.replace(">", ""), answer) is INCORRECT
    assert final_answer(solution + ">", answer) is INCORRECT


@given(seed=st.integers(0, 2**32))
def test_the_steps_of_a_chain_hold_modulo_ten_and_take_each_operand_in_turn(seed: int):
    question = EMBEDDED["chain"].draw_question(np.random.default_rng(seed))
    *steps, final = EMBEDDED["chain"].worked_solution(question).split(";")
    running = question[0]
    for step, operation in zip(steps, re.findall(r"[-+*]\d", question), strict=True):
        assert step[:-2] == running + operation
        assert (eval(step[:-2]) - int(step[-1])) % 10 == 0  # the step is two digits and a sign
        running = step[-1]
    assert final == f">{running}"


@given(left=st.integers(10, 99_999), right=st.integers(10, 99_999))
def test_an_addition_is_right_and_its_columns_make_the_sum(left: int, right: int):
    *columns, final = EMBEDDED["addition"].worked_solution(f"{left}+{right}").split(";")
    assert final == f">{left + right}"
    assert all(sum(map(int, column[:5].split("+"))) == int(column[6:]) for column in columns)
    digits = "".join(column[-1] for column in reversed(columns))
    assert int(columns[-1][-2] + digits) == left + right


def test_only_the_last_final_answer_counts_and_steps_do_not():
    assert final_answer("wrong steps>4>5", "5") is CORRECT
    assert final_answer(">5>4", "5") is INCORRECT
    assert final_answer("5", "5") is INCORRECT
    assert final_answer("", "5") is INCORRECT


def test_exact_ignores_white_space_at_the_ends_alone():
    assert exact(" a b\n", "a b") is CORRECT
    assert exact("a  b", "a b") is INCORRECT


NUMBERS = {
    "42": 42, "$1,000": 1000, "1000.0": 1000, "1/2": "1/2", "0.5": "1/2", ".5": "1/2", "-3": -3, "−3": -3, "–3": -3, "$-5": -5, "-$5": -5,
    "12 apples": 12, "50%": 50, "1e3": 1000, "1E-2": "1/100", "42.": 42, "x = 5": 5, "(5)": 5, "1,234,567.25": "4938269/4",
    "6 * 7 = 42 #### 1,042": 1042, "**7**": 7, "5-3": None, "1,00": None, "x2": None, "5th": None, "1.2.3": None, "2024-05-01": None,
    "1/0": None, "": None, "seven": None, "3 or 4": None, "1 1/2": None, "1e99999999": None, "9" * 5000: None, "٣": None, "x-5": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS.items(), ids=[text[:20] for text in NUMBERS])
def test_a_text_with_one_number_is_that_number(text: str, value: int | str | None):
    assert parse_number(text) == (None if value is None else Fraction(value))


@given(value=st.integers(-(10**30), 10**30))
def test_thousands_commas_do_not_change_a_number(value: int):
    assert parse_number(f"{value:,}") == parse_number(str(value)) == value


@given(value=st.fractions())
def test_every_fraction_is_read_exactly(value: Fraction):
    assert parse_number(str(value)) == value


@given(text=st.text())
@settings(max_examples=300)
def test_reading_a_number_never_fails(text: str):
    parse_number(text)


def test_numeric_compares_exactly_and_blames_an_unreadable_reference_on_nobody():
    assert numeric("0.1", "1/10") is CORRECT
    assert numeric("0.3333333333333333", "1/3") is INCORRECT
    assert numeric("50%", "50") is CORRECT
    assert numeric("50%", "0.5") is INCORRECT
    assert numeric("no idea", "5") is INCORRECT
    assert numeric("5", "five") is UNVERIFIABLE


@pytest.mark.parametrize(
    ("response", "found"),
    {
        "Answer: 7": "7",
        "Answer: 6\nno, wait\n**Answer:** $7$.": "7",
        "answer: **7**": "7",
        "The work.\n- Answer: `1,000`": "1,000",
        r"So it is \boxed{7}": "7",
        r"Answer: 6. No: \boxed{\frac{1}{2}}.": r"\frac{1}{2}",
        "Answer: \\boxed{6}\nAnswer: 7": "7",
        r"\boxed{7": None,
        r"Answer: $\frac{1}{2}$.": r"\frac{1}{2}",
        "**Answer: (1, 2)**": "(1, 2)",
        "(The answer: 7.)": None,
        "(Answer: 7.)": "7",
        "Final: 7": None,
        "": None,
    }.items(),
)  # fmt: skip
def test_the_default_pattern_finds_the_last_answer_without_its_marks(response: str, found: str | None):
    assert extract_answer(re.compile(DEFAULT_PATTERN), response) == found


@pytest.mark.parametrize("wrapped", ["$7$", "`7`", "**7**", "7.", " **$7$.** ", "**`7`**", "$$7$$"])
def test_marks_around_an_answer_are_taken_off(wrapped: str):
    assert extract_answer(re.compile(r"(?s)A=(.*)"), f"A={wrapped}") == "7"


def test_a_match_that_is_empty_or_leaves_the_group_out_is_no_answer():
    assert extract_answer(re.compile("(.*)"), "7") == "7"
    assert extract_answer(re.compile("A=(7)?"), "A=7 A=") == "7"
    assert extract_answer(re.compile("A=(7)?"), "A=") is None


def test_a_response_without_an_answer_is_incorrect():
    verify = build_verifier(VerifierSpec(kind="numeric", answer_pattern=DEFAULT_PATTERN))
    assert verify("It is 7.", "7", "{}") is INCORRECT
    assert verify("Answer: 7", "7", "{}") is CORRECT


def test_without_a_pattern_the_whole_response_is_judged():
    assert build_verifier(VerifierSpec(kind="exact"))("b", "b", "{}") is CORRECT
    assert build_verifier(VerifierSpec(kind="math"))(r"So it is $\boxed{\frac{2}{4}}$.", "1/2", "{}") is CORRECT


def test_an_answer_pattern_must_be_a_regular_expression_with_a_group():
    with pytest.raises(TaskError, match=r"answer_pattern '\(' is not a regular expression: missing \), unterminated subpattern"):
        compile_answer_pattern("(")
    with pytest.raises(TaskError, match="has no group; put parentheses around what is the answer"):
        compile_answer_pattern("Answer: .+")


@pytest.mark.parametrize(
    ("response", "answer", "outcome"),
    [
        (r"\frac{2}{4}", "1/2", CORRECT), ("x^2+1", "1+x^2", CORRECT), ("2*sqrt(3)", r"\sqrt{12}", CORRECT), ("2*sqrt(3)", "2", INCORRECT),
        ("(1, 2)", "(1,2)", CORRECT), ("42", "43", INCORRECT), ("1", "", UNVERIFIABLE), ("$3$", r"\boxed{3}", CORRECT),
        ("", "1", INCORRECT),
    ],
)  # fmt: skip
def test_math_compares_expressions(response: str, answer: str, outcome: Outcome):
    assert math(response, answer) is outcome


def test_math_in_text_finds_the_expression():
    assert math_in_text(r"First 2, so $\boxed{7}$.", "7") is CORRECT
    assert math_in_text(r"First 7, so $\boxed{2}$.", "7") is INCORRECT


def test_a_missing_package_is_an_error_with_its_remedy():
    with pytest.raises(TaskError, match=r"needs no-such-package, which is not installed; run pip install 'opdscope\[tasks\]'"):
        require("no_such_package")


def test_importing_the_tasks_imports_neither_torch_nor_a_verifier_library():
    heavy = ("torch", "transformers", "reasoning_gym", "math_verify", "sympy")
    code = f"import sys, opdscope.tasks, opdscope.tasks.worker; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
