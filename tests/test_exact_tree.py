"""The tree world: its dynamic programming against every leaf, its engines against its tables, and the pipeline's estimates against its truth."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

import opdscope
from opdscope.config import load_config
from opdscope.core.divergences import signal_of
from opdscope.core.randomness import derive_seed
from opdscope.core.screening import StudentRows, reduce_rows, screening_gain, teacher_pushes
from opdscope.errors import ConfigError
from opdscope.models.base import SampleRequest, ScoreRequest, require_same_vocabulary
from opdscope.models.exact import TEACHERS, ExactModel, ReasoningWorld, TreeWorld
from opdscope.models.exact.tree import FIRST_LETTER
from opdscope.models.exact.world import RIGHT, START, WRONG
from opdscope.summary.nodes import read_nodes
from opdscope.summary.paths import read_links

WORLD = TreeWorld(depth=4, seed=3)
LETTERS = range(FIRST_LETTER, len(WORLD.texts))
LEAVES = [(*letters, answer) for letters in itertools.product(LETTERS, repeat=WORLD.depth) for answer in (RIGHT, WRONG)]
STUDENT = ExactModel(WORLD, "itself")


def prompt_ids(question: int) -> tuple[int, ...]:
    return STUDENT.render_prompt(f"Q{question}:")[1]


def rows(role: str, question: int, responses: list[tuple[int, ...]]) -> np.ndarray:
    """Log-probabilities along responses, response × position × token, through the scorer."""
    positions = tuple(range(WORLD.depth + 1))
    requests = [ScoreRequest(prompt_ids(question), response, positions) for response in responses]
    encoding = ExactModel(WORLD, role).scorer().encode(requests)
    return encoding.logprobs(0, encoding.num_rows, 1.0).reshape(len(responses), len(positions), -1)


def sampled(question: int, count: int, prefix: tuple[int, ...] = (), forced: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    prompt = prompt_ids(question)
    seeds = tuple(derive_seed("test", question, index) for index in range(count))
    request = SampleRequest(prompt + prefix, len(prompt) + len(prefix), forced, seeds, WORLD.depth + 1)
    return [prefix + forced + sample.token_ids for sample in STUDENT.sampler(256).sample([request], 1.0)[0]]


def leaf_probs(question: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each leaf, and of each of its tokens, without the world's dynamic programming."""
    logprobs = np.take_along_axis(rows("itself", question, LEAVES), np.array(LEAVES)[..., None], axis=-1)[..., 0]
    return np.exp(logprobs.sum(axis=1)), np.exp(logprobs)


def test_success_and_occupancy_are_the_sums_over_all_leaves() -> None:
    probs, _ = leaf_probs(0)
    leaves, right = np.array(LEAVES), np.array(LEAVES)[:, -1] == RIGHT
    assert probs.sum() == pytest.approx(1.0, abs=1e-12)
    assert WORLD.success_rate(0) == pytest.approx(probs[right].sum(), abs=1e-12)
    success, occupancy, following = WORLD.success(0), WORLD.occupancy(0), WORLD.next_states()
    for length in range(WORLD.depth + 1):
        for prefix in itertools.product(LETTERS, repeat=length):
            state = START
            for position, token in enumerate(prefix):
                state = following[position, state, token]
            inside = np.all(leaves[:, :length] == prefix, axis=1)
            assert occupancy[length, state] == pytest.approx(probs[inside].sum(), abs=1e-12)
            for token in LETTERS if length < WORLD.depth else (RIGHT, WRONG):
                below = inside & (leaves[:, length] == token)
                assert success[length, state, token] == pytest.approx(probs[below & right].sum() / probs[below].sum(), abs=1e-12)


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl"])
def test_the_natural_gain_is_the_covariance_of_outcome_and_push_over_all_leaves(objective: str) -> None:
    """The identity behind screening, without sampling: E[R · Σ (f - mean f)] over every response is the sum of node gains."""
    question = 1
    probs, _ = leaf_probs(question)
    own, right = rows("itself", question, LEAVES), np.array(LEAVES)[:, -1] == RIGHT
    for role in TEACHERS:
        signal = signal_of(objective)(own, rows(role, question, LEAVES))
        centred = signal - np.sum(np.exp(own) * signal, axis=-1, keepdims=True)
        pushes = np.take_along_axis(centred, np.array(LEAVES)[..., None], axis=-1).sum(axis=(1, 2))
        assert np.sum(probs * right * pushes) == pytest.approx(WORLD.natural_gain(question, role, objective), abs=1e-10), role


def test_a_tilt_along_the_advantage_gains_in_proportion_to_the_variance_of_the_outcome() -> None:
    """Node by node it gains c Var(S), and along a response those variances add up to the outcome's: rate · (1 - rate)."""
    for question in range(8):
        rate = WORLD.success_rate(question)
        unit = 4.0 * rate * (1 - rate)
        for role, strength in {"good": 1.5, "fair": 0.8, "weak": 0.3, "harmful": -0.6}.items():
            assert WORLD.natural_gain(question, role, "reverse_kl") == pytest.approx(strength * unit, abs=1e-10)


def test_the_stylistic_teacher_is_far_from_the_student_and_gains_nothing_at_any_node() -> None:
    for question in range(8):
        student, teacher = WORLD.student(question), WORLD.teacher("stylistic", question)
        assert np.max(np.abs(WORLD.node_gains(question, "stylistic", "reverse_kl"))) < 1e-12
        divergence = np.sum(WORLD.occupancy(question) * np.sum(np.exp(student) * (student - teacher), axis=-1))
        closer = WORLD.teacher("weak", question)
        assert divergence > np.sum(WORLD.occupancy(question) * np.sum(np.exp(student) * (student - closer), axis=-1))


def test_some_nodes_are_nearly_deterministic_and_some_are_open() -> None:
    largest = np.exp(WORLD.student(0))[:-1].max(axis=-1)
    assert np.mean(largest > 0.95) > 0.1
    assert np.mean(largest < 0.5) > 0.1
    right = np.exp(WORLD.student(0))[-1, :, RIGHT]
    assert np.mean((right < 0.1) | (right > 0.9)) > 0.3


def test_sampled_responses_follow_the_leaves_and_forced_tokens_their_success() -> None:
    count, tail = 4000, stats.norm.ppf(1 - 5e-4)
    finished = np.array(sampled(2, count))[:, -1] == RIGHT
    rate = WORLD.success_rate(2)
    assert abs(finished.mean() - rate) < tail * np.sqrt(rate * (1 - rate) / count)
    prefix, forced = (LETTERS[1],), (LETTERS[2],)
    expected = WORLD.success(2)[1, WORLD.next_states()[0, START, LETTERS[1]], LETTERS[2]]
    finished = np.array(sampled(2, count, prefix, forced))[:, -1] == RIGHT
    assert abs(finished.mean() - expected) < tail * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl"])
def test_screening_is_unbiased_for_every_teacher(objective: str) -> None:
    """200 groups of 20 rollouts on one question; the mean of the groups' estimates lies within 4 standard errors of the exact gain."""
    question, groups, size = 5, 200, 20
    responses = sampled(question, groups * size)
    outcomes = np.array([float(response[-1] == RIGHT) for response in responses])
    taken = np.array(responses).ravel()
    flat = (len(taken), len(WORLD.texts))
    own = StudentRows.of(rows("itself", question, responses).reshape(flat))
    for name in ("good", "harmful", "stylistic", "random", "sharpened"):
        signal = reduce_rows(own, rows(name, question, responses).reshape(flat), taken, objective).taken_signal
        pushes = teacher_pushes(signal, np.full(len(responses), len(taken) // len(responses)))
        estimates = [screening_gain(outcomes[s : s + size], pushes[s : s + size]) for s in range(0, len(responses), size)]
        error = np.std(estimates, ddof=1) / np.sqrt(groups)
        assert abs(np.mean(estimates) - WORLD.natural_gain(question, name, objective)) < 4 * error, name


CONFIG: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "teachers": [{"name": name, "teacher_model_name_or_path": f"exact:{name}"} for name in ("good", "weak", "harmful", "stylistic")],
    "task": {"kind": "exact", "world": "tree", "num_questions": 24, "seed": 3},
    "rollouts": {"num_rollouts": 24, "num_demonstrations": 0, "max_completion_length": 8},
    "targeted": {"paths_per_outcome": 1, "nodes_per_path": 3, "continuations_per_node": 32},
}


def test_backing_up_agrees_with_the_truth_and_with_leaving_it_out(tmp_path: Any) -> None:
    run = opdscope.diagnose({**CONFIG, "targeted": {**CONFIG["targeted"], "nodes_per_path": 4}}, run_dir=tmp_path / "run")
    tables = run.tables()

    def targeted(back_up: bool) -> dict[str, dict[str, float]]:
        analysis = run.config.analysis.model_copy(update={"back_up": back_up})
        data = opdscope.summarize(tables, run.config.model_copy(update={"analysis": analysis})).data
        return {t["name"]: t["targeted"]["all"]["natural_gain"] for t in data["teachers"] if t["name"] in TEACHERS}

    on, off = targeted(True), targeted(False)
    for name in on:
        exact = np.mean([WORLD.natural_gain(question, name, "reverse_kl") for question in range(24)])
        for found in (on[name], off[name]):
            assert abs(found["value"] - exact) < 4 * found["standard_error"], name
        # same paths and nodes: they differ by less than they err
        assert 0 < abs(on[name]["value"] - off[name]["value"]) < on[name]["standard_error"], name


def test_links_and_stored_log_probabilities_are_the_worlds(tmp_path: Any) -> None:
    run = opdscope.diagnose({**CONFIG, "targeted": {**CONFIG["targeted"], "nodes_per_path": 2}}, run_dir=tmp_path / "run")
    tables = run.tables()
    nodes = read_nodes(tables)
    links = read_links(tables, nodes.rows)
    responses = {(row["question_id"], row["rollout_index"]): row["token_ids"] for row in tables["rollouts"].to_pylist()}
    stored = {(row["question_id"], row["rollout_index"]): row["logprob"] for row in tables["student_positions"].to_pylist()}
    strata = {(row["node_id"], row["stratum"]): row["token_id"] for row in tables["strata"].to_pylist()}
    excess, variance, num_links = 0.0, 0.0, 0
    for i, (row, j) in enumerate(zip(nodes.rows, links.next_node, strict=True)):
        path = (row["question_id"], row["rollout_index"])
        response = responses[path]
        taken = np.array(response)[:, None]
        question = int(path[0].rsplit("-", 1)[1])
        logprobs = np.take_along_axis(rows("itself", question, [tuple(response)])[0], taken, axis=-1)[:, 0]
        np.testing.assert_allclose(stored[path], logprobs, rtol=1e-6)  # float32
        if j < 0:
            continue
        following = nodes.rows[j]
        assert (following["question_id"], following["rollout_index"]) == path
        assert strata[row["node_id"], int(links.stratum[i])] == response[row["position"]]
        expected = np.exp(np.sum(logprobs[row["position"] + 1 : following["position"]]))
        assert links.stay_prob[i] == pytest.approx(expected, rel=1e-6)
        count = int(nodes.outcomes.num_verified[i, links.stratum[i]])
        excess += links.num_staying[i] - count * expected
        variance += count * expected * (1 - expected)
        num_links += 1
    assert num_links > 20
    assert variance > 0
    assert abs(excess) < 4 * np.sqrt(variance)  # a sum of binomial counts, wrong by chance once in 16,000


def test_the_worlds_do_not_share_a_vocabulary() -> None:
    with pytest.raises(opdscope.OpdscopeError, match="different vocabularies"):
        require_same_vocabulary(ExactModel(ReasoningWorld(), "itself"), STUDENT)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"length": 12}, "world 'tree' has no length; remove it"), ({"world": "reasoning", "depth": 3}, "called length and spacing")],
)
def test_settings_of_the_other_world_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config({**CONFIG, "task": {"kind": "exact", "world": "tree", **settings}})


def test_a_stored_configuration_spells_every_default_out_and_is_read_again() -> None:
    config = load_config(CONFIG)
    assert load_config(config.model_dump(mode="json")) == config
