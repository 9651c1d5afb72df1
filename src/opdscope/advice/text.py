"""Advice as rich renderables for the terminal, and as plain data. No number is made here."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from opdscope.advice.details import Details
from opdscope.advice.making import Advice
from opdscope.advice.recipe import Weighting
from opdscope.advice.weights import CLASSES, Parts, only, whole
from opdscope.core.aggregation import Estimate
from opdscope.report.inert import inert
from opdscope.report.text import estimate_text
from opdscope.summary.plain import plain


def advice_data(advice: Advice) -> dict[str, Any]:
    """Everything as plain data: recipe, candidates, comparisons, weights, mixes and settings. Undefined numbers are None."""
    details = advice.details
    return {
        "recipe": advice.recipe.model_dump(mode="json"),
        "chance_none": plain(advice.choice.chance_none),
        "candidates": [plain({**asdict(c), "null": {"name": c.null.name, "factor": c.null.factor}}) for c in advice.choice.candidates],
        "comparisons": plain([asdict(c) for c in advice.choice.comparisons]),
        "tokens": [] if details is None else [_parts_data(parts, advice.recipe.confidence) for parts in details.tokens],
        "outcomes": None if details is None or details.outcomes is None else _parts_data(details.outcomes, advice.recipe.confidence),
        "reinforcement": [] if details is None else plain([asdict(each) for each in details.reinforcement]),
        "questions": [plain(row) for row in advice.tables["questions.parquet"].to_pylist()],
        "settings": advice.settings,
    }


def _parts_data(parts: Parts, confidence: float) -> dict[str, Any]:
    return plain(
        {
            "name": parts.name,
            "edges": parts.edges.tolist(),
            "weights": parts.weights.tolist(),
            "gains": parts.gains(confidence),
            "alone": [only(parts, k, confidence) for k in range(len(parts.weights))],
            "together": whole(parts, confidence),
            "share_of_tokens": parts.share_of_tokens.tolist(),
            "improvement": parts.improvement,
        }
    )


def render_advice(advice: Advice) -> Group:
    """The verdict, the evidence for it, and what the recipe holds."""
    parts: list[RenderableType] = [Text(f"\n{inert(advice.recipe.text)}\n", style="bold")]
    if advice.choice.candidates:
        parts.append(_candidates(advice))
    if advice.details is not None:
        parts += _schedule(advice)
        parts += _weights(advice, advice.details)
        parts.append(_curriculum(advice, advice.details))
        parts.append(_reinforcement(advice.details))
    return Group(*parts)


def _table(title: str, caption: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right")
    return table


def _candidates(advice: Advice) -> Table:
    per_push = advice.recipe.criterion == "gain_per_push"
    counts = "the second, for Adam and clipped gradients" if per_push else "the first, for plain gradient steps"
    caption = (
        f"Two predictions; what counts here is {counts}. Per push: over √KL, in which updates of normalised size take a step. "
        "Best: share of resamples of the questions in which it is the best of all, doing nothing included "
        f"(nothing: {advice.choice.chance_none:.0%}). Verdicts hold together."
    )
    title = f"Teacher and objective · {advice.recipe.confidence:.0%} intervals, clustered by question"
    table = _table(title, caption, ["teacher", "objective", "gain over null", "per push", "null to beat", "verdict", "best"])
    for c in advice.choice.candidates:
        numbers = [_markup(c.gain_over_null), _markup(c.gain_over_null_per_push)]
        null = "nothing" if c.null.name is None else c.null.name.removeprefix(f"{c.teacher}: ")
        table.add_row(escape(inert(c.teacher)), c.objective, *numbers, escape(inert(null)), c.verdict, f"{c.chance_best:.0%}")
    return table


def _schedule(advice: Advice) -> list[Text]:
    schedule = advice.recipe.schedule
    if schedule is None:
        return []
    room = schedule.ceiling - schedule.start_success
    formula = (
        f"{schedule.maximum:g} × clip(gain over null now / {schedule.start_gain:.2f}, 0, 1) × "
        f"clip(({schedule.ceiling:g} − success now) / {room:.2f}, 0, 1); 0 once the gain's upper bound is below 0."
    )
    return [Text("Weight of the distillation loss over training", style="italic"), Text(f"  {formula}\n")]


def _weights(advice: Advice, details: Details) -> list[RenderableType]:
    level, recipe = advice.recipe.confidence, advice.recipe
    found: list[RenderableType] = []
    if details.outcomes is not None:
        found += [_parts("Weights by outcome", details.outcomes, [*CLASSES], level), _said(recipe.outcome_weighting)]
    else:
        found.append(_said(recipe.outcome_weighting))
    shown = details.token_choice
    if shown is not None:
        found.append(_parts(f"Weights by {shown.name} of a token", shown, _bins(shown), level))
    found += [_said(recipe.token_weighting), _said(recipe.question_weighting)]
    return found


def _parts(title: str, parts: Parts, names: Sequence[str], level: float) -> Table:
    caption = f"Gain over √KL if only these are trained on; on all: {Text.from_markup(_markup(whole(parts, level))).plain}."
    table = _table(title, caption, ["", "tokens", "gain", "alone, per push", "weight"])
    for k, (name, gain) in enumerate(zip(names, parts.gains(level), strict=True)):
        weight = f"{parts.weights[k]:.2f}" if parts.helps else f"[dim]1 ({parts.weights[k]:.2f} not shown to help)[/dim]"
        table.add_row(name, f"{parts.share_of_tokens[k]:.0%}", _markup(gain), _markup(only(parts, k, level)), weight)
    return table


def _bins(parts: Parts) -> list[str]:
    unit = "" if parts.name == "depth" else " nats"
    edges = [f"{edge:.3g}{unit}" for edge in parts.edges]
    return [f"below {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges)), f"from {edges[-1]}"]


def _said(weighting: Weighting) -> Text:
    if weighting.improvement.value is None:
        return Text(f"{weighting.reason}\n")
    number = Text.from_markup(_markup(weighting.improvement.model_dump(), 3)).plain
    return Text(f"{weighting.reason} Held-out change: {number}.\n")


def _curriculum(advice: Advice, details: Details) -> Table:
    plan = details.curriculum
    caption = (
        "From little guidance to much, by shrunken gain. The order is expected to agree with the true one at rank correlation "
        f"{plan.reliability:.2f}; "
        f"{1 - plan.gains.reliability:.0%} of the spread between questions is noise."
    )
    table = _table("Curriculum", caption, ["batch", "questions", "shrunken gain", "success"])
    rows = advice.tables["questions.parquet"].to_pylist()
    for batch in [*sorted(set(plan.batch.tolist()) - {-1}), -1]:
        own = [row for row in rows if row["batch"] == batch]
        if own:
            gains = [row["gain"] for row in own]
            name = "held back: harmed" if batch == -1 else str(batch + 1)
            span = f"{np.nanmin(gains):+.2f} to {np.nanmax(gains):+.2f}" if not np.isnan(gains).all() else "—"
            table.add_row(name, str(len(own)), span, f"{np.nanmean([row['success'] for row in own]):.2f}")
    return table


def _reinforcement(details: Details) -> Table:
    caption = (
        "Alignment: cosine with the ideal gradient. Expected: of the mean update, in the Fisher metric. Single rollouts: with the noise of updates "
        "from one response each, on the logits; a real batch lies between. Share: weight w in (1 − w) GRPO + w distillation, both averaged over "
        "tokens, with the largest predicted gain per size of the push."
    )
    table = _table("Beside reinforcement learning", caption, ["", "GRPO", "distillation", "best mix", "share of distillation"])
    for each in details.reinforcement:
        name = f"{each.loss_type}, rewards {'scaled by group' if each.scale_rewards else 'not scaled'}"
        for kind, mix in (("expected", each.expected), ("single rollouts", each.single)):
            if mix is not None:
                table.add_row(f"{name}: {kind}", *map(_markup, (mix.rl, mix.distillation, mix.mixed, mix.share)))
    return table


def _markup(estimate: Estimate | dict[str, Any], digits: int = 2) -> str:
    return estimate_text(plain(estimate), digits)
