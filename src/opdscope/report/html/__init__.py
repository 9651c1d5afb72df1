"""The report: one HTML file that needs neither network nor server, and shows text from models as text whatever it holds.

Scripts run only if their hash is in the page's content security policy, which also forbids every request. Data is JSON in an inert script element.
Charts are drawn by Observable Plot, kept in `assets/vendor` with its licence, so that the file carries all it needs.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "page.js")
_STYLES = ("page.css", "chain.css")

_UNSAFE = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def render_html(view: Mapping[str, Any]) -> str:
    """The report as one HTML document.

    Args:
        view: From :func:`opdscope.report.html.view.build_view`.
    """
    return _document("report.html.j2", ("charts.js", "chain.js"), view)


def render_training_html(view: Mapping[str, Any]) -> str:
    """The report of a watched training run as one HTML document.

    Args:
        view: From :func:`opdscope.report.html.training.training_view`.
    """
    return _document("training.html.j2", ("training.js",), view)


def _document(template: str, own_scripts: Sequence[str], view: Mapping[str, Any]) -> str:
    scripts = [_asset(name) for name in (*_LIBRARIES, *own_scripts)]
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{_digest(script)}'" for script in scripts),
            "style-src 'unsafe-inline'",  # charts set styles on what they draw; a style can ask for nothing under this policy
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    data = json.dumps(view, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)
    return (
        _environment()
        .get_template(template)
        .render(
            view=view,
            policy=Markup(policy),
            styles=[Markup(_asset(name)) for name in _STYLES],
            scripts=[Markup(script) for script in scripts],
            data=Markup(data),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("opdscope.report.html", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["interval"] = _interval
    environment.filters["words"] = _words
    environment.filters["short"] = _short
    environment.filters["tint"] = _tint
    return environment


def _asset(name: str) -> str:
    return (resources.files("opdscope.report.html") / "assets" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _number(value: float | None, digits: int = 2, sign: bool = True) -> str:
    if value is None:
        return "—"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def _interval(estimate: Mapping[str, Any] | None, digits: int = 2, sign: bool = True) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    if estimate["low"] is None:
        return "no interval"
    return f"{_number(estimate['low'], digits, sign)} to {_number(estimate['high'], digits, sign)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(count: int) -> str:
    for size, letter in ((1_000_000_000, " billion"), (1_000_000, " million")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return f"{count:,}"


def _tint(estimate: Mapping[str, Any]) -> str:
    """Classes of a cell by sign, and by whether the interval knows it."""
    if estimate["value"] is None or estimate["low"] is None or estimate["low"] == estimate["high"]:
        return "unsure"
    sure = estimate["low"] > 0 or estimate["high"] < 0
    return f"{'pos' if estimate['value'] > 0 else 'neg'} {'sure' if sure else 'unsure'}"
