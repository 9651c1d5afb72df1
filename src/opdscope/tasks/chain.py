"""Chain: 3–6 operations + − × modulo 10, worked from left to right.

Question `5*8+7-3`, worked solution `5*8=0;0+7=7;7-3=4;>4`. There is no precedence: every operation takes the running result and the next
operand, and keeps the last digit (of a negative number its residue modulo 10). The final answer is what stands after the last `>`.
"""

import re

import numpy as np

from opdscope.tasks.base import EmbeddedTask

_MIN_OPERATIONS = 3
_MAX_OPERATIONS = 6
_OPERATORS = "+-*"


def draw_question(rng: np.random.Generator) -> str:
    """A question such as `5*8+7-3`: number of operations, operators and operands from 1 to 9 all uniform."""
    num_operations = int(rng.integers(_MIN_OPERATIONS, _MAX_OPERATIONS + 1))
    operands = rng.integers(1, 10, size=num_operations + 1).tolist()
    operators = rng.integers(0, len(_OPERATORS), size=num_operations).tolist()
    rest = (f"{_OPERATORS[operator]}{operand}" for operator, operand in zip(operators, operands[1:], strict=True))
    return f"{operands[0]}{''.join(rest)}"


def worked_solution(question: str) -> str:
    """The one worked solution of a question, which ends in `>` and the answer.

    Example:
        >>> worked_solution("5*8+7-3")
        '5*8=0;0+7=7;7-3=4;>4'
    """
    running = question[0]
    steps: list[str] = []
    for operator, operand in re.findall(r"([-+*])(\d)", question[1:]):
        result = str(_apply(operator, int(running), int(operand)))
        steps.append(f"{running}{operator}{operand}={result};")
        running = result
    return f"{''.join(steps)}>{running}"


def _apply(operator: str, left: int, right: int) -> int:
    if operator == "+":
        return (left + right) % 10
    if operator == "-":
        return (left - right) % 10
    return (left * right) % 10


CHAIN = EmbeddedTask(
    name="chain",
    draw_question=draw_question,
    worked_solution=worked_solution,
    num_possible=sum(9 ** (n + 1) * len(_OPERATORS) ** n for n in range(_MIN_OPERATIONS, _MAX_OPERATIONS + 1)),
    max_completion_length=48,
)
"""The longest worked solution has 38 characters and an end-of-sequence token."""
