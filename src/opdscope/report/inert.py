"""Text from models and files, made harmless to look at: what does not show is spelled out, and what is too long is cut and says so."""

import unicodedata
from typing import Any

_KEPT = frozenset("\n\t")


def inert(text: str) -> str:
    r"""The text with every character that does not show itself spelled out as `⟨U+202E⟩`.

    These are control characters (terminal escapes among them), bidirectional and zero-width ones, lone surrogates and what Unicode does not
    assign. Spaces of any width, line breaks and tabs stay. Markup is not touched: escaping it is the renderer's business.

    Example:
        >>> inert("a\x1b[31mb")
        'a⟨U+001B⟩[31mb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT or unicodedata.category(c) == "Zs" else _spell(c) for c in text)


def inert_data(value: Any) -> Any:
    """Plain data with every text in it made inert, keys included."""
    if isinstance(value, str):
        return inert(value)
    if isinstance(value, dict):
        return {inert_data(key): inert_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inert_data(item) for item in value]
    return value


def clip(text: str, limit: int) -> str:
    """The first `limit` characters, with a note of how many more there were.

    Example:
        >>> clip("abcdef", 4)
        'abcd… (2 more characters)'
    """
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def _spell(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
