"""From a stored run to advice: the choice, its weights, curriculum, schedule and place beside reinforcement learning, and the recipe of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa

from opdscope.advice.choice import Candidate, Choice, Criterion, choose, needed_factor
from opdscope.advice.details import Details, work_out
from opdscope.advice.files import write_recipe
from opdscope.advice.recipe import (
    QUESTIONS_FILE,
    TOKEN_WEIGHTS_FILE,
    ModelStamp,
    Number,
    OutcomeWeights,
    Recipe,
    ScheduleSettings,
    TeacherStamp,
    TokenWeighting,
    Weighting,
)
from opdscope.advice.settings import trainer_settings
from opdscope.advice.tables import question_table, token_table
from opdscope.advice.weights import Parts
from opdscope.config import Config
from opdscope.core.aggregation import Estimate
from opdscope.errors import RecipeError, RunDirectoryError
from opdscope.store import Run
from opdscope.summary import summarize
from opdscope.summary.looks import screen_looks


@dataclass(frozen=True)
class Advice:
    """Everything that `opdscope advise` says and writes."""

    recipe: Recipe
    """What a trainer reads."""
    tables: dict[str, pa.Table]
    """The recipe's tables by file name."""
    settings: dict[str, str]
    """Settings for other trainers by file name; empty unless there is a teacher to use."""
    choice: Choice
    """Evidence for the teacher."""
    details: Details | None
    """Evidence for the rest; None unless there is a teacher to use."""
    student: Mapping[str, Any]
    """The student's section of the summary."""

    def write(self, directory: Path) -> list[Path]:
        """Write recipe, tables and settings; returns the files, the recipe first.

        Raises:
            RecipeError: If they cannot be written.
        """
        files = [write_recipe(directory, self.recipe, self.tables)]
        for name in ("trl.py", "verl.sh", "ms_swift.sh"):  # those of an earlier recipe would contradict this one
            (directory / name).unlink(missing_ok=True)
        for name, text in self.settings.items():
            try:
                (directory / name).write_text(text, encoding="utf-8")
            except OSError as error:
                raise RecipeError(f"cannot write {directory / name} ({error.strerror}); choose another place with --output") from error
            files.append(directory / name)
        return files


def advise(run: Run, criterion: Criterion = "gain_per_push") -> Advice:
    """What to do with what a run has measured; needs no model.

    Args:
        run: The run, screened or diagnosed.
        criterion: `gain_per_push` for updates of normalised size (Adam, clipped gradients), `gain` for plain gradient steps.

    Raises:
        RunDirectoryError: If nothing is stored yet.
    """
    tables, config = run.tables(), run.config
    if not tables["scores"].num_rows:
        raise RunDirectoryError(
            f"{run.path} holds no scores yet, so there is nothing to advise on; run the same diagnosis again, it resumes"
        )
    summary = summarize(tables, config).data
    real = [teacher["name"] for teacher in summary["teachers"] if not teacher["is_null"]]
    choice = choose(real, screen_looks(tables, config), config, criterion)
    if summary["verdict"]["kind"] == "nothing to measure":
        choice = Choice("not enough data", choice.candidates, choice.comparisons, choice.chance_none)
    details = None if choice.first is None else work_out(tables, choice.first, config)
    recipe = _recipe(run, tables, choice, details, summary, criterion)
    found = {QUESTIONS_FILE: question_table(tables, details), TOKEN_WEIGHTS_FILE: token_table(details, config.analysis.confidence)}
    return Advice(recipe, found, trainer_settings(recipe), choice, details, summary["student"])


def _recipe(
    run: Run, tables: Mapping[str, pa.Table], choice: Choice, details: Details | None, summary: Mapping[str, Any], criterion: Criterion
) -> Recipe:
    config, first = run.config, choice.first
    models = run.provenance()["models"]
    helping = [candidate for candidate in choice.candidates if candidate.verdict == "helps"] if first else []
    strengths = {row["teacher"]: row["strength"] for row in tables["nulls"].to_pylist()}
    success = summary["student"]["success"]["value"]
    outcomes = None if details is None else details.outcomes
    return Recipe(
        opdscope=metadata.version("opdscope"),
        run=config.name,
        kind=choice.kind,
        text=_text(choice, summary, criterion),
        confidence=config.analysis.confidence,
        student=ModelStamp(model_name_or_path=config.student.model_name_or_path, **_facts(models.get("student"))),
        teacher=None if first is None else _teacher(first, tables, config, models),
        alternatives=tuple(_teacher(candidate, tables, config, models) for candidate in _others(helping)),
        objective=None if first is None else first.objective,
        criterion=criterion,
        temperature=config.rollouts.temperature,
        max_completion_length=config.rollouts.max_completion_length,
        null_teacher=None if first is None else first.null.name,
        null_factor=0.0 if first is None else first.null.factor,
        null_temperature=None if first is None or first.null.name is None else strengths[first.null.name],
        schedule=None if first is None else ScheduleSettings(start_success=success, start_gain=first.gain_over_live_null),
        outcome_weights=_outcome_weights(outcomes),
        outcome_weighting=_outcome_evidence(details),
        token_weighting=_token_evidence(details),
        question_weighting=_evidence(
            None if details is None else details.questions.improvement, "questions", "the two halves of the rollouts"
        ),
        order_reliability=None if details is None or math.isnan(details.curriculum.reliability) else details.curriculum.reliability,
        files={},
    )


def _others(helping: Sequence[Candidate]) -> list[Candidate]:
    """The best objective of each further teacher that helps."""
    found: dict[str, Candidate] = {}
    for candidate in helping[1:]:
        if candidate.teacher != helping[0].teacher:
            found.setdefault(candidate.teacher, candidate)
    return list(found.values())


def _teacher(candidate: Candidate, tables: Mapping[str, pa.Table], config: Config, models: Mapping[str, Any]) -> TeacherStamp:
    teacher = next(t for t in config.teachers if t.name == candidate.teacher)
    own = teacher.teacher_model_name_or_path
    rows = tables["contexts"].select(["teacher", "available", "prompt"]).to_pylist()
    return TeacherStamp(
        name=teacher.name,
        self_distillation=own is None,
        model_name_or_path=config.student.model_name_or_path if own is None else own,
        **_facts(models.get("student") if own is None else models.get(teacher.name)),
        privileged_context=teacher.privileged_context,
        objective=candidate.objective,
        prompt=None if config.prompt is None else getattr(config.prompt, teacher.privileged_context),
        example=next((row["prompt"] for row in rows if row["teacher"] == teacher.name and row["available"]), ""),
        gain_over_null=number(candidate.gain_over_null),
        verdict=candidate.verdict,
    )


def _facts(model: Mapping[str, Any] | None) -> dict[str, Any]:
    known = model or {}
    return {"fingerprint": known.get("fingerprint"), "tokenizer_hash": known.get("tokenizer_hash")}


def number(estimate: Estimate) -> Number:
    """An estimate as a recipe writes it, with None for what is undefined."""
    value, low, high = (None if math.isnan(x) else x for x in (estimate.value, estimate.low, estimate.high))
    return Number(value=value, low=low, high=high)


def _outcome_weights(parts: Parts | None) -> OutcomeWeights:
    if parts is None or not parts.helps:
        return OutcomeWeights()
    right, wrong = parts.weights.tolist()
    return OutcomeWeights(correct=right, incorrect=wrong, truncated=wrong)


_NOTHING = Number(value=None, low=None, high=None)


def _evidence(improvement: Estimate | None, what: str, held_out: str) -> Weighting:
    if improvement is None:
        return Weighting(use=False, improvement=_NOTHING, reason="There is no teacher to weight.")
    use = improvement.low > 0
    text = (
        f"Weights by {what} raise the gain per size of the push on {held_out}."
        if use
        else f"No weighting by {what} is shown to help on {held_out}."
    )
    return Weighting(use=use, improvement=number(improvement), reason=text)


def _outcome_evidence(details: Details | None) -> Weighting:
    if details is not None and details.outcomes is None:
        reason = "Outcome classes need targeted rollouts of the default protocol: run `opdscope diagnose`."
        return Weighting(use=False, improvement=_NOTHING, reason=reason)
    improvement = None if details is None or details.outcomes is None else details.outcomes.improvement
    return _evidence(improvement, "outcome", "held-out questions")


def _token_evidence(details: Details | None) -> TokenWeighting:
    if details is None or not details.tokens:
        reason = "There is no teacher to weight." if details is None else "All of the push is in one place: there are no bins."
        return TokenWeighting(use=False, improvement=_NOTHING, reason=reason, feature=None)
    best = details.token_choice
    shown = best or max(details.tokens, key=lambda parts: parts.improvement.value)
    evidence = _evidence(shown.improvement, f"{shown.name} of the token" if best else "depth, entropy or divergence", "held-out questions")
    return TokenWeighting(**evidence.model_dump(), feature=None if best is None else best.name)  # pyright: ignore[reportArgumentType]


def _text(choice: Choice, summary: Mapping[str, Any], criterion: Criterion) -> str:
    if choice.kind == "distil" and choice.first is not None:
        first, measure = choice.first, "gain per size of the push" if criterion == "gain_per_push" else "gain"
        ties = [f"{c.second[0]} with {c.second[1]}" for c in choice.comparisons if not c.decided and _helps(choice, c.second)]
        tie = f" Not told apart from it: {', '.join(ties)}." if ties else ""
        return f"Distil from {first.teacher} with {first.objective}: the largest {measure} beyond its null.{tie}{caution(summary, first.teacher)}"
    if choice.kind == "sharpen":
        return (
            "Do not distil: no teacher is shown to beat the student at another temperature. Sharpening would do, at sampling time or as a "
            f"teacher that costs nothing.{goes_further(summary, choice)}"
        )
    if choice.kind == "none":
        return "Do not distil: no teacher helps here, with any of the objectives."
    if summary["verdict"]["kind"] == "nothing to measure":
        return str(summary["verdict"]["text"])
    return f"Not enough data to choose a teacher.{_more(choice)}"


def caution(summary: Mapping[str, Any], teacher: str) -> str:
    """A sentence where the first steps towards a teacher help and the whole way does not; empty where that is not shown.

    The gain is the derivative at the start of the way to the teacher, the teacher advantage is about its end (docs/validity.md).

    Args:
        summary: `Summary.data`.
        teacher: Name of a teacher that helps.
    """
    targeted = next(row for row in summary["teachers"] if row["name"] == teacher).get("targeted")
    advantage = None if targeted is None else targeted["all"]["advantage"]
    if advantage is None or advantage["high"] is None or advantage["high"] >= 0:
        return ""
    return (
        f" Take small steps and watch: its advantage is {advantage['value']:+.4f} [{advantage['low']:+.4f}, {advantage['high']:+.4f}] a token, so "
        "the way that begins well ends in a teacher whose own tokens succeed less often."
    )


def goes_further(summary: Mapping[str, Any], choice: Choice) -> str:
    """A sentence where a null wins the first steps and the teacher's own tokens surely succeed more often than the null's; empty elsewhere.

    Sharpening soon has nothing left to give; a teacher whose advantage is larger has (docs/validity.md, "A teacher and its nulls").

    Args:
        summary: `Summary.data`.
        choice: The choice.
    """
    advantages = {row["name"]: row["targeted"]["all"]["advantage"] for row in summary["teachers"] if row.get("targeted") is not None}
    for candidate in choice.candidates:
        own, null = advantages.get(candidate.teacher), advantages.get(candidate.null.name or "")
        if own is None or null is None or None in (own["low"], null["high"]) or own["low"] <= max(null["high"], 0.0):
            continue
        return (
            f" That is about the first steps. {candidate.teacher}'s own tokens succeed more often than those of its null (advantage "
            f"{own['value']:+.4f} [{own['low']:+.4f}, {own['high']:+.4f}] a token against {null['value']:+.4f} [{null['low']:+.4f}, "
            f"{null['high']:+.4f}]): sharpening soon has nothing left to give, and over many steps this teacher may lead further."
        )
    return ""


def _helps(choice: Choice, key: tuple[str, str]) -> bool:
    return any((candidate.teacher, candidate.objective) == key and candidate.verdict == "helps" for candidate in choice.candidates)


def _more(choice: Choice) -> str:
    best = max(choice.candidates, key=lambda c: -math.inf if math.isnan(c.gain_over_null.value) else c.gain_over_null.value, default=None)
    factor = math.nan if best is None else needed_factor(best.gain_over_null)
    if best is None or not math.isfinite(factor):
        return ""
    times, gain = max(math.ceil(factor), 2), best.gain_over_null.value
    return (
        f" In {choice.chance_none:.0%} of resamples no candidate beats its null. About {times} times as many questions would tell "
        f"{best.teacher} with {best.objective} from its null, if the difference stays at {gain:+.2f}."
    )
