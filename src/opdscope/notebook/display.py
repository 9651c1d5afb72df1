"""A run as it shows itself in a notebook."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from opdscope.report.inert import inert_data

# a template in the code: it is this short, and autoescape stands beside it
_TEMPLATE = Environment(autoescape=True).from_string("""\
<div>
<p><b>{{ data.verdict.text }}</b></p>
<table>
<caption style="caption-side: bottom; text-align: left">{{ data.settings.objective }}, {{ level }} intervals by question; {{ path }}</caption>
<thead><tr>
<th style="text-align: left">teacher</th><th>gain over null</th><th>natural gain</th><th style="text-align: left">verdict</th>
</tr></thead>
<tbody>
{% for teacher in data.teachers if teacher.name not in matched %}
<tr><td style="text-align: left">{{ teacher.name }}</td><td>{{ number(teacher.gain_over_null) }}</td><td>{{ number(teacher.natural_gain) }}</td>
<td style="text-align: left">{{ teacher.verdict }}</td></tr>
{% endfor %}
</tbody>
</table>
<p>Student: success {{ number(data.student.success, "") }} on {{ data.student.num_questions }} questions, {{ data.student.num_rollouts }}
rollouts, {{ "%.1f%%"|format(100 * (data.student.share_truncated or 0)) }} truncated,
{{ "%.1f%%"|format(100 * (data.student.share_unverifiable or 0)) }} unverifiable.</p>
</div>
""")


def run_html(data: Mapping[str, Any], path: Path) -> str:
    """Verdict, ranking and the student's own success as a piece of HTML.

    Args:
        data: `Summary.data`.
        path: The run's directory.
    """
    matched = {null["teacher"] for null in data["nulls"] if null["matched_teacher"]}
    safe = inert_data(data)
    level = f"{data['settings']['confidence']:.0%}"
    return _TEMPLATE.render(data=safe, path=inert_data(str(path)), level=level, number=_number, matched=inert_data(list(matched)))


def _number(estimate: Mapping[str, Any], sign: str = "+") -> str:
    if estimate["value"] is None:
        return "—"
    if estimate["low"] is None:
        return f"{estimate['value']:{sign}.2f}"
    return f"{estimate['value']:{sign}.2f} [{estimate['low']:{sign}.2f}, {estimate['high']:{sign}.2f}]"
