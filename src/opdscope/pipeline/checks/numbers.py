"""The numbers themselves: the same ones again, zero where nothing is to be learned, and an engine that draws from what is scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device, to_device

from opdscope.core.randomness import derive_seed
from opdscope.core.screening import StudentRows, compare_rows, of_tokens, reduce_rows
from opdscope.models.base import Model, Sample, SampleRequest, ScoreRequest
from opdscope.pipeline.checks.lines import CheckLine, State, graded
from opdscope.pipeline.checks.prompts import teacher_prompts_of
from opdscope.pipeline.checks.setup import Setup
from opdscope.pipeline.experiment import distinct
from opdscope.pipeline.scores import to_numpy
from opdscope.records import Question

_QUESTIONS, _SAMPLES = 4, 4
"""Questions that are tried, spread evenly, and responses to each."""

_ROUNDING, _HALF = 1e-3, 0.5
"""Nats. float32 rounds a log-probability by 1e-5; bfloat16 shifts it by up to 0.25. What is beyond both is no rounding."""

_SAME, _FAR = 1e-6, 3.0
"""Mean divergence in nats a token below which a teacher is the student, and above which it reads another prompt or is another kind of model."""

_HALF_PRECISION = "use dtype: float32 if there is memory for it; treat smaller differences than this as noise"


@dataclass(frozen=True)
class _Rows:
    """Student rows at every position of the probe's responses, taken in one order."""

    logprobs: np.ndarray
    """Of the tokens that were drawn, in the order of the samples."""
    largest_signal: float
    """Largest push, on one drawn token, of the second pass as teacher of the first, over objectives."""
    kl: float
    """Mean KL of the two passes."""


def draw_probe(setup: Setup, probe_tokens: int) -> dict[str, list[Sample]]:
    """A few short responses of the student by question, as a run would draw them."""
    questions = probe_questions(setup)
    limit = min(probe_tokens, setup.config.rollouts.max_completion_length)
    requests: list[SampleRequest] = []
    for question in questions:
        prompt = setup.student_prompt(question)[1]
        seeds = tuple(derive_seed(setup.config.seed, "check", question.question_id, index) for index in range(_SAMPLES))
        requests.append(SampleRequest(prompt, len(prompt), (), seeds, limit))
    drawn = setup.student.sampler(setup.config.engine.max_rows).sample(requests, setup.config.rollouts.temperature)
    return {question.question_id: samples for question, samples in zip(questions, drawn, strict=True)}


def probe_questions(setup: Setup) -> list[Question]:
    """Evenly spread over the task, the first one among them."""
    questions = setup.task.questions
    return [questions[i] for i in sorted({k * len(questions) // _QUESTIONS for k in range(_QUESTIONS)})]


def check_numbers(setup: Setup, samples: Mapping[str, Sequence[Sample]]) -> list[CheckLine]:
    """Drift, determinism, zero, and each teacher's distance from the student."""
    prompts = {q.question_id: setup.student_prompt(q)[1] for q in probe_questions(setup)}
    flat = [(name, sample) for name, drawn in samples.items() for sample in drawn if sample.token_ids]
    requests = [ScoreRequest(prompts[name], s.token_ids, tuple(range(len(s.token_ids)))) for name, s in flat]
    if not requests:
        return [CheckLine("numbers", State.FAIL, "the student drew no token", "look at the prompt and at rollouts.max_completion_length")]
    student = _compare_with_itself(setup, requests)
    lines = [_drift([s for _, s in flat], student.logprobs), *_determinism(setup, requests), _zero(student)]
    others = {name: model for name, model in setup.teachers.items() if model is not setup.student}
    own = {q.question_id: teacher_prompts_of(setup, q) for q in probe_questions(setup)} if others else {}
    for name, model in others.items():
        theirs = [
            ScoreRequest(own[q][name], request.response_ids, request.positions) for (q, _), request in zip(flat, requests, strict=True)
        ]
        lines.append(_distance(setup, name, model, requests, theirs))
    return lines


def _drift(samples: Sequence[Sample], scored: np.ndarray) -> CheckLine:
    """The engine's log-probability of the tokens it drew, against the scorer's."""
    title = "sampler against scorer"
    told = [s.logprobs for s in samples if s.logprobs is not None]
    if len(told) < len(samples):
        return CheckLine(title, State.WARN, "the engine does not tell its log-probabilities", "hold a few rollouts against another engine")
    difference = np.abs(np.concatenate(told) - scored)
    value = f"log-probabilities of {len(scored):,} drawn tokens differ by {difference.max():.2g} nats at most, {difference.mean():.2g} on average"
    remedy = "the engine draws from another distribution than is scored: look at its temperature, top-k, top-p and weights"
    return graded(title, float(difference.max()), value, _ROUNDING, _HALF, remedy if difference.max() > _HALF else _HALF_PRECISION)


def _determinism(setup: Setup, requests: Sequence[ScoreRequest]) -> list[CheckLine]:
    """Each model twice on the same batch, and once with every response by itself."""
    lines: list[CheckLine] = []
    for model in distinct([setup.student, *setup.teachers.values()]):
        first, again = (_taken(setup, model, requests) for _ in range(2))
        alone = np.concatenate([_taken(setup, model, [request]) for request in requests])
        repeated, apart = float(np.abs(first - again).max()), float(np.abs(first - alone).max())
        name = "student" if model is setup.student else next(key for key, value in setup.teachers.items() if value is model)
        value = f"the same pass twice differs by {repeated:.2g} nats, a response alone and in a batch by {apart:.2g}"
        remedy = "switch off what is random in the model (dropout, sampling of experts) and kernels that are not deterministic"
        worst = repeated if repeated > 0.1 * _ROUNDING else apart
        line = graded(f"scorer of {name}", worst, value, _ROUNDING, _HALF, remedy if worst == repeated else _HALF_PRECISION)
        lines.append(line)
    return lines


def _zero(student: _Rows) -> CheckLine:
    value = f"the student as its own teacher: KL {abs(student.kl):.1g} nats a token, largest push on a token {student.largest_signal:.1g}"
    remedy = "numbers of this size are noise here: use dtype: float32, or a scorer that repeats itself"
    return graded("teacher = student", max(abs(student.kl), student.largest_signal), value, _ROUNDING, _HALF, remedy)


def _distance(setup: Setup, name: str, model: Model, requests: Sequence[ScoreRequest], theirs: Sequence[ScoreRequest]) -> CheckLine:
    """How far a teacher's model is from the student's on the same tokens; a mismatch of templates shows here as well."""
    kl = _divergence(setup, model, requests, theirs)
    first = np.cumsum([0, *(len(r.positions) for r in requests)])[:-1]
    value = f"KL {kl.mean():.3g} nats a token, {kl[first].mean():.3g} at the first one"
    title = f"distance of {name}"
    if kl.mean() < _SAME:
        return CheckLine(title, State.WARN, value, "this teacher says what the student says: choose another one")
    if kl.mean() > _FAR:
        remedy = "compare the rendered prompts below: a chat model read with a bare prompt, or another kind of model, is that far away"
        return CheckLine(title, State.WARN, value, remedy)
    return CheckLine(title, State.PASS, value)


def _divergence(setup: Setup, model: Model, requests: Sequence[ScoreRequest], theirs: Sequence[ScoreRequest]) -> np.ndarray:
    own, other = setup.student.scorer().encode(requests), model.scorer().encode(theirs)
    found: list[np.ndarray] = []
    for start, stop in _chunks(setup, own.num_rows):
        student = own.logprobs(start, stop, setup.config.rollouts.temperature)
        rows = to_device(other.logprobs(start, stop, setup.config.rollouts.temperature), device(student))
        found.append(to_numpy(compare_rows(StudentRows.of(student), rows).reverse_kl))
    return np.concatenate(found)


def _taken(setup: Setup, model: Model, requests: Sequence[ScoreRequest]) -> np.ndarray:
    """Log-probability of every response token."""
    encoding = model.scorer().encode(requests)
    ids = _drawn(requests)
    found: list[np.ndarray] = []
    for start, stop in _chunks(setup, encoding.num_rows):
        rows = encoding.logprobs(start, stop, setup.config.rollouts.temperature)
        found.append(to_numpy(of_tokens(rows, array_namespace(rows).asarray(ids[start:stop], device=device(rows)))))
    return np.concatenate(found)


def _compare_with_itself(setup: Setup, requests: Sequence[ScoreRequest]) -> _Rows:
    """One pass as student, another with the responses in reverse order as its teacher, reduced as screening does."""
    first, second = setup.student.scorer().encode(requests), setup.student.scorer().encode(list(reversed(requests)))
    sizes, temperature = [len(r.positions) for r in requests], setup.config.rollouts.temperature
    ends = np.cumsum(sizes[::-1])[::-1]
    ids, taken, kl, largest, start = _drawn(requests), [], [], 0.0, 0
    for size, end in zip(sizes, ends.tolist(), strict=True):
        rows, again = first.logprobs(start, start + size, temperature), second.logprobs(end - size, end, temperature)
        student, own = StudentRows.of(rows), array_namespace(rows).asarray(ids[start : start + size], device=device(rows))
        taken.append(to_numpy(of_tokens(rows, own)))
        kl.append(to_numpy(compare_rows(student, again).reverse_kl))
        for objective in setup.config.objectives:
            largest = max(largest, float(np.abs(to_numpy(reduce_rows(student, again, own, objective).taken_signal)).max()))
        start += size
    return _Rows(np.concatenate(taken), largest, float(np.concatenate(kl).mean()))


def _drawn(requests: Sequence[ScoreRequest]) -> np.ndarray:
    return np.array([token for request in requests for token in request.response_ids], dtype=np.int64)


def _chunks(setup: Setup, num_rows: int) -> list[tuple[int, int]]:
    size = setup.config.engine.chunk_rows
    return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
