"""Finding the final answer in a response."""

import re

from opdscope.errors import TaskError

_OPENING = {")": "(", "]": "[", "}": "{"}


def compile_answer_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled pattern.

    Raises:
        TaskError: If it is not a regular expression, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TaskError(f"answer_pattern {pattern!r} is not a regular expression: {error}") from error
    if compiled.groups == 0:
        raise TaskError(f"answer_pattern {pattern!r} has no group; put parentheses around what is the answer, as in r'Answer: (.+)'")
    return compiled


def extract_answer(pattern: re.Pattern[str], response: str) -> str | None:
    r"""What the last match holds in its first group that is not empty, without the marks that models put around answers; else None.

    Taken off: white space, `$`, backticks, `**`, a period at the end, and a closing bracket that nothing in the answer opens.

    Example:
        >>> extract_answer(re.compile(r"Answer: (.+)"), "Answer: 7\nAnswer: **$8$.**")
        '8'
    """
    found: str | None = None
    for match in pattern.finditer(response):
        found = next(filter(None, match.groups()), found)  # an optional group may be None, and `(.*)` matches nothing at the end
    return None if found is None else _unwrap(found)


def _unwrap(text: str) -> str:
    previous = None
    while text != previous:
        previous = text
        text = text.strip().removesuffix(".").strip("`$").removeprefix("**").removesuffix("**")
        opening = _OPENING.get(text[-1:])
        if opening is not None and text.count(opening) < text.count(text[-1]):
            text = text[:-1]
    return text
