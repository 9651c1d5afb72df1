"""From a run directory to its report file."""

from pathlib import Path
from typing import Any

from opdscope.errors import RunDirectoryError
from opdscope.models.vocabulary import read_vocabulary
from opdscope.report.chains import chain_view
from opdscope.report.html import render_html, render_training_html
from opdscope.report.html.training import training_view
from opdscope.report.html.view import build_view
from opdscope.report.tokens import TokenTexts
from opdscope.store import Run, TrainingLog
from opdscope.summary import measure_chains, summarize


def token_texts(run: Run) -> TokenTexts:
    """Texts of the run's tokens, from the student's tokenizer where this machine has it."""
    student = run.config.student
    return TokenTexts(run.table("strata"), read_vocabulary(student.model_name_or_path, student.revision))


def write_report(run: Run, path: Path | None = None, most_questions: int = 40) -> Path:
    """Write the report of what a run holds, complete or not; needs no model.

    Args:
        run: The run.
        path: The file; None is `report.html` in the run directory. An existing file is replaced.
        most_questions: Most questions in the chain view, which keeps the file at a few megabytes whatever the size of the run. Everything else
            is about all of them.

    Returns:
        The file.

    Raises:
        RunDirectoryError: If nothing is stored yet, or the file cannot be written.
    """
    tables = run.tables()
    if not tables["scores"].num_rows:
        raise RunDirectoryError(f"{run.path} holds no scores yet, so there is nothing to report; run the same diagnosis again, it resumes")
    summary = summarize(tables, run.config, run.times())
    chains = measure_chains(tables, run.config)
    view = build_view(tables, run.config, summary.data, chains, token_texts(run), run.provenance(), most_questions)
    return _write(render_html(view), run.path / "report.html" if path is None else path)


def write_training_report(log: TrainingLog, path: Path | None = None, confidence: float = 0.9) -> Path:
    """Write the report of a watched training run, finished or not.

    Args:
        log: What was recorded.
        path: The file; None is `report.html` beside the records. An existing file is replaced.
        confidence: Level of the intervals of live numbers.

    Returns:
        The file.

    Raises:
        RunDirectoryError: If nothing is recorded yet, or the file cannot be written.
    """
    tables = log.tables()
    if not tables["training_steps"].num_rows:
        raise RunDirectoryError(f"{log.path} holds no record of a step yet; report again once the monitor has looked at the training")
    return _write(
        render_training_html(training_view(tables, log.path.name, confidence)), log.path / "report.html" if path is None else path
    )


def _write(page: str, target: Path) -> Path:
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(f"cannot write the report to {target} ({error.strerror}); choose another file with --out") from error
    return target


def read_chain(run: Run, question: str) -> dict[str, Any]:
    """One question's paths with every teacher's numbers, for the terminal.

    Args:
        run: The run.
        question: Its id, or its number in the run, starting from 1.

    Returns:
        As :func:`opdscope.report.chains.chain_view`.

    Raises:
        RunDirectoryError: If there is no such question, or none of its paths was measured.
    """
    tables = run.tables()
    ids = tables["questions"]["question_id"].to_pylist()
    if question not in ids and question.isascii() and question.isdecimal() and 1 <= int(question) <= len(ids):
        question = ids[int(question) - 1]
    if question not in ids:
        some = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "")
        raise RunDirectoryError(f"{run.path} has no question {question!r}; give a number from 1 to {len(ids)} or an id ({some})")
    chains = measure_chains(tables, run.config)
    nodes = set() if chains is None else set(chains.strata["node_id"].to_pylist())
    own = [row["node_id"] for row in tables["nodes"].select(["node_id", "question_id"]).to_pylist() if row["question_id"] == question]
    if chains is None or not nodes.intersection(own):
        measured = sorted({row["question_id"] for row in tables["nodes"].to_pylist() if row["node_id"] in nodes}, key=ids.index)
        hint = f"; questions with measured paths: {', '.join(measured[:6])}" if measured else "; `opdscope diagnose CONFIG` measures paths"
        raise RunDirectoryError(f"no path of question {question!r} was measured{hint}")
    teachers = list(dict.fromkeys(chains.scores["teacher"].to_pylist()))
    return chain_view(tables, chains, token_texts(run), teachers, run.config.objectives[0], [question])
