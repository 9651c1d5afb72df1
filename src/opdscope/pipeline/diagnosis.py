"""The main job: roll_out() alone, screen() from ordinary rollouts, diagnose() with targeted rollouts on top. All resume."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opdscope.config import Config, load_config
from opdscope.pipeline.continuations import sample_continuations
from opdscope.pipeline.experiment import Experiment, describe_models, load_models
from opdscope.pipeline.looks import looks
from opdscope.pipeline.nodes import choose_nodes
from opdscope.pipeline.nulls import match_nulls
from opdscope.pipeline.paper import choose_paper_nodes
from opdscope.pipeline.rollouts import sample_rollouts, sample_teachers, store_questions
from opdscope.pipeline.scoring import score_rollouts
from opdscope.pipeline.teacher_contexts import require_contexts, store_contexts
from opdscope.pipeline.watching import Silent, Watcher
from opdscope.records import Outcome, Role
from opdscope.store import Run, start_run
from opdscope.tasks import VerifierPool, load_task

ConfigSource = str | Path | Mapping[str, Any] | Config


def roll_out(
    config: ConfigSource, *, run_dir: str | Path | None = None, overrides: Sequence[str] = (), watcher: Watcher | None = None
) -> Run:
    """The student's ordinary rollouts and their outcomes alone; no teacher is asked. Of a run with several looks, those of the first one.

    Arguments, return value and errors are those of :func:`screen`, which goes on from it with the same configuration.
    """
    with open_experiment(config, run_dir, overrides, watcher) as experiment:
        store_questions(experiment)
        sample_rollouts(experiment, next(looks(experiment)))
        return experiment.run


def screen(
    config: ConfigSource, *, run_dir: str | Path | None = None, overrides: Sequence[str] = (), watcher: Watcher | None = None
) -> Run:
    """Gains of every teacher from the student's ordinary rollouts; no targeted rollout is drawn.

    Args:
        config: Path of a YAML file, a mapping of the same layout, or a config.
        run_dir: Where results go; `runs/NAME` if not given. Finished work in it is not repeated.
        overrides: `key=value` pairs that change the configuration.
        watcher: Hears about progress.

    Returns:
        The run, ready to be summarised; `diagnose` of the same configuration goes on from it.

    Raises:
        OpdscopeError: With a sentence that says what was expected, what was found and what to do.
    """
    with open_experiment(config, run_dir, overrides, watcher) as experiment:
        _screen(experiment)
        return experiment.run


def diagnose(
    config: ConfigSource, *, run_dir: str | Path | None = None, overrides: Sequence[str] = (), watcher: Watcher | None = None
) -> Run:
    """Screening, then targeted rollouts: alignment per node and token, and the split by correct and incorrect paths.

    Arguments, return value and errors are those of :func:`screen`. With `target.kind: rank` screening is all that is asked for.
    Where no rollout or every rollout is correct there is nothing to measure: targeted rollouts are then not drawn, and the summary says so.
    """
    with open_experiment(config, run_dir, overrides, watcher) as experiment:
        _screen(experiment)
        if experiment.config.target.kind == "rank":
            return experiment.run
        if _has_both_outcomes(experiment.run):
            if (paper := experiment.config.paper) is not None:
                choose_paper_nodes(experiment, paper)
            else:
                choose_nodes(experiment)
            sample_continuations(experiment)
        else:
            experiment.watcher.note("All rollouts have the same outcome: there is nothing to measure, and no targeted rollouts are drawn.")
        return experiment.run


@contextmanager
def open_experiment(
    source: ConfigSource, run_dir: str | Path | None, overrides: Sequence[str], watcher: Watcher | None
) -> Generator[Experiment]:
    """Models, questions, verifier and run directory of a configuration, held for writing."""
    config = load_config(source, overrides)
    task = load_task(config.task)
    prompts = config.prompt or task.prompt_format
    require_contexts(config, task, prompts)
    run = start_run(Path("runs") / config.name if run_dir is None else run_dir, config)
    with run.locked():
        student, teachers = load_models(config)
        run.record_models(describe_models(config, student, teachers))
        engine = config.engine
        with VerifierPool(task.verifier, engine.verifier_workers, engine.verifier_deadline_seconds) as verifiers:
            yield Experiment(config, run, task, prompts, student, teachers, verifiers, watcher or Silent())


def _screen(experiment: Experiment) -> None:
    store_questions(experiment)
    for look in looks(experiment):
        sample_rollouts(experiment, look)
        if look.start == 0:
            store_contexts(experiment)
            sample_teachers(experiment)
            match_nulls(experiment)
        score_rollouts(experiment, look)


def _has_both_outcomes(run: Run) -> bool:
    rollouts = run.table("rollouts").select(["role", "outcome"]).to_pylist()
    outcomes = {
        row["outcome"] == Outcome.CORRECT for row in rollouts if row["role"] == Role.MEASURED and row["outcome"] != Outcome.UNVERIFIABLE
    }
    return len(outcomes) == 2
