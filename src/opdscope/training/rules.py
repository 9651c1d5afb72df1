"""Rules on the trend of a watched run: declarative, with hysteresis, each action with its reason; refused before training if one can never fire."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.stats import norm

from opdscope.errors import TrainingError

LEAST_VERIFIED = 3
"""Rollouts with an outcome in a step that is to say anything."""

SERIES = ("success", "natural_gain", "gain_over_null")
"""What conditions are about, from the free monitor."""

_SeriesName = Literal[
    "success", "natural_gain", "gain_over_null",
    "probe.success", "probe.success_change", "probe.natural_gain", "probe.gain_over_null", "probe.advantage",
]  # fmt: skip
"""Those and the probe set's: `success_change` is against the student before training, paired question by question; `advantage` is the teacher
advantage of a token (docs/metrics.md)."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LowerWeight(_Strict):
    """Multiply the distillation weight."""

    action: Literal["lower_weight"]
    """Fixed."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """By this."""
    floor: float = Field(default=0.0, ge=0)
    """Never below."""


class RaiseWeight(_Strict):
    """Take the distillation weight up again: the other half of the hysteresis of :class:`LowerWeight`."""

    action: Literal["raise_weight"]
    """Fixed."""
    factor: float = Field(default=2.0, gt=1)
    """By this."""
    ceiling: float = Field(default=1.0, gt=0)
    """Never above."""


class Switch(_Strict):
    """Go to the next context or objective of the lists that the callback was given, best first."""

    action: Literal["switch_context", "switch_objective"]
    """Which of the two."""


class Stop(_Strict):
    """End training after this step; the best checkpoint is kept."""

    action: Literal["stop"]
    """Fixed."""


Action = Annotated[LowerWeight | RaiseWeight | Switch | Stop, Field(discriminator="action")]


class Rule(_Strict):
    """If an end of a series' interval lies beyond a level for some evaluations in a row, do something."""

    name: str = Field(min_length=1)
    """How it is called in the log."""
    series: _SeriesName
    """What is looked at."""
    bound: Literal["lower", "upper"] = "upper"
    """Which end of the interval: `upper` with `below` and `lower` with `above` are sure at the level of confidence."""
    below: float | None = None
    """Holds where the bound lies below this."""
    above: float | None = None
    """Holds where the bound lies above this."""
    falls_by: float | None = Field(default=None, ge=0)
    """Holds where the upper end lies more than this below the highest lower end so far: fallen beyond noise."""
    evaluations: int = Field(default=3, ge=1)
    """So many in a row."""
    then: Action
    """What is done."""
    cooldown: int = Field(default=5, ge=0)
    """Evaluations after an action in which the rule is not looked at: time for the action to show."""
    most: int = Field(default=8, ge=1)
    """Most times that it acts."""

    @model_validator(mode="after")
    def _one_condition(self) -> "Rule":
        given = [name for name in ("below", "above", "falls_by") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"rule {self.name!r}: give exactly one of below, above and falls_by, found {given or 'none'}")
        if self.falls_by is not None and self.bound != "upper":
            raise ValueError(f"rule {self.name!r}: falls_by compares the upper bound; leave bound out")
        return self


class RulesConfig(_Strict):
    """A file of rules."""

    rules: tuple[Rule, ...] = Field(min_length=1)
    """In order; of those that hold at one evaluation the first one acts."""
    every: int = Field(default=10, ge=1)
    """Optimizer steps between evaluations."""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    """Level of the intervals."""
    least_rollouts: int = Field(default=200, ge=0)
    """No rule is looked at before so many rollouts were seen since the beginning or the last switch."""
    dry: bool = False
    """Only report what would be done."""


@dataclass(frozen=True)
class Situation:
    """What rules can work with in a run."""

    max_steps: int
    """Optimizer steps of the run."""
    rollouts_per_step: float
    """Rollouts that the monitor sees in one."""
    has_monitor: bool
    """Whether the free monitor has rows to read."""
    has_outcomes: bool
    """Whether responses are verified."""
    probe_every: int | None
    """Steps between probes; None without a probe set."""
    probes: tuple[str, str]
    """What the first probe measures, and the others (:data:`opdscope.training.probe.Measure`)."""
    can_weigh: bool
    """Whether the trainer has a distillation weight."""
    distillation_weight: float
    """What it is now."""
    num_contexts: int
    """Alternatives to the present context."""
    num_objectives: int
    """Alternatives to the present objective."""


def load_rules(source: str | Path | Mapping[str, Any] | RulesConfig) -> RulesConfig:
    """Rules from a YAML file or a mapping.

    Raises:
        TrainingError: If the file cannot be read or holds something else.
    """
    if isinstance(source, RulesConfig):
        return source
    name = "rules" if isinstance(source, Mapping) else str(source)
    try:
        data = source if isinstance(source, Mapping) else yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        return RulesConfig.model_validate(data)
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{name}: cannot read the rules: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise TrainingError(f"{name}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


def check_rules(config: RulesConfig, situation: Situation) -> None:
    """Refuse rules of which one can never fire in this run.

    Raises:
        TrainingError: With the rule, and why.
    """
    lowers = any(isinstance(rule.then, LowerWeight) for rule in config.rules)
    for rule in config.rules:
        reason = _never(rule, config, situation) or (None if lowers else _never_raised(rule, situation))
        if reason is not None:
            raise TrainingError(f"rule {rule.name!r} can never fire: {reason}")


def _never(rule: Rule, config: RulesConfig, situation: Situation) -> str | None:
    return _never_seen(rule, config, situation) or _never_true(rule) or _never_done(rule, situation)


def _never_seen(rule: Rule, config: RulesConfig, situation: Situation) -> str | None:
    """Because its series does not exist, or the run is over before it has been looked at often enough."""
    probed = rule.series.startswith("probe.")
    if probed and situation.probe_every is None:
        return f"{rule.series} needs a probe set, and there is none"
    if probed:
        return _never_probed(rule, config, situation)
    if not situation.has_monitor:
        return f"{rule.series} needs a trainer that shows its rollouts, such as MonitoredDistillationTrainer"
    if not situation.has_outcomes:
        return f"{rule.series} needs outcomes, and the trainer has no reward function"
    if situation.rollouts_per_step < LEAST_VERIFIED:
        return f"a step needs {LEAST_VERIFIED} rollouts to say anything, and there are {situation.rollouts_per_step:g} in one"
    first = config.least_rollouts / situation.rollouts_per_step
    evaluations = int((situation.max_steps - first) // config.every)
    if evaluations < rule.evaluations:
        return (
            f"it wants {rule.evaluations} evaluations, one every {config.every} steps, and the {situation.max_steps} steps of this run "
            f"leave {max(evaluations, 0)}"
        )
    return None


_SHOWS = {
    "success": {"success", "success_change"},
    "gains": {"success", "success_change", "natural_gain", "gain_over_null"},
    "targeted": {"success", "success_change", "natural_gain", "gain_over_null", "advantage"},
}
"""Series of a probe by what it measures."""


def _never_probed(rule: Rule, config: RulesConfig, situation: Situation) -> str | None:
    """Because no probe, or too few of them, measure its series."""
    name = rule.series.removeprefix("probe.")
    first, others = (name in _SHOWS[measure] for measure in situation.probes)
    interval = max(config.every, situation.probe_every or 0)
    probes = int(first) + int(others) * (situation.max_steps // interval)
    if probes >= rule.evaluations:
        return None
    if not first and not others:
        least = next(measure for measure, shown in _SHOWS.items() if name in shown)
        return f"{rule.series} needs probes that measure {least!r}, and these measure {situation.probes[1]!r}"
    return f"it wants {rule.evaluations} evaluations, and {probes} probes of this run measure {rule.series}"


def _never_true(rule: Rule) -> str | None:
    if rule.series == "probe.success_change":
        level = rule.below if rule.below is not None else None if rule.above is None else -rule.above
        return None if level is None or level > -1 else "a success rate changes by less than 1"
    if not rule.series.endswith("success"):
        return None
    if rule.below is not None and rule.below <= 0:
        return f"a success rate is never below {rule.below:g}"
    if rule.above is not None and rule.above >= 1:
        return f"a success rate is never above {rule.above:g}"
    return f"a success rate cannot fall by {rule.falls_by:g}" if rule.falls_by is not None and rule.falls_by >= 1 else None


def _never_done(rule: Rule, situation: Situation) -> str | None:
    match rule.then:
        case LowerWeight() | RaiseWeight() if not situation.can_weigh:
            return "this trainer has no distillation weight"
        case LowerWeight(floor=floor):
            if situation.distillation_weight <= floor:
                return f"the distillation weight {situation.distillation_weight:g} is not above the floor {floor:g}"
        case Switch(action="switch_context") if situation.num_contexts == 0:
            return "there is no other context; give the callback `contexts`"
        case Switch(action="switch_objective") if situation.num_objectives == 0:
            return "there is no other objective; give the callback `objectives`"
        case _:
            pass
    return None


def _never_raised(rule: Rule, situation: Situation) -> str | None:
    """Because the weight is as high as the rule takes it, and nothing lowers it."""
    if not isinstance(rule.then, RaiseWeight) or situation.distillation_weight < rule.then.ceiling:
        return None
    return (
        f"the distillation weight {situation.distillation_weight:g} is not below the ceiling {rule.then.ceiling:g}, and no rule lowers it"
    )


@dataclass(frozen=True)
class Decision:
    """A rule that acts."""

    rule: Rule
    """Which."""
    reason: str
    """The numbers that made it."""


@dataclass
class RuleBook:
    """Rules with their memory; :meth:`decide` is called once an evaluation."""

    config: RulesConfig
    """The rules."""
    _held: dict[str, int] = field(default_factory=dict[str, int])
    _resting: dict[str, int] = field(default_factory=dict[str, int])
    _acted: dict[str, int] = field(default_factory=dict[str, int])
    _highest: dict[str, float] = field(default_factory=dict[str, float])

    def decide(self, series: Mapping[str, tuple[float, float]]) -> Decision | None:
        """The first rule that has held for long enough.

        Args:
            series: Mean and standard error by name; a series that is missing or not finite leaves its rules where they were.
        """
        half = float(norm.ppf(0.5 + self.config.confidence / 2))
        intervals = {
            name: (mean - half * error, mean + half * error) for name, (mean, error) in series.items() if abs(mean) + error < 1e300
        }
        found = [rule for rule in self.config.rules if self._holds(rule, intervals)]
        for name, (low, _) in intervals.items():
            self._highest[name] = max(self._highest.get(name, low), low)
        if not found:
            return None
        rule = found[0]
        self._resting[rule.name], self._held[rule.name] = rule.cooldown, 0
        self._acted[rule.name] = self._acted.get(rule.name, 0) + 1
        return Decision(rule, self._reason(rule, intervals[rule.series]))

    def take_up(self, acted: Mapping[str, int]) -> None:
        """Go on from how often each rule has acted."""
        self._acted = dict(acted)

    def forget(self, names: Sequence[str]) -> None:
        """Start these series anew, because what they are about has changed."""
        for name in names:
            self._highest.pop(name, None)
        for rule in self.config.rules:
            if rule.series in names:
                self._held[rule.name] = 0

    def _holds(self, rule: Rule, intervals: Mapping[str, tuple[float, float]]) -> bool:
        if rule.series not in intervals or self._acted.get(rule.name, 0) >= rule.most:
            return False
        if self._resting.get(rule.name, 0) > 0:
            self._resting[rule.name] -= 1
            return False
        low, high = intervals[rule.series]
        bound = low if rule.bound == "lower" else high
        level = rule.below if rule.falls_by is None else self._highest.get(rule.series, -1e300) - rule.falls_by
        beyond = bound > rule.above if rule.above is not None else level is not None and bound < level
        self._held[rule.name] = self._held.get(rule.name, 0) + 1 if beyond else 0
        return self._held[rule.name] >= rule.evaluations

    def _reason(self, rule: Rule, interval: tuple[float, float]) -> str:
        low, high = interval
        if rule.falls_by is not None:
            what = f"fell more than {rule.falls_by:g} below its best, {self._highest[rule.series]:.4g}"
        else:
            what = f"{rule.bound} end below {rule.below:g}" if rule.below is not None else f"{rule.bound} end above {rule.above:g}"
        times = "at this evaluation" if rule.evaluations == 1 else f"at {rule.evaluations} evaluations in a row"
        return f"{rule.series} [{low:.4g}, {high:.4g}]: {what} {times}"
