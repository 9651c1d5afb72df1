"""The recipe: what a trainer reads. One YAML file with the decisions, and two Parquet tables beside it with the weights.

A recipe belongs to a tokenizer: weights were measured on its tokens, and a context's text was rendered for it. It is refused by any other.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from opdscope.core.divergences import split_objective
from opdscope.core.schedule import Schedule

RECIPE_VERSION = 1
"""Raised whenever the meaning or layout of a recipe changes."""

RECIPE_FILE, QUESTIONS_FILE, TOKEN_WEIGHTS_FILE = "recipe.yaml", "questions.parquet", "token_weights.parquet"
"""Names of the three files in a recipe's directory."""

TokenFeature = Literal["depth", "entropy", "divergence"]
"""What a token's weight may depend on; each is known before the token is taken, else the weighted loss would have another expectation.

depth: position in the response, from 0. entropy: the student's, in nats. divergence: that of the recipe's objective between student and teacher, in
nats, as the trainer's loss computes it at that position (for `forward_kl` KL(teacher ‖ student), for `reverse_kl` KL(student ‖ teacher))."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Number(_Strict):
    """A number that rests on samples."""

    value: float | None
    """Point estimate; None if undefined."""
    low: float | None
    """Lower end of the interval; None if undefined."""
    high: float | None
    """Upper end."""


class ModelStamp(_Strict):
    """Which model a recipe was made with."""

    model_name_or_path: str
    """As the configuration named it."""
    fingerprint: str | None
    """Hex SHA-256 over weights and configuration; None where the run did not record one."""
    tokenizer_hash: str | None
    """Hex SHA-256 over token-to-id map and special token ids."""


class TeacherStamp(ModelStamp):
    """Which teacher: model and context."""

    name: str
    """How the diagnosis called it."""
    self_distillation: bool
    """True if its model is the student's own weights."""
    privileged_context: str
    """What it is shown besides the question."""
    prompt: str
    """Template of its user turn, with `{question}` and the context's parts to be filled in."""
    system: str | None
    """Its system turn, if any."""
    gain_over_null: Number
    """In success per unit step, summed over a response, for the objective it is used with."""
    verdict: str
    """What the diagnosis says of it."""


class ScheduleSettings(_Strict):
    """Parameters of :func:`opdscope.core.schedule.distillation_weight`."""

    start_success: float
    start_gain: float
    ceiling: float = 1.0
    maximum: float = 1.0
    minimum: float = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> "ScheduleSettings":
        self.build()
        return self

    def build(self) -> Schedule:
        """The schedule that the weight is computed from."""
        return Schedule(**self.model_dump())


class OutcomeWeights(_Strict):
    """Weight of the tokens of a response by its outcome; 1 for all where no difference is shown."""

    correct: float = Field(default=1.0, ge=0)
    incorrect: float = Field(default=1.0, ge=0)
    truncated: float = Field(default=1.0, ge=0)
    unverifiable: float = Field(default=1.0, ge=0)


class Weighting(_Strict):
    """Whether weights of one kind are used, and what they were seen to bring on data that they were not fitted to."""

    use: bool
    """True only where the held-out improvement excludes zero."""
    improvement: Number
    """Held-out gain per size of the push with the weights minus without them, relative to the latter where that is positive."""
    reason: str
    """One sentence."""


class TokenWeighting(Weighting):
    """Weights by bins of one feature of a token; the bins are in `token_weights.parquet`."""

    feature: TokenFeature | None
    """Which feature; None if no weights are used."""


class Recipe(_Strict):
    """What was decided, from which diagnosis, and for whom."""

    version: Literal[1] = RECIPE_VERSION
    """Version of this layout."""
    opdscope: str
    """Version of the package that wrote it."""
    run: str
    """Name of the diagnosis."""
    kind: Literal["distil", "sharpen", "none", "not enough data"]
    """distil: use the teacher. sharpen: no teacher is shown to beat the student at a lower temperature. none: no teacher helps. not enough data:
    the intervals still allow both."""
    text: str
    """The verdict in a sentence or two."""
    confidence: float
    """Level of every interval."""
    student: ModelStamp
    """The policy that is trained."""
    teacher: TeacherStamp | None
    """The one to use; None unless `kind` is distil."""
    alternatives: tuple[TeacherStamp, ...] = ()
    """The others that help, best first: what a rule may switch to."""
    objective: str | None
    """`reverse_kl`, `forward_kl` or `generalized_jsd(BETA)`; None unless `kind` is distil."""
    criterion: Literal["gain", "gain_per_push"]
    """What the choice was made by: gain (plain gradient steps) or gain per size of the push (Adam and clipped gradients)."""
    temperature: float = Field(gt=0)
    """Sampling temperature of the policy, and of both softmaxes."""
    max_completion_length: int = Field(ge=1)
    """Most tokens in a response."""
    null: str | None = None
    """Name of the null that the teacher had to beat."""
    null_factor: float = 0.0
    """What its signal was scaled by, so that it pushed as hard as the teacher."""
    schedule: ScheduleSettings | None
    """Of the distillation weight; None unless `kind` is distil."""
    outcome_weights: OutcomeWeights = OutcomeWeights()
    """By outcome class; all 1 unless `outcome_weighting.use`."""
    outcome_weighting: Weighting
    """Evidence for them."""
    token_weighting: TokenWeighting
    """Evidence for the bins of the table."""
    question_weighting: Weighting
    """Evidence for the column `weight` of `questions.parquet`, which is 1 throughout unless `use`."""
    order_reliability: float | None
    """Rank correlation that the curriculum's order is expected to have with the true one, in [-1, 1]; None if there is no order."""
    files: dict[str, str]
    """Hex SHA-256 of each table beside this file."""

    @property
    def beta(self) -> float | None:
        """TRL's `beta` of the objective: 0 forward KL, 1 reverse KL."""
        if self.objective is None:
            return None
        base, beta = split_objective(self.objective)
        return {"forward_kl": 0.0, "reverse_kl": 1.0}.get(base, beta)

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        parts = {"teacher": self.teacher, "objective": self.objective, "schedule": self.schedule}
        wrong = [name for name, part in parts.items() if (part is None) == (self.kind == "distil")]
        if wrong:
            state = "missing from" if self.kind == "distil" else "of no use in"
            raise ValueError(f"{' and '.join(wrong)}: {state} a recipe whose kind is {self.kind!r}")
        return self
