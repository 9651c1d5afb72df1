"""Reading a number out of a short text, exactly.

A text holds a number if it holds exactly one, and no other digits. Understood are a sign, thousands commas in their places, decimals, an
exponent, and a fraction `a/b`. Signs and words around it are units and are not compared: `$42`, `42 apples` and `42%` are all 42, so `50%`
is not `0.5` (reference answers of word problems leave the unit out). What follows the last `####` counts alone, as GSM8K writes its
answers. Letters that touch a number make it something else (`x2`, `5th`), and so do dots (`1.2.3`).
"""

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"""(?<![\w.,/−–-])
    (?P<sign>[-+−–]?)\s?\$?\s?(?P<inner>[-+−–]?)
    (?P<value>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)
    (?:[eE](?P<exponent>[-+]?[0-9]+))?
    (?:\s?/\s?(?P<divisor>[0-9]+))?
    (?![\w/]|[.,][0-9])""",
    re.VERBOSE,
)
_MINUS = ("-", "−", "–")
_MAX_DIGITS = 1_000
"""Longer numbers and exponents are not read: comparing them exactly could take for ever."""


def parse_number(text: str) -> Fraction | None:
    """The one number in the text; None if there is none, or more than one.

    Example:
        >>> parse_number("She has 6 * 7 = 42. #### 1,042.50")
        Fraction(2085, 2)
        >>> parse_number("3 or 4") is None
        True
    """
    text = text.rpartition("####")[2]
    matches = list(_NUMBER.finditer(text))
    if len(matches) != 1:
        return None
    (match,) = matches
    has_more_digits = re.search(r"[0-9]", text[: match.start()] + text[match.end() :])
    return None if has_more_digits else _value(match)


def _value(match: re.Match[str]) -> Fraction | None:
    exponent, divisor = match["exponent"] or "0", match["divisor"] or "1"
    digits = match["value"].replace(",", "")
    if len(digits) > _MAX_DIGITS or len(divisor) > _MAX_DIGITS or len(exponent) > 5 or abs(int(exponent)) > _MAX_DIGITS:
        return None
    if int(divisor) == 0:
        return None
    negative = (match["sign"] in _MINUS) != (match["inner"] in _MINUS)
    value = Fraction(digits.rstrip(".") or "0") * Fraction(10) ** int(exponent) / int(divisor)
    return -value if negative else value
