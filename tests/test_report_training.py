"""The report of a watched training run: what was recorded is what it shows, inert whatever the records hold."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fixtures.browser import chromium, opened, serious_faults
from opdscope.cli import app
from opdscope.errors import RunDirectoryError
from opdscope.records import TRAINING_SCHEMAS, to_table
from opdscope.report import write_training_report
from opdscope.store import TrainingLog

NAN = math.nan
HOSTILE = "</script><img src=x onerror=alert(1)>\u202e"


def step(number: int, **changed: Any) -> dict[str, Any]:
    row: dict[str, Any] = {field.name: NAN for field in TRAINING_SCHEMAS["training_steps"]}
    row |= {
        "step": number,
        "objective": "reverse_kl",
        "context": HOSTILE,
        "distillation_weight": 0.5,
        "num_rollouts": 64,
        "num_unverified": 2,
    }
    row |= {"success": 0.5, "success_error": 0.05, "natural_gain": 0.4, "natural_gain_error": 0.1, "num_steps": 9.0, "monitor_share": 0.004}
    return {**row, **changed}


def record(path: Path, *steps: dict[str, Any]) -> TrainingLog:
    log = TrainingLog(path)
    log.write("training_steps", steps[-1]["step"], to_table("training_steps", steps))
    bins = {"step": steps[-1]["step"], "natural_gain": 0.3, "natural_gain_error": 0.1, "num_tokens": 8.0}
    places = [("depth", 0.0, 8.0), ("entropy", 1.5, math.inf)]
    log.write(
        "training_bins",
        steps[-1]["step"],
        to_table("training_bins", [{**bins, "axis": axis, "low": low, "high": high} for axis, low, high in places]),
    )
    probe = {field.name: NAN for field in TRAINING_SCHEMAS["training_probes"]} | {
        "step": 10,
        "teacher": HOSTILE,
        "run": "probe",
        "success": 0.6,
    }
    log.write("training_probes", 10, to_table("training_probes", [probe]))
    action = {"step": 10, "rule": HOSTILE, "action": "lower_weight", "before": "1", "after": "0.5", "reason": HOSTILE, "dry": True}
    log.write("training_actions", 10, to_table("training_actions", [action]))
    return log


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


@pytest.fixture
def log(tmp_path: Path) -> TrainingLog:
    return record(tmp_path / "watched", step(5), step(10, success=0.7, gain_over_null=-0.1, gain_over_null_error=0.02))


def test_the_report_holds_what_was_recorded_with_intervals_and_none_for_what_is_undefined(log: TrainingLog) -> None:
    page = write_training_report(log, confidence=0.9).read_text(encoding="utf-8")
    data = data_of(page)
    success, _, over = (series["points"] for series in data["series"])
    assert [point["value"] for point in success] == [0.5, 0.7]
    assert success[0]["high"] - success[0]["value"] == pytest.approx(1.6449 * 0.05, rel=1e-4)
    assert over[0] == {"step": 5, "value": None, "low": None, "high": None}
    assert [axis["rows"][0]["name"] for axis in data["bins"]] == ["0–8", "from 1.5"]
    assert "Step 10" in page
    assert "dry: only reported" in page


def test_hostile_names_add_no_element(log: TrainingLog) -> None:
    page = write_training_report(log).read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script")
    assert "\u202e" not in page


def test_a_run_of_which_nothing_is_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no record of a step yet"):
        write_training_report(TrainingLog(tmp_path))


def test_the_summary_of_a_watched_run_as_json_has_its_records(log: TrainingLog) -> None:
    found = CliRunner().invoke(app, ["summary", str(log.path), "--json"])
    assert found.exit_code == 0
    steps = json.loads(found.stdout)["training"]["training_steps"]
    assert [(row["step"], row["success"]) for row in steps][-1] == (10, 0.7)


def test_the_command_reports_a_watched_run(log: TrainingLog) -> None:
    done = CliRunner().invoke(app, ["report", str(log.path)])
    assert done.exit_code == 0, done.output
    assert (log.path / "report.html").exists()


def test_in_a_browser_every_series_is_drawn_and_nothing_acts(log: TrainingLog) -> None:
    report = write_training_report(log)
    with chromium() as browser, opened(browser, report) as page:
        assert page.locator(".chart svg").count() == 6
        for theme in ("light", "dark"):
            page.select_option("#theme", theme)
            assert serious_faults(page) == []
        assert page.locator("#rules tbody tr").count() == 1
