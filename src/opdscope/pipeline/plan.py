"""What a diagnosis will cost, before anything is spent: samples, tokens, time and memory."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from opdscope.config import NULL_CONTEXTS, Config, PaperConfig, load_config
from opdscope.contexts import fill
from opdscope.core.paper import depth_windows
from opdscope.core.screening import StudentRows, compare_rows, reduce_rows
from opdscope.errors import RunDirectoryError
from opdscope.models.base import Model, Sample, SampleRequest, ScoreRequest
from opdscope.pipeline.diagnosis import ConfigSource
from opdscope.pipeline.experiment import distinct, load_models
from opdscope.pipeline.nulls import NullTeacher, RowKey
from opdscope.pipeline.rounds import Rounds
from opdscope.pipeline.scores import Array, blocks
from opdscope.pipeline.teacher_contexts import require_contexts
from opdscope.records import NullKind
from opdscope.store import Run, open_run
from opdscope.summary.looks import order_of
from opdscope.tasks import Task, load_task

_PROBE_ROWS, _PROBE_TOKENS = 64, 8
"""Size of the probe that measures speed: a few seconds for a small model."""
_PROBE_CALLS = 4
"""The fastest call counts: the first one warms up, and others may have waited for another process."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage's cost."""

    name: str
    """The stage."""
    num_samples: int
    """Responses sampled, or scored."""
    expected_tokens: int
    """Tokens generated or scored, if responses are as long as expected."""
    most_tokens: int
    """Tokens if every response reaches the length limit."""
    expected_seconds: float | None
    """Time for the expected tokens; None if speed was not measured."""


@dataclass(frozen=True)
class Plan:
    """The cost of a diagnosis."""

    stages: tuple[PlannedStage, ...]
    """In order; screening is the first three."""
    memory_bytes: float
    """Weights, key/value cache of a full batch, and the largest chunk of full-vocabulary rows."""
    memory_note: str
    """What the memory is made of."""
    length_source: str
    """Where the expected length comes from."""
    speed_source: str
    """Where the speeds come from."""
    target_source: str
    """What the cost of the target is foretold from; empty where the target decides nothing."""

    @property
    def expected_tokens(self) -> int:
        """Over all stages."""
        return sum(stage.expected_tokens for stage in self.stages)

    @property
    def most_tokens(self) -> int:
        """Over all stages."""
        return sum(stage.most_tokens for stage in self.stages)

    @property
    def expected_seconds(self) -> float | None:
        """Over all stages; None if speed was not measured."""
        seconds = [stage.expected_seconds for stage in self.stages if stage.expected_seconds is not None]
        return sum(seconds) if seconds else None


@dataclass(frozen=True)
class _Speeds:
    """Tokens per second."""

    sampling: dict[str, float]
    """By role: `student` and every teacher."""
    scoring: float
    """Of one token through student, all teachers and nulls."""


def make_plan(config: ConfigSource, *, run_dir: str | Path | None = None, overrides: Sequence[str] = (), measure: bool = True) -> Plan:
    """What `diagnose` would cost from the beginning. Nothing is sampled for the result and nothing is written.

    Args:
        config: As for :func:`opdscope.screen`.
        run_dir: A run of the same configuration to take the mean response length from; `runs/NAME` if not given.
        overrides: `key=value` pairs that change the configuration.
        measure: Measure the speed of sampling and scoring with a probe of a few seconds.

    Raises:
        OpdscopeError: As `diagnose` would, for a configuration, question set or model that cannot be used.
    """
    settings = load_config(config, overrides)
    task = load_task(settings.task)
    require_contexts(settings, task, settings.prompt or task.prompt_format)
    return plan_with(settings, task, *load_models(settings), run_dir=run_dir, measure=measure)


def plan_with(
    config: Config, task: Task, student: Model, teachers: dict[str, Model], *, run_dir: str | Path | None = None, measure: bool = True
) -> Plan:
    """As :func:`make_plan`, with questions and models that are loaded already."""
    prompt = _longest_prompt(config, task, student)
    speeds = _probe(config, student, teachers, prompt) if measure else None
    pilot = _pilot(config, Path("runs") / config.name if run_dir is None else Path(run_dir))
    length, source = _expected_length(config, pilot)
    foretold = None if pilot is None else _foretold(config, pilot)
    memory, note = _memory(config, student, teachers, len(prompt))
    stages = tuple(_stages(config, len(task.questions), length, speeds, foretold))
    how = f"a probe of {_PROBE_ROWS} × {_PROBE_TOKENS} tokens on this machine" if measure else "not measured"
    return Plan(stages, memory, note, source, how, _target_source(config, pilot, foretold))


def _stages(config: Config, num_questions: int, length: float, speeds: _Speeds | None, foretold: float | None) -> list[PlannedStage]:
    rollouts, targeted, most = config.rollouts, config.targeted, config.rollouts.max_completion_length

    def stage(name: str, samples: int, share: float, per_sample: int, speed: float | None) -> PlannedStage:
        expected = round(samples * length * share * per_sample)
        seconds = None if speed is None else expected / speed / per_sample
        return PlannedStage(name, samples, expected, samples * most * per_sample, seconds)

    ordinary = num_questions * (rollouts.num_rollouts + rollouts.num_demonstrations)
    own = num_questions * rollouts.teacher_rollouts
    sampling = None if speeds is None else speeds.sampling
    slowest = None if sampling is None else float(1.0 / np.mean([1.0 / sampling[t.name] for t in config.teachers]))
    models = 1 + len(config.teachers)
    paths = num_questions * 2 * (targeted if config.paper is None else config.paper).paths_per_outcome
    student = None if sampling is None else sampling["student"]
    scoring = None if speeds is None else speeds.scoring
    if config.target.kind == "rank":
        # what is foretold is the share of the measured rollouts that will be drawn; demonstrations are drawn in any case
        share = 1.0 if foretold is None else min(foretold / (num_questions * rollouts.num_rollouts * length), 1.0)
        measured, shown = num_questions * rollouts.num_rollouts, num_questions * rollouts.num_demonstrations
        return [
            stage("rollouts, at most", ordinary, (share * measured + shown) / ordinary, 1, student),
            stage("teacher rollouts", own * len(config.teachers), 1.0, 1, slowest),
            stage("screening, at most", measured, share, models, scoring),
        ]
    return [
        stage("rollouts", ordinary, 1.0, 1, student),
        stage("teacher rollouts", own * len(config.teachers), 1.0, 1, slowest),
        stage("screening", num_questions * rollouts.num_rollouts, 1.0, models, scoring),
        stage("nodes", paths, 1.0, models, scoring),
        *_targeted(config, _at(foretold, _continuations(config, paths, length, student), student), scoring),
    ]


def _targeted(config: Config, drawn: PlannedStage, speed: float | None) -> list[PlannedStage]:
    """Continuations, and the scoring of them where it is asked for: nulls inform nothing and are not asked."""
    if not config.targeted.score_continuations or config.paper is not None:
        return [drawn]
    models = 1 + sum(teacher.privileged_context not in NULL_CONTEXTS for teacher in config.teachers)
    seconds = None if speed is None else drawn.expected_tokens / speed
    name = drawn.name.replace("continuations", "scoring of continuations")
    return [drawn, PlannedStage(name, drawn.num_samples, drawn.expected_tokens * models, drawn.most_tokens * models, seconds)]


def _at(foretold: float | None, stage: PlannedStage, speed: float | None) -> PlannedStage:
    """The stage with the tokens that a pilot foretells."""
    if foretold is None:
        return stage
    return replace(stage, expected_tokens=round(foretold), expected_seconds=None if speed is None else foretold / speed)


def _continuations(config: Config, paths: int, length: float, speed: float | None) -> PlannedStage:
    """A node lies somewhere on its path: on average half of the response is still to come, or a third where inclusion goes by the root of that."""
    if config.paper is not None:
        return _paper_continuations(config, config.paper, paths, length, speed)
    targeted, target = config.targeted, config.target
    left = 0.5 * targeted.uniform_share + (1.0 - targeted.uniform_share) / 3.0 if targeted.include_by_cost else 0.5
    nodes, per_sample = paths * targeted.nodes_per_path, max(length * left, 1.0)
    if target.kind == "each_node":
        samples = nodes * targeted.continuations_per_node
        most, name = samples * config.rollouts.max_completion_length, "continuations"
    else:
        # the pilot is drawn in any case; a map without a budget is known only once the pilot is
        strata = nodes * (targeted.max_candidates + 1)
        upper = strata * targeted.max_continuations * config.rollouts.max_completion_length
        pilot = strata * targeted.min_continuations * config.rollouts.max_completion_length
        most = upper if target.tokens is None else min(upper, max(pilot, target.tokens))
        in_time = np.inf if target.seconds is None or speed is None else target.seconds * speed
        samples = round(min(strata * targeted.max_continuations, (target.tokens or np.inf) / per_sample, in_time / per_sample))
        name = "continuations, at most"
    expected = round(samples * per_sample)
    return PlannedStage(name, samples, expected, most, None if speed is None else expected / speed)


def _paper_continuations(config: Config, paper: PaperConfig, paths: int, length: float, speed: float | None) -> PlannedStage:
    """An upper bound: what teachers or rules choose together, and visits that ordinary rollouts bring, are known only afterwards."""
    per_window = (paper.top_gradient + paper.top_difference) * len(config.teachers) * paper.visits * paths

    def samples_and_tokens(response_length: int) -> tuple[int, int]:
        windows = depth_windows(response_length, paper.first_window)
        left = response_length - np.arange(response_length)  # tokens still to come at each position, equal shares for every window
        return per_window * len(np.unique(windows)), sum(round(per_window * float(np.mean(left[windows == w]))) for w in np.unique(windows))

    samples, expected = samples_and_tokens(max(1, round(length)))
    _, most = samples_and_tokens(config.rollouts.max_completion_length)
    return PlannedStage("continuations, at most", samples, expected, most, None if speed is None else expected / speed)


def _longest_prompt(config: Config, task: Task, student: Model) -> tuple[int, ...]:
    prompts = config.prompt or task.prompt_format
    question = max(task.questions, key=lambda q: len(q.text))
    return student.render_prompt(fill(prompts.plain, question=question.text), prompts.system)[1]


def _probe(config: Config, student: Model, teachers: dict[str, Model], prompt: tuple[int, ...]) -> _Speeds:
    rows = min(_PROBE_ROWS, config.engine.max_rows)
    sampling: dict[int, float] = {}
    drawn: dict[int, list[Sample]] = {}
    for model in distinct([student, *(teachers.values() if config.rollouts.teacher_rollouts else ())]):
        request = SampleRequest(prompt, len(prompt), (), tuple(range(rows)), _PROBE_TOKENS)
        sampler = model.sampler(rows)
        times: list[float] = []
        for _ in range(_PROBE_CALLS):
            started = time.perf_counter()
            (drawn[id(model)],) = sampler.sample([request], config.rollouts.temperature)
            times.append(time.perf_counter() - started)
        sampling[id(model)] = sum(len(sample.token_ids) for sample in drawn[id(model)]) / min(times)
    speeds = {"student": sampling[id(student)]}
    speeds |= {name: sampling.get(id(model), sampling[id(student)]) for name, model in teachers.items()}
    return _Speeds(speeds, _probe_scoring(config, student, teachers, prompt, drawn[id(student)]))


def _probe_scoring(config: Config, student: Model, teachers: dict[str, Model], prompt: tuple[int, ...], samples: list[Sample]) -> float:
    """Tokens a second, each read by student and teachers and reduced for every teacher, null and objective."""
    requests = [ScoreRequest(prompt, sample.token_ids, tuple(range(len(sample.token_ids)))) for sample in samples]
    temperature = config.rollouts.temperature
    started = time.perf_counter()
    tempered = NullTeacher("", NullKind.TEMPERED, 0.8, 0)
    real = sum(teacher.privileged_context not in NULL_CONTEXTS for teacher in config.teachers)
    nulls = [tempered] * (len(config.nulls.temperatures) + real) + [NullTeacher("", NullKind.RANDOM_LOGITS, 0.5, 0)]
    own, *others = [model.scorer().encode(requests) for model in [student, *teachers.values()]]
    for start in range(0, own.num_rows, config.engine.chunk_rows):
        stop = min(start + config.engine.chunk_rows, own.num_rows)
        rows = own.logprobs(start, stop, temperature)
        for block in blocks(rows):
            keys = [RowKey("", 0, position) for position in range(block.start, block.stop)]
            _reduce(config, rows[block], (null.rows(rows[block], keys) for null in nulls))
        for encoding in others:
            theirs = encoding.logprobs(start, stop, temperature)
            for block in blocks(rows):
                _reduce(config, rows[block], [theirs[block]])
    return own.num_rows / (time.perf_counter() - started)


def _reduce(config: Config, student_logprobs: Array, others: Iterable[Array]) -> None:
    student, taken = StudentRows.of(student_logprobs), student_logprobs.argmax(-1)
    for logprobs in others:
        compare_rows(student, logprobs)
        for objective in config.objectives:
            reduce_rows(student, logprobs, taken, objective)


def _pilot(config: Config, run_dir: Path) -> Run | None:
    """A run whose rollouts and continuations are worth the same as this configuration's: only what is asked for, and how much, may differ."""
    try:
        run = open_run(run_dir)
    except RunDirectoryError:
        return None  # there is no such run yet: the usual case
    mine, theirs = config.identity(), run.config.identity()
    for identity in (mine, theirs):
        identity.pop("target")
        identity["rollouts"].pop("num_rollouts")
    return run if mine == theirs and run.table("rollouts").num_rows > 0 else None


def _expected_length(config: Config, pilot: Run | None) -> tuple[float, str]:
    if pilot is None:
        return config.rollouts.max_completion_length / 2, "half of max_completion_length, for want of rollouts"
    lengths = [len(row) for row in pilot.table("rollouts")["token_ids"].to_pylist()]
    return float(np.mean(lengths)), f"mean of the {len(lengths):,} rollouts in {pilot.path}"


def _foretold(config: Config, pilot: Run) -> float | None:
    """Tokens that the target is foretold to take of the stage that it decides about; None where the pilot does not say."""
    if config.target.kind == "each_node":
        return None
    if config.target.kind != "rank":
        return Rounds(pilot, config).foretold_tokens() if pilot.table("continuations").num_rows > 0 else None
    order = order_of(pilot.tables(), config)
    if order is None or order.rollouts > min(_scored(pilot).values(), default=0):
        return None
    rows = pilot.table("rollouts").select(["token_ids"]).to_pylist()
    return order.foretell() * len(_scored(pilot)) * float(np.mean([len(row["token_ids"]) for row in rows]))


def _scored(run: Run) -> dict[str, int]:
    """Measured rollouts of each question that are scored."""
    scored = run.table("student_positions")["question_id"].to_pylist()
    return {question_id: scored.count(question_id) for question_id in run.table("questions")["question_id"].to_pylist()}


def _target_source(config: Config, pilot: Run | None, foretold: float | None) -> str:
    if config.target.kind == "each_node":
        return ""
    if pilot is None or foretold is None:
        first = "first look" if config.target.kind == "rank" else "pilot"
        return (
            f"not foretold, for want of a pilot: start the run, stop it after its {first} (Ctrl-C; what is stored is not drawn again), and plan once "
            "more; or give --run-dir a run of the same models and questions"
        )
    if config.targeted.score_continuations and config.target.kind != "rank" and pilot.table("continuation_scores").num_rows == 0:
        return f"foretold from what {pilot.path} holds, as if without controls: its continuations are not scored"
    return f"foretold from what {pilot.path} holds"


def _memory(config: Config, student: Model, teachers: dict[str, Model], prompt: int) -> tuple[float, str]:
    models = distinct([student, *teachers.values()])
    weights = sum(model.weight_bytes for model in models)
    cache = student.cache_bytes_per_token * (config.engine.max_rows * config.rollouts.max_completion_length + prompt)
    # student and teacher rows, their probabilities and about six intermediates of the same size
    chunk = 10 * 4 * config.engine.chunk_rows * student.vocab_size
    note = f"weights {weights / 1e9:.1f}, key/value cache {cache / 1e9:.1f}, full-vocabulary rows {chunk / 1e9:.1f}, libraries 0.5"
    return weights + cache + chunk + 0.5e9, note
