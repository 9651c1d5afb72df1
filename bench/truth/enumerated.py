"""Targeted rollouts of a real network, against its own responses enumerated."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from page import Section, fixed
from targeted import OBJECTIVE, PER_NODE, WIDTH, make_config

from opdscope.config import Config
from opdscope.core.alignment import alignment_score, gain, natural_alignment, natural_gain, teacher_advantage
from opdscope.core.divergences import signal_of
from opdscope.core.gradients import distillation_gradient
from opdscope.core.nulls import tempered
from opdscope.core.randomness import derive_seed, generator
from opdscope.core.sampling import Candidates, allocate_continuations, choose_candidates
from opdscope.core.success import StratumOutcomes
from opdscope.models.base import SampleRequest, ScoreRequest
from opdscope.models.enumeration import EnumeratedNode, enumerate_success
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers import LanguageModel, load_language_model
from opdscope.pipeline.strata import stratum_signals
from opdscope.records import Outcome
from opdscope.summary.measures import NodeMeasures, measure_nodes
from opdscope.summary.nodes import NodeArrays, node_posterior
from opdscope.tasks.base import VerifierSpec
from opdscope.tasks.chain import CHAIN
from opdscope.tasks.verifiers import build_verifier

STUDENT = "chain-student-weak"
OTHERS = ("chain-teacher", "chain-student-strong")
TEACHERS = (*OTHERS, "sharpened")
CONTINUATIONS = 32


@dataclass(frozen=True)
class _Node:
    """A node with everything that is known of it for certain, and one row of log-probabilities a teacher."""

    question: str
    prompt: tuple[int, ...]
    prefix: tuple[int, ...]
    max_length: int
    truth: EnumeratedNode
    teachers: dict[str, np.ndarray]

    @property
    def success(self) -> np.ndarray:
        """Middle of the bounds."""
        return 0.5 * (self.truth.success_low + self.truth.success_high)


def study(num_nodes: int, repetitions: int) -> Section:
    """Intervals of repeated measurements of some nodes, and how often they hold the enumerated truth."""
    student = load_language_model(resolve_model(f"embedded:{STUDENT}"), device="cpu")
    others = {name: load_language_model(resolve_model(f"embedded:{name}"), device="cpu") for name in OTHERS}
    nodes = _find_nodes(student, others, num_nodes)
    rows: list[dict[str, Any]] = []
    strata: list[dict[str, np.ndarray]] = []
    signals: list[dict[str, Any]] = []
    for node in nodes:
        book, templates = _measured(student, node, repetitions)
        for repetition, outcomes in enumerate(book):
            node_id = f"{node.question}/{repetition}"
            rows.append({"node_id": node_id, "question_id": node.question, "inclusion": 1.0, "path_inclusion": 1.0})
            strata.append(outcomes)
            signals += [{"node_id": node_id, **template} for template in templates]
    stacked = {name: np.array([s[name] for s in strata]) for name in strata[0]}
    outcomes = StratumOutcomes(stacked["num_correct"], stacked["num_verified"], stacked["terminal"])
    nodes_of_all, config = NodeArrays(rows, stacked["probs"], stacked["squared"], stacked["is_tail"], outcomes), make_config()
    runs = [_run(nodes_of_all, signals, np.arange(num_nodes) * repetitions + k, config) for k in range(repetitions)]
    table: list[list[Any]] = []
    checks: list[tuple[str, bool]] = []
    for k, teacher in enumerate(TEACHERS):
        for name in PER_NODE:
            exact = np.array([_exact(node, teacher)[name] for node in nodes])[:, None]
            value, low, high = np.stack([getattr(run[k], name) for run in runs], axis=1).transpose(2, 0, 1)
            miss = np.maximum(low - exact, exact - high)
            means = (fixed(float(v), 4) for v in (exact.mean(), value.mean()))
            table.append([teacher, name.replace("_", " "), *means, f"{np.mean(miss <= 0):.1%}", fixed(float(np.median(miss[miss > 0])), 4)])
            if name in ("gain", "natural_gain", "advantage"):
                error = np.sqrt(np.mean(np.var(value, axis=1)) / value.size)
                slack = np.mean([_slack(node, teacher)[name] for node in nodes])
                met = abs(value.mean() - exact.mean()) < 4 * error + slack
                label = f"{teacher}: the mean {name.replace('_', ' ')} is the enumerated one"
                checks.append((f"{label} within 4 errors and what the bounds and the tail leave open", bool(met)))
    residual = max(node.truth.residual for node in nodes)
    text = (
        f"`embedded:{STUDENT}`, a trained network, at {num_nodes} nodes of its task, in {repetitions} runs that measure each of them once with "
        f"{CONTINUATIONS} sampled continuations. Truth: all responses from the node on, enumerated over the full vocabulary; at most "
        f"{residual:.4f} of the probability is left out, and counts half. Where success at a token goes another "
        "way than the teacher's signal and the other tokens let expect, within the tail most of all, the prior that intervals of cosines rest on "
        "is wrong. Cosines lie near 1 at nearly all of these nodes; *miss* is the median distance of the intervals that do not hold the truth."
    )
    columns = ["teacher", "number", "enumerated", "mean estimate", "coverage at 90 %", "miss"]
    return Section("Nodes of a real network, enumerated", text, columns, table, checks)


def _run(nodes: NodeArrays, signals: list[dict[str, Any]], index: np.ndarray, config: Config) -> list[NodeMeasures]:
    """The summary's numbers of a run of these nodes, teachers in order."""
    own = NodeArrays(
        [nodes.rows[i] for i in index], nodes.probs[index], nodes.squared_probs[index], nodes.is_tail[index], nodes.outcomes.at(index)
    )
    templates = [signals[i * len(TEACHERS) + k] for i in index for k in range(len(TEACHERS))]
    return measure_nodes({"node_signals": pa.Table.from_pylist(templates)}, own, node_posterior({}, own, config), config)


def _find_nodes(student: LanguageModel, others: dict[str, LanguageModel], count: int) -> list[_Node]:
    """Nodes before the last result but one of three, at which the student is not certain to succeed or to fail."""
    source, verify = generator("truth", "enumerated"), build_verifier(VerifierSpec(kind="final_answer"))
    found: list[_Node] = []
    while len(found) < count:
        question = CHAIN.draw_question(source)
        worked, answer = CHAIN.worked_solution(question), CHAIN.answer(question)
        if worked.count("=") != 3 or any(node.question == question for node in found):
            continue
        prefix = tuple(student.token_to_id[character] for character in worked[: worked.rindex("=", 0, worked.rindex("=")) + 1])
        prompt = tuple(student.render_prompt(f"Q{question}:")[1])
        max_length = len(worked) + 4  # room for the end of sequence and three tokens more

        def is_correct(token_ids: Any, answer: str = answer) -> bool:
            return verify(student.decode(token_ids), answer, "{}") == Outcome.CORRECT

        node = enumerate_success(student, prompt, prefix, is_correct, max_length=max_length, min_prob=1e-6)
        if 0.1 < node.value_low < 0.9:
            rows = {name: _row(model, model.render_prompt(f"Q{question}:")[1], prefix) for name, model in others.items()}
            rows["sharpened"] = tempered(np.log(node.probs), 0.8)
            found.append(_Node(question, prompt, prefix, max_length, node, rows))
    return found


def _row(model: LanguageModel, prompt: Any, prefix: tuple[int, ...]) -> np.ndarray:
    encoding = model.scorer().encode([ScoreRequest(tuple(prompt), (*prefix, 0), (len(prefix),))])
    row = np.asarray(encoding.logprobs(0, 1, 1.0), dtype=np.float64)[0]
    return row - np.log(np.sum(np.exp(row)))


def _measured(student: LanguageModel, node: _Node, repetitions: int) -> tuple[list[dict[str, np.ndarray]], list[dict[str, Any]]]:
    """Outcomes of every measurement by stratum, and each teacher's signals."""
    settings, probs = make_config().targeted, node.truth.probs
    candidates, tail = _split(node)
    share = np.append(candidates.share, max(1.0 - float(candidates.share.sum()), 0.0))
    counts = allocate_continuations(share, CONTINUATIONS, settings.min_continuations, np.append(candidates.share > 0, tail.sum() > 0))
    drawn = generator("truth", "tail", node.question).choice(len(probs), size=repetitions * int(counts[-1]), p=tail / tail.sum())
    forced = [np.repeat(token, repetitions * count) for token, count in zip(candidates.token_ids, counts[:-1], strict=True)]
    correct = [_outcomes(student, node, tokens, k).reshape(repetitions, -1).sum(axis=1) for k, tokens in enumerate([*forced, drawn])]
    fixed_columns = {
        "probs": np.append(probs[candidates.token_ids], tail.sum()),
        "squared": np.append(probs[candidates.token_ids] ** 2, np.sum(tail**2)),
        "is_tail": np.arange(len(counts)) == len(counts) - 1,
        "num_verified": counts,
        "terminal": np.full(len(counts), np.nan),
    }
    padding = {"terminal": np.nan}
    books = [
        {
            name: np.pad(values, (0, WIDTH - len(values)), constant_values=padding.get(name, 0))
            for name, values in {**fixed_columns, "num_correct": right}.items()
        }
        for right in np.stack(correct, axis=-1)
    ]
    templates = [
        {"teacher": name, "objective": OBJECTIVE, **stratum_signals(np.log(probs), row, OBJECTIVE, candidates.token_ids, tail)}
        for name, row in node.teachers.items()
    ]
    return books, templates


def _split(node: _Node) -> tuple[Candidates, np.ndarray]:
    """Candidates, and the student's distribution without them."""
    settings, probs = make_config().targeted, node.truth.probs
    teachers = np.exp(np.array(list(node.teachers.values())))
    candidates = choose_candidates(probs, teachers, settings.max_candidates, settings.min_candidate_prob)
    tail = probs.copy()
    tail[candidates.token_ids] = 0.0
    return candidates, tail


def _outcomes(student: LanguageModel, node: _Node, tokens: np.ndarray, stratum: int) -> np.ndarray:
    """1 where a continuation that was forced through its token is correct."""
    verify, answer = build_verifier(VerifierSpec(kind="final_answer")), CHAIN.answer(node.question)
    result, start = np.zeros(len(tokens)), node.prompt + node.prefix
    for token in np.unique(tokens).tolist():
        places = np.flatnonzero(tokens == token)
        whole = (*node.prefix, int(token))
        seeds = tuple(derive_seed("enumerated", node.question, stratum, int(place)) for place in places)
        if token in student.eos_token_ids:
            result[places] = verify(student.decode(whole), answer, "{}") == Outcome.CORRECT
            continue
        request = SampleRequest(start, len(start), (int(token),), seeds, node.max_length - len(whole))
        [samples] = student.sampler(512).sample([request], 1.0)
        result[places] = [
            sample.finished and verify(student.decode((*whole, *sample.token_ids)), answer, "{}") == Outcome.CORRECT for sample in samples
        ]
    return result


def _exact(node: _Node, teacher: str) -> dict[str, float]:
    student, row, success = np.log(node.truth.probs), node.teachers[teacher], node.success
    signal, gradient = signal_of(OBJECTIVE)(student, row), distillation_gradient(student, row, OBJECTIVE)
    probs = node.truth.probs
    spread = np.sum(probs * (signal - np.sum(probs * signal)) ** 2)
    return {
        "score": float(alignment_score(student, probs**2, gradient, np.sum(gradient**2), success)),
        "natural_alignment": float(natural_alignment(student, signal, spread, success)),
        "gain": float(gain(student, gradient, success)),
        "natural_gain": float(natural_gain(student, signal, success)),
        "advantage": float(teacher_advantage(student, np.exp(row), success)),
    }


def _slack(node: _Node, teacher: str) -> dict[str, float]:
    """How far the expectation of each linear estimate may be from :func:`_exact`: half the width of the bounds, and one signal for the whole tail."""
    student, row, probs, (_, tail) = np.log(node.truth.probs), node.teachers[teacher], node.truth.probs, _split(node)
    signal, gradient = signal_of(OBJECTIVE)(student, row), distillation_gradient(student, row, OBJECTIVE)
    half = 0.5 * (node.truth.success_high - node.truth.success_low)
    coefficients = {
        "natural_gain": probs * (signal - np.sum(probs * signal)),
        "gain": probs * (gradient - np.sum(probs * gradient)),
        "advantage": np.exp(row) - probs,
    }
    found: dict[str, float] = {}
    for name, own in coefficients.items():
        within = np.where(tail > 0, own - tail * np.sum(own[tail > 0]) / tail.sum(), 0.0)
        found[name] = float(np.sum(np.abs(own) * half) + np.sum(np.abs(within) * node.success))
    return found
