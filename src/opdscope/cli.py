"""The command line: thin; a user's error is one plain sentence and exit code 2."""

import json
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from opdscope.errors import OpdscopeError
from opdscope.progress import watching

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        _print(f"opdscope {metadata.version('opdscope')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and end.", callback=_show_version, is_eager=True)] = False,
) -> None:
    """See where on-policy distillation helps and where it hurts, before and while you train."""


ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the diagnosis.", show_default=False)]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="Directory of the run; default runs/NAME.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. task.num_questions=8; may be repeated.", show_default=False),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no notes.")]


class DemoModel(StrEnum):
    """What the demonstration runs on."""

    EMBEDDED = "embedded"
    SMOLLM2 = "smollm2"


class CriterionName(StrEnum):
    """What advice maximises."""

    GAIN_PER_PUSH = "gain_per_push"
    GAIN = "gain"


def _print(renderable: Any) -> None:
    console = Console()
    # piped output has no width of its own; the tables are made for this one
    Console(width=None if console.is_terminal else 180).print(renderable)


def _show(run: Any) -> None:
    from opdscope.report import render_summary
    from opdscope.summary import summarize

    _print(render_summary(summarize(run.tables(), run.config, run.times()).data))


def _work(job: str, config: Any, run_dir: Path | None, overrides: list[str] | None, quiet: bool) -> None:
    from opdscope import pipeline

    function: Callable[..., Any] = {"screen": pipeline.screen, "diagnose": pipeline.diagnose}[job]
    with watching(quiet) as watcher:
        run = function(config, run_dir=run_dir, overrides=overrides or (), watcher=watcher)
    _show(run)
    _print(f"Run: {run.path}")


@app.command()
def plan(
    config: ConfigArgument,
    run_dir: RunDirOption = None,
    overrides: SetOption = None,
    measure: Annotated[bool, typer.Option(help="Measure this machine's speed with a probe of a few seconds.")] = True,
) -> None:
    """Rollouts, tokens, time and memory of a diagnosis, before anything is spent."""
    from opdscope.pipeline import make_plan
    from opdscope.report import render_plan

    _print(render_plan(make_plan(config, run_dir=run_dir, overrides=overrides or (), measure=measure)))


@app.command()
def check(
    config: ConfigArgument,
    run_dir: RunDirOption = None,
    overrides: SetOption = None,
    probe_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of each of the 16 responses that are drawn.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Models, prompts, numbers, verifier and cost, before anything is spent.

    Exit code 0 if nothing fails, 1 if something does, 2 if the configuration cannot be read.
    """
    from opdscope.pipeline import check as check_config
    from opdscope.report import check_data, render_check

    found = check_config(config, run_dir=run_dir, overrides=overrides or (), probe_tokens=probe_tokens)
    if as_json:
        sys.stdout.write(json.dumps(check_data(found), indent=2, ensure_ascii=False) + "\n")
    else:
        _print(render_check(found))
    if found.failed:
        raise typer.Exit(1)


@app.command()
def screen(config: ConfigArgument, run_dir: RunDirOption = None, overrides: SetOption = None, quiet: QuietOption = False) -> None:
    """Rank the teachers from the student's ordinary rollouts alone."""
    _work("screen", config, run_dir, overrides, quiet)


@app.command()
def diagnose(config: ConfigArgument, run_dir: RunDirOption = None, overrides: SetOption = None, quiet: QuietOption = False) -> None:
    """Screening, then targeted rollouts: where in the chain, and on correct against incorrect paths."""
    _work("diagnose", config, run_dir, overrides, quiet)


@app.command()
def gradients(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, screened.", show_default=False)], quiet: QuietOption = False
) -> None:
    """Carry ideal and distillation gradients to the student's parameters: what one step on the weights does. Samples nothing."""
    from opdscope.pipeline import carry_gradients

    with watching(quiet) as watcher:
        stored = carry_gradients(run, watcher)
    _show(stored)


@app.command()
def summary(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """What a stored run says, and what a watched training run has recorded; needs no model."""
    from opdscope.report import render_training
    from opdscope.store import is_run, is_watched, open_run, open_training_log

    training = open_training_log(run).tables() if is_watched(run) else None
    diagnosis = open_run(run) if is_run(run) or training is None else None
    if as_json:
        _write_json(diagnosis, training)
        return
    if diagnosis is not None:
        _show(diagnosis)
    if training is not None:
        _print(render_training(training))


def _write_json(diagnosis: Any, training: Any) -> None:
    from opdscope.summary import as_json, summarize
    from opdscope.summary.plain import plain

    data: dict[str, Any] = {} if diagnosis is None else summarize(diagnosis.tables(), diagnosis.config, diagnosis.times()).data
    if training is not None:
        data = {**data, "training": {name: plain(table.to_pylist()) for name, table in training.items()}}
    sys.stdout.write(as_json(data) + "\n")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Run directories, the earlier one first.", show_default=False)],
    objective: Annotated[str | None, typer.Option(help="Objective; default: the first run's first one.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Runs side by side: students, checkpoints or tasks, paired by question where questions match; needs no model."""
    from opdscope.report import render_comparison
    from opdscope.store import open_run
    from opdscope.summary import as_json as to_json
    from opdscope.summary import compare_runs

    found = compare_runs([open_run(run) for run in runs], objective)
    if as_json:
        sys.stdout.write(to_json(found) + "\n")
    else:
        _print(render_comparison(found))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The file; default RUN/report.html.", show_default=False)] = None,
    questions: Annotated[
        int, typer.Option(min=1, help="Most questions whose chains go into the file; averages are always about all.")
    ] = 40,
) -> None:
    """Write a stored run, or a watched training run, as one HTML file to look at, offline; needs no model."""
    from opdscope.report import write_report, write_training_report
    from opdscope.store import is_run, is_watched, open_run, open_training_log

    if is_watched(run) and not is_run(run):
        typer.echo(f"Report: {write_training_report(open_training_log(run), out)}")
    else:
        typer.echo(f"Report: {write_report(open_run(run), out, questions)}")


@app.command()
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Id of a question, or its number from 1 on.", show_default=False)],
    teacher: Annotated[str | None, typer.Option(help="Whose gains shade the tokens; default: the first one.", show_default=False)] = None,
) -> None:
    """The measured paths of one question, each token shaded by the teacher's gain; needs no model."""
    from opdscope.errors import ConfigError
    from opdscope.report import read_chain, render_chain
    from opdscope.store import open_run

    stored = open_run(run)
    view = read_chain(stored, question)
    if teacher is not None and teacher not in view["teachers"]:
        raise ConfigError(f"--teacher: there is no teacher {teacher!r} in this run; those there are: {', '.join(view['teachers'])}")
    place = 0 if teacher is None else view["teachers"].index(teacher)
    _print(render_chain(view, place, stored.config.analysis.confidence))


@app.command()
def advise(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="Directory of the recipe; default RUN/advice.", show_default=False)] = None,
    criterion: Annotated[
        CriterionName, typer.Option(help="gain_per_push: Adam and clipped gradients; gain: plain gradient steps.")
    ] = CriterionName.GAIN_PER_PUSH,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Teacher, objective, weights, curriculum and schedule from a stored run, or none; writes a recipe. Needs no model."""
    import json

    from opdscope.advice import advice_data, render_advice
    from opdscope.advice import advise as make_advice
    from opdscope.store import open_run

    stored = open_run(run)
    advice = make_advice(stored, criterion.value)
    files = advice.write(stored.path / "advice" if output is None else output)
    if as_json:
        sys.stdout.write(json.dumps(advice_data(advice), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        _print(render_advice(advice))
        _print(f"Recipe: {files[0]}" + (f" (settings beside it: {', '.join(path.name for path in files[1:])})" if files[1:] else ""))


@app.command()
def monitor(
    from_dump: Annotated[
        Path, typer.Option("--from-dump", help="Rollouts of verl (JSONL) or of TRL (Parquet): a file or a folder.", show_default=False)
    ],
    config: Annotated[Path, typer.Option("--config", help="YAML file with student, teachers and questions.", show_default=False)],
    log_dir: Annotated[Path, typer.Option("--log-dir", help="Where the records go.")] = Path("runs/monitor"),
    teacher: Annotated[str | None, typer.Option(help="Whose gain; default: the first one.", show_default=False)] = None,
    reward: Annotated[str | None, typer.Option(help="Column of the reward, where there are several.", show_default=False)] = None,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Rollouts that a trainer has written down, rescored: the live monitor's series afterwards."""
    from importlib.util import find_spec

    from opdscope.errors import TrainingError
    from opdscope.report import render_training
    from opdscope.store import open_training_log

    if find_spec("trl") is None:
        raise TrainingError("rescoring a trainer's rollouts needs the package trl: pip install 'opdscope[train]'")
    from opdscope.training import monitor_dump

    with watching(quiet) as watcher:
        done = monitor_dump(from_dump, config, log_dir, teacher=teacher, reward=reward, overrides=overrides or (), watcher=watcher)
    left_out = f"; {done.num_unmatched:,} whose prompt holds no known question are left out" if done.num_unmatched else ""
    _print(render_training(open_training_log(log_dir).tables()))
    _print(f"{done.num_rollouts:,} rollouts of {done.num_steps} steps, teacher {_inert(done.teacher)}{left_out}. Records: {log_dir}")


@app.command()
def watch(
    log_dir: Annotated[Path, typer.Argument(metavar="RUN", help="What the trainer's callback logs to.", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="Print the present state and end.")] = False,
    seconds: Annotated[float, typer.Option(min=0.2, help="Time between two looks.")] = 2.0,
) -> None:
    """A training run while it is going on, or afterwards; end with Ctrl-C."""
    from rich.live import Live

    from opdscope.report import render_training
    from opdscope.store import open_training_log

    log = open_training_log(log_dir)
    if once or not Console().is_terminal:
        _print(render_training(log.tables()))
        return
    with Live(render_training(log.tables()), auto_refresh=False, screen=True) as live:
        try:
            while True:
                time.sleep(seconds)
                live.update(render_training(log.tables()), refresh=True)
        except KeyboardInterrupt:
            pass
    _print(render_training(log.tables()))


@app.command()
def demo(
    model: Annotated[DemoModel, typer.Option(help="embedded: tiny transformers that ship with the package; smollm2: SmolLM2-135M.")] = (
        DemoModel.EMBEDDED
    ),
    run_dir: RunDirOption = None,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """A whole diagnosis of a real model in seconds, offline."""
    from opdscope.config import load_config

    with resources.as_file(resources.files("opdscope") / "data" / "demo" / f"{model.value}.yaml") as path:
        _work("diagnose", load_config(path, overrides or ()), run_dir, None, quiet)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except OpdscopeError as error:
        Console(stderr=True).print(f"[bold red]Error:[/bold red] {_inert(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _inert(text: str) -> str:
    """Text for a terminal: no markup and no control characters, whatever a file or a model put into it."""
    from rich.markup import escape

    return escape("".join(character if character.isprintable() or character == "\n" else "�" for character in text))


if __name__ == "__main__":
    main()
