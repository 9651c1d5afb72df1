"""Addition: two numbers of 2–5 digits, added digit by digit with carries.

Question `457+86`, worked solution `7+6+0=13;5+8+1=14;4+0+1=05;>543`. Columns go from the right; a column is digit + digit + carry = carry
and digit of the sum, with 0 where a number has no digit. The final answer is what stands after the last `>`.
"""

import numpy as np

from opdscope.tasks.base import EmbeddedTask

_MIN_DIGITS = 2
_MAX_DIGITS = 5


def draw_question(rng: np.random.Generator) -> str:
    """A question such as `457+86`: both lengths uniform, then both numbers uniform among those of that length."""
    lengths = rng.integers(_MIN_DIGITS, _MAX_DIGITS + 1, size=2).tolist()
    left, right = (int(rng.integers(10 ** (length - 1), 10**length)) for length in lengths)
    return f"{left}+{right}"


def worked_solution(question: str) -> str:
    """The one worked solution of a question, which ends in `>` and the answer.

    Example:
        >>> worked_solution("457+86")
        '7+6+0=13;5+8+1=14;4+0+1=05;>543'
    """
    left, right = question.split("+")
    width = max(len(left), len(right))
    carry = 0
    steps: list[str] = []
    for a, b in zip(reversed(left.zfill(width)), reversed(right.zfill(width)), strict=True):
        total = int(a) + int(b) + carry
        steps.append(f"{a}+{b}+{carry}={total:02d};")
        carry = total // 10
    return f"{''.join(steps)}>{int(left) + int(right)}"


ADDITION = EmbeddedTask(
    name="addition",
    draw_question=draw_question,
    worked_solution=worked_solution,
    num_possible=(10**_MAX_DIGITS - 10 ** (_MIN_DIGITS - 1)) ** 2,
    max_completion_length=64,
)
"""The longest worked solution has 52 characters and an end-of-sequence token."""
