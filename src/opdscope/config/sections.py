"""The sections of the configuration; every default is the recommended experiment. Unknown keys are refused."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from opdscope.config.paper import PaperConfig, fill_preset
from opdscope.config.target import TargetConfig
from opdscope.config.teachers import DEMONSTRATED_CONTEXTS, PromptFormat, TeacherConfig
from opdscope.core.divergences import check_objective

RANDOM_LOGITS = "random logits"
"""Name of the null teacher that pushes at random."""


def same_entropy_name(teacher: str) -> str:
    """Name of the null teacher that has a teacher's entropy and none of its knowledge."""
    return f"{teacher}: its entropy"


DEFAULT_ANSWER_PATTERN = r"(?im)^(?!.*\\boxed)\W*answer\W*?:\s*(.+?)[^\w)\]}]*$|\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
"""A line `Answer: …` that holds no box, or `\\boxed{…}` with braces up to two deep inside."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Strict):
    """A causal language model: local directory, hub name, GGUF file, or `embedded:NAME` for one that ships with the package."""

    model_name_or_path: str
    """Where the model is."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the probabilities. bfloat16 shifts a token's log-probability by 0.07–0.23 and is treated as noise, not as truth."""
    revision: str | None = None
    """Hub revision."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""


class NullsConfig(_Strict):
    """Teachers that know nothing about the question: the student at another temperature.

    Besides these two, every diagnosis has the student at each real teacher's entropy, and random logits at their mean divergence.
    """

    sharpened: float = Field(default=0.8, gt=0, lt=1)
    """Temperature of the sharpened student."""
    flattened: float = Field(default=1.25, gt=1)
    """Temperature of the flattened student."""

    @property
    def temperatures(self) -> dict[str, float]:
        """Temperature by the null teacher's name."""
        return {"sharpened": self.sharpened, "flattened": self.flattened}


class EmbeddedTaskConfig(_Strict):
    """The two tasks that the package ships models for, with worked steps as chain of thought."""

    kind: Literal["chain", "addition"]
    """chain: 3–6 operations modulo 10; addition: two numbers of 2–5 digits, digit by digit with carries."""
    num_questions: int = Field(default=32, ge=1)
    """How many questions."""
    seed: int = 0
    """Which questions."""


class ReasoningGymTaskConfig(_Strict):
    """Questions and the scorer of a reasoning-gym generator."""

    kind: Literal["reasoning_gym"]
    """Fixed."""
    dataset: str
    """Name of the generator, for example `chain_sum`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the generator, as reasoning-gym names them."""
    num_questions: int = Field(default=32, ge=1)
    """How many questions."""
    seed: int = 0
    """Which questions."""
    answer_pattern: str = DEFAULT_ANSWER_PATTERN
    """Regular expression that finds the final answer in a response; the last match is scored, by its first group that is not empty.
    The default knows lines `Answer: …` and `\\boxed{…}`."""


class JsonlTaskConfig(_Strict):
    """Questions from a file with one JSON object a line."""

    kind: Literal["jsonl"]
    """Fixed."""
    path: Path
    """The file."""
    question_field: str = "question"
    """Key of the question's text."""
    answer_field: str = "answer"
    """Key of the answer."""
    solution_field: str | None = None
    """Key of a worked solution, for teachers with `privileged_context: reference_solution`."""
    verifier: Literal["exact", "numeric", "math", "python"] = "numeric"
    """exact: equal after trimming; numeric: equal as numbers; math: math-verify's symbolic comparison; python: `verifier_function`."""
    verifier_function: str | None = None
    """With `verifier: python`: import path `module:function` of your own function (response, answer, fields) → True, False, or None where it
    cannot tell. `fields` is the question's line as a dict; the module is looked for on PYTHONPATH and in the working directory."""
    answer_pattern: str | None = DEFAULT_ANSWER_PATTERN
    """Regular expression that finds the final answer (last match, first group that is not empty); None gives the verifier the whole response."""
    num_questions: int | None = Field(default=None, ge=1)
    """Take the first so many; None takes all."""

    @model_validator(mode="after")
    def _function_of_its_own(self) -> "JsonlTaskConfig":
        if (self.verifier == "python") != (self.verifier_function is not None):
            raise ValueError(
                "verifier: python and verifier_function (an import path module:function) belong together; give both or neither"
            )
        return self


class ExactTaskConfig(_Strict):
    """A world in which success and gains are known: for checking estimators, and for learning what they can do.

    Its models are `exact:itself` (the student), `exact:good`, `exact:fair`, `exact:weak`, `exact:harmful`, `exact:stylistic`,
    `exact:random`, `exact:sharpened` and `exact:flattened`.
    """

    kind: Literal["exact"]
    """Fixed."""
    world: Literal["reasoning", "tree"] = "reasoning"
    """reasoning: long chains that are sound or in error; tree: short responses, where every prefix has a student and a success of its own."""
    num_questions: int = Field(default=32, ge=1)
    """How many questions."""
    length: int = Field(default=60, ge=1)
    """World reasoning: tokens before the answer."""
    spacing: int = Field(default=6, ge=1)
    """World reasoning: every so many tokens a chain can slip or be repaired."""
    depth: int = Field(default=4, ge=1, le=5)
    """World tree: letters before the answer; each one more makes the tree four times as large."""
    seed: int = 0
    """Of questions and teachers."""

    @model_validator(mode="after")
    def _settings_of_the_world(self) -> "ExactTaskConfig":
        settings = {"reasoning": ("length", "spacing"), "tree": ("depth",)}
        own = settings.pop(self.world)
        # by value and not by what was typed: the configuration that a run stores spells every default out
        for name in (name for names in settings.values() for name in names):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"world {self.world!r} has no {name}; remove it (what this world has is called {' and '.join(own)})")
        return self


TaskConfig = Annotated[EmbeddedTaskConfig | ExactTaskConfig | ReasoningGymTaskConfig | JsonlTaskConfig, Field(discriminator="kind")]


class RolloutsConfig(_Strict):
    """The student's ordinary rollouts: screening uses them all, paths are drawn from them."""

    num_rollouts: int = Field(default=16, ge=2)
    """Measured rollouts a question; two are the least that a leave-one-out baseline needs."""
    num_demonstrations: int = Field(default=4, ge=0)
    """Further rollouts a question, from which solution contexts are taken; they are never measured (else the context leaks)."""
    teacher_rollouts: int = Field(default=0, ge=0)
    """Rollouts a question by each teacher, for the accuracy gap (a cheap rival of the gain); 0 leaves it out."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the policy; student and teacher logits are divided by it in every p and q."""
    max_completion_length: int = Field(default=256, ge=1)
    """Most tokens in a response; longer ones are cut and count as TRUNCATED, which is not success."""


class TargetedConfig(_Strict):
    """Targeted rollouts: which paths, nodes and candidates, and how many continuations."""

    paths_per_outcome: int = Field(default=2, ge=1)
    """Paths a question from its correct rollouts, and as many from its incorrect ones, as far as there are any."""
    nodes_per_path: int = Field(default=6, ge=1)
    """Nodes drawn on each path with known inclusion probabilities."""
    uniform_share: float = Field(default=0.25, gt=0, le=1)
    """Share of the inclusion probability that is spread evenly, so that no node has probability zero."""
    include_by_range: bool = True
    """Draw nodes where ordinary rollouts say that outcomes are settled, besides where teachers push; off: where the student is free and teachers
    push."""
    include_by_cost: bool = True
    """Draw later nodes more often than earlier ones, as their continuations are shorter: the least variance for a number of tokens, not of nodes."""
    max_candidates: int = Field(default=6, ge=1)
    """Most tokens measured one by one at a node; the rest of the student's distribution is the tail stratum."""
    min_candidate_prob: float = Field(default=0.01, gt=0, lt=1)
    """A token is a candidate if the student or a teacher gives it at least this probability."""
    continuations_per_node: int = Field(default=32, ge=2)
    """Continuations a node, shared out over its strata; with `target.kind` tokens, map or split the target decides instead."""
    min_continuations: int = Field(default=3, ge=2)
    """Least continuations of a stratum that is sampled at all; with `target.kind` tokens, map or split they are the pilot."""
    max_continuations: int = Field(default=200, ge=2)
    """Most continuations of a stratum with `target.kind` tokens, map or split."""
    min_tail_prob: float = Field(default=0.002, ge=0, lt=1)
    """A tail stratum lighter than this is not sampled; its mass is reported and its success keeps the prior's uncertainty."""
    neyman_allocation: bool = True
    """Share continuations out by what they tell: more to a stratum that weighs more, and with `target.kind` tokens, map or split more where outcomes
    are foretold to vary and continuations are short. False gives the same number to every stratum, as simple scripts do; the pilot or
    `min_continuations` is the least in either case."""
    common_random_numbers: bool = False
    """Let the continuations of a node after different candidates draw with the same random numbers: candidates then differ by what they are and
    less by luck. The intervals know of it. Worth most where a token changes little of what follows; it can cost precision where it changes much."""
    antithetic: bool = False
    """Draw continuations of a candidate in pairs, the second with one minus the random numbers of the first, so that luck cancels within a pair.
    Neither has an effect under `protocol: paper`."""
    score_continuations: bool = False
    """Let student and teachers read every continuation, and lower the noise of its outcome by what the teachers' log-ratios say of its luck, without
    bias. It costs a scoring pass over every continuation and is worth as much as they foretell of outcomes: for teachers that know the answer. A
    run may be resumed with another value: what is stored is then scored, and nothing drawn again. Rounds that are planned while it is on count on
    it: a map then takes fewer continuations. No effect under `protocol: paper`."""
    temperature: float | None = Field(default=None, gt=0)
    """Sampling temperature of continuations. It must equal the rollouts'; leave it out."""

    @model_validator(mode="after")
    def _pilot_is_allowed(self) -> "TargetedConfig":
        if self.min_continuations > self.max_continuations:
            raise ValueError(
                f"min_continuations is {self.min_continuations} but max_continuations is {self.max_continuations}: "
                "the least must not exceed the most"
            )
        return self


class EngineConfig(_Strict):
    """How the work is done. Nothing here changes what is measured, and a run may be resumed with other values."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    max_rows: int = Field(default=256, ge=1)
    """Most continuations decoded at once."""
    chunk_rows: int = Field(default=256, ge=1)
    """Full-vocabulary rows held at once by the scorer; fewer for less memory."""
    verifier_workers: int = Field(default=2, ge=1)
    """Processes that verify responses."""
    verifier_deadline_seconds: float = Field(default=10.0, gt=0)
    """A verification that takes longer is UNVERIFIABLE."""


class AnalysisConfig(_Strict):
    """How stored results become numbers; may be changed without sampling again."""

    confidence: float = Field(default=0.9, gt=0, lt=1)
    """Level of every interval."""
    num_draws: int = Field(default=400, ge=100)
    """Posterior draws a node."""
    back_up: bool = True
    """Let the later nodes of a path inform the success of its tokens at the earlier ones; no effect under `protocol: paper`."""
    control_variates: bool = True
    """Lower the noise of screening gains by the teachers' own log-ratios, without bias and without another model pass; worth as much as they know
    of the outcome."""
    fitted_values: bool = False
    """Screen with the success foretold before each token, from other questions' rollouts, in place of the question's own share; without bias.
    Worth as much as entropy, depth and the teachers' log-odds foretell of the outcome; where the values differ little it can cost precision."""
    smallest_gain: float = Field(default=0.05, ge=0)
    """Least gain over null, in success per unit step, that would be of use: a teacher whose interval lies below it does not help."""


class Config(_Strict):
    """One diagnosis."""

    version: Literal[1] = 1
    """Version of this file's layout."""
    name: str = Field(default="diagnosis", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run directory: `runs/NAME`."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything that is drawn."""
    student: ModelConfig
    """The policy that would be trained."""
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    """The candidates."""
    nulls: NullsConfig = NullsConfig()
    """The student flattened and sharpened, part of every diagnosis."""
    task: TaskConfig
    """Questions and verifier."""
    prompt: PromptFormat | None = None
    """Wording of the prompts; None takes the task's own."""
    objectives: tuple[str, ...] = Field(default=("reverse_kl", "forward_kl"), min_length=1)
    """`reverse_kl`, `forward_kl` or `generalized_jsd(BETA)` with 0 < BETA < 1 (0 = forward KL, 1 = reverse KL, the TRL convention).
    The first one makes the ranking."""
    rollouts: RolloutsConfig = RolloutsConfig()
    """Ordinary rollouts."""
    targeted: TargetedConfig = TargetedConfig()
    """Targeted rollouts."""
    target: TargetConfig = TargetConfig()
    """What is asked for, and so when it may stop."""
    protocol: Literal["default", "paper"] = "default"
    """How targeted rollouts are placed and counted: `paper` repeats the source paper, biases included, and says beside each of its numbers
    what a sound analysis of the same run says."""
    paper: PaperConfig | None = None
    """Settings of `protocol: paper`; None with any other protocol."""
    engine: EngineConfig = EngineConfig()
    """Machine settings."""
    analysis: AnalysisConfig = AnalysisConfig()
    """Statistics settings."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        return fill_preset(data)

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            check_objective(name)
        if len(set(names)) != len(names):
            raise ValueError("an objective is listed twice")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        names = [teacher.name for teacher in self.teachers]
        taken = {*self.nulls.temperatures, RANDOM_LOGITS, *map(same_entropy_name, names)} & set(names)
        if taken:
            raise ValueError(f"teachers: {sorted(taken)[0]!r} is the name of a null teacher; choose another name")
        if len(set(names)) != len(names):
            raise ValueError(f"teachers: the name {next(n for n in names if names.count(n) > 1)!r} is used twice; names must differ")
        continuation = self.targeted.temperature
        if continuation is not None and continuation != self.rollouts.temperature:
            raise ValueError(
                f"targeted.temperature is {continuation:g} but rollouts.temperature is {self.rollouts.temperature:g}: continuations must "
                "be sampled from the same policy whose probabilities are differentiated; remove targeted.temperature"
            )
        needs = [t.name for t in self.teachers if t.privileged_context in DEMONSTRATED_CONTEXTS]
        if needs and self.rollouts.num_demonstrations == 0:
            raise ValueError(
                f"teacher {needs[0]!r} is shown the student's attempts, but rollouts.num_demonstrations is 0: "
                "they are taken from demonstrations, which are never measured; set it to 4 or more"
            )
        return self

    @model_validator(mode="after")
    def _one_protocol(self) -> "Config":
        if self.protocol == "default" and self.paper is not None:
            raise ValueError("paper: these settings belong to the source paper's protocol; add `protocol: paper`, or remove them")
        if self.protocol == "paper":
            if self.target.kind != "each_node":
                raise ValueError(
                    f"target: {self.target.kind!r} belongs to the default protocol; `protocol: paper` spends what the paper spends"
                )
            if self.targeted != TargetedConfig(temperature=self.targeted.temperature):
                raise ValueError("targeted: these settings belong to the default protocol; with `protocol: paper` use the section `paper`")
            if "reverse_kl" not in self.objectives:
                raise ValueError("objectives: `protocol: paper` measures reverse KL; add reverse_kl to the list")
        return self

    def identity(self) -> dict[str, Any]:
        """The part that decides the stored results; a run directory belongs to one identity."""
        analysis = {
            "engine": True,
            "analysis": True,
            "name": True,
            "paper": {"min_visits", "min_children"},
            "targeted": {"score_continuations"},
        }
        return self.model_dump(mode="json", exclude=analysis)
