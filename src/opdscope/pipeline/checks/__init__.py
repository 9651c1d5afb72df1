"""Before anything is spent: do models, prompts, numbers and verifier do what a diagnosis takes for granted?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opdscope.config import load_config
from opdscope.models.memory import free_memory
from opdscope.pipeline.checks.cost import check_memory, check_time
from opdscope.pipeline.checks.lines import CheckLine, CheckReport, State
from opdscope.pipeline.checks.numbers import check_numbers, draw_probe
from opdscope.pipeline.checks.prompts import check_prompts, describe_missing, refusal
from opdscope.pipeline.checks.setup import Setup, load_each_model, load_questions
from opdscope.pipeline.checks.verifier import check_verifier
from opdscope.pipeline.diagnosis import ConfigSource
from opdscope.pipeline.plan import plan_with

__all__ = ["CheckLine", "CheckReport", "State", "check", "check_setup"]


def check(config: ConfigSource, *, run_dir: str | Path | None = None, overrides: Sequence[str] = (), probe_tokens: int = 64) -> CheckReport:
    """Look at everything that a diagnosis takes for granted. Nothing is written; 16 short responses are drawn.

    Args:
        config: As for :func:`opdscope.screen`.
        run_dir: A run of the same configuration to take the mean response length from; `runs/NAME` if not given.
        overrides: `key=value` pairs that change the configuration.
        probe_tokens: Most tokens of each of the 16 responses.

    Returns:
        The report. What cannot be loaded is a line that fails, and not an exception.

    Raises:
        ConfigError: If the configuration itself cannot be read.
    """
    settings = load_config(config, overrides)
    free = free_memory(settings.engine.device)  # before the models are loaded: the plan's memory has them in it
    task, lines = load_questions(settings)
    student, teachers, model_lines = load_each_model(settings)
    lines += model_lines
    if task is None or student is None:
        rest = CheckLine("not checked", State.WARN, "prompts, numbers, verifier, memory and time", "mend the lines above and check again")
        return CheckReport((*lines, rest), {}, None)
    report = check_setup(Setup(settings, task, student, teachers), probe_tokens)
    if not report.prompts:
        return CheckReport((*lines, *report.lines), {}, None)
    # a teacher that could not be loaded is planned for as if it were as large as the student
    plan = plan_with(settings, task, student, {spec.name: teachers.get(spec.name, student) for spec in settings.teachers}, run_dir=run_dir)
    return CheckReport((*lines, *report.lines, check_memory(plan, free), check_time(plan)), report.prompts, plan)


def check_setup(setup: Setup, probe_tokens: int) -> CheckReport:
    """The part of :func:`check` that needs questions and models: prompts, numbers and verifier."""
    if (refused := refusal(setup)) is not None:
        return CheckReport((refused, *check_verifier(setup)), {}, None)
    samples = draw_probe(setup, probe_tokens)
    lines, prompts = check_prompts(setup, samples)
    usable = replace(setup, teachers={name: model for name, model in setup.teachers.items() if name in prompts})
    lines += [*describe_missing(usable), *check_numbers(usable, samples), *check_verifier(setup)]
    return CheckReport(tuple(lines), prompts, None)
