"""The exact world: its dynamic programming against simulation, its engines against its tables, and the pipeline's estimates against its truth."""

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

import opdscope
from opdscope.config import Config
from opdscope.core.randomness import derive_seed
from opdscope.core.screening import StudentRows, reduce_rows, screening_gain, teacher_pushes
from opdscope.errors import ModelError
from opdscope.models.base import SampleRequest, ScoreRequest
from opdscope.models.exact import TEACHERS, ExactModel, ReasoningWorld, TreeWorld, World, load_exact
from opdscope.models.exact.reasoning import IN_ERROR, SOUND, STEP
from opdscope.models.exact.world import RIGHT

WORLD = ReasoningWorld(length=24, spacing=4, seed=3)


def sampled(
    model: ExactModel, question: int, count: int, forced: tuple[int, ...] = (), prefix: tuple[int, ...] = ()
) -> list[tuple[int, ...]]:
    _, prompt = model.render_prompt(f"Q{question}:")
    seeds = tuple(derive_seed("test", question, index) for index in range(count))
    request = SampleRequest(prompt + prefix, len(prompt) + len(prefix), forced, seeds, WORLD.length + 1)
    return [sample.token_ids for sample in model.sampler(256).sample([request], 1.0)[0]]


def test_success_and_occupancy_agree_with_simulation() -> None:
    student, count = ExactModel(WORLD, "itself"), 4000
    responses = np.array(sampled(student, 0, count))
    rate, tail = WORLD.success_rate(0), stats.norm.ppf(1 - 5e-4)
    assert abs(np.mean(responses[:, -1] == RIGHT) - rate) < tail * np.sqrt(rate * (1 - rate) / count)
    following = WORLD.next_states()
    states = np.full(count, SOUND)
    for position in range(WORLD.length):
        states = following[position, states, responses[:, position]]
    share = WORLD.occupancy(0)[WORLD.length, IN_ERROR]
    assert abs(np.mean(states == IN_ERROR) - share) < tail * np.sqrt(share * (1 - share) / count)


def test_success_of_a_forced_token_agrees_with_simulation() -> None:
    critical, count = 3, 4000
    prefix = (5,) * critical  # stylistic tokens up to the first critical position
    finished = sampled(ExactModel(WORLD, "itself"), 1, count, forced=(STEP,), prefix=prefix)
    expected = WORLD.success(1)[critical, SOUND, STEP]
    error = np.sqrt(expected * (1 - expected) / count)
    assert abs(np.mean([response[-1] == RIGHT for response in finished]) - expected) < stats.norm.ppf(1 - 5e-4) * error


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl"])
def test_total_natural_gain_is_the_derivative_of_the_success_rate_along_the_natural_path(objective: str) -> None:
    class Moved(ReasoningWorld):
        """The student moved a little towards the teacher: geometrically for reverse KL, as a mixture for forward KL."""

        eta = 0.0

        def student(self, question: int) -> np.ndarray:
            own, other = ReasoningWorld.student(self, question), TEACHERS["fair"](ReasoningWorld(24, 4, 3), question)
            if objective == "forward_kl":
                return np.log((1 - self.eta) * np.exp(own) + self.eta * np.exp(other))
            path = (1 - self.eta) * own + self.eta * other
            return path - np.log(np.sum(np.exp(path), axis=-1, keepdims=True))

    rates = []
    for eta in (-1e-4, 1e-4):
        Moved.eta = eta
        rates.append(Moved(24, 4, 3).success_rate(2))
    # central difference: error of order eta² = 1e-8
    assert (rates[1] - rates[0]) / 2e-4 == pytest.approx(WORLD.natural_gain(2, "fair", objective), rel=1e-5)


def test_a_teacher_that_is_the_student_or_only_speaks_otherwise_gains_nothing() -> None:
    for question in range(3):
        for objective in ("reverse_kl", "forward_kl"):
            assert abs(WORLD.natural_gain(question, "itself", objective)) < 1e-15
            assert abs(WORLD.natural_gain(question, "stylistic", objective)) < 1e-12
            assert WORLD.natural_gain(question, "good", objective) > WORLD.natural_gain(question, "weak", objective) > 0
            assert WORLD.natural_gain(question, "harmful", objective) < 0


def test_scored_rows_are_the_tables_rows() -> None:
    teacher = ExactModel(WORLD, "good")
    _, prompt = teacher.render_prompt("Q4:")
    (response,) = sampled(ExactModel(WORLD, "itself"), 4, 1)
    rows = teacher.scorer().encode([ScoreRequest(prompt, response, tuple(range(len(response))))]).logprobs(0, len(response), 1.0)
    state, table, following = SOUND, WORLD.teacher("good", 4), WORLD.next_states()
    for position, token in enumerate(response):
        np.testing.assert_array_equal(rows[position], table[position, state])
        state = following[position, state, token]


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl"])
def test_screening_is_unbiased_for_every_teacher(objective: str) -> None:
    """200 groups of 20 rollouts on one question; the mean of the groups' estimates lies within 4 standard errors of the exact gain."""
    question, groups, size = 5, 200, 20
    student = ExactModel(WORLD, "itself")
    responses = sampled(student, question, groups * size)
    outcomes = np.array([float(response[-1] == RIGHT) for response in responses])
    _, prompt = student.render_prompt(f"Q{question}:")
    requests = [ScoreRequest(prompt, response, tuple(range(len(response)))) for response in responses]
    taken = np.array(responses).ravel()
    own = StudentRows.of(student.scorer().encode(requests).logprobs(0, len(taken), 1.0))
    for name in ("good", "harmful", "stylistic", "random", "sharpened"):
        rows = ExactModel(WORLD, name).scorer().encode(requests).logprobs(0, len(taken), 1.0)
        signals = reduce_rows(own, rows, taken, objective).taken_signal
        pushes = teacher_pushes(signals, np.full(len(responses), len(taken) // len(responses)))
        estimates = [screening_gain(outcomes[s : s + size], pushes[s : s + size]) for s in range(0, len(responses), size)]
        error = np.std(estimates, ddof=1) / np.sqrt(groups)
        assert abs(np.mean(estimates) - WORLD.natural_gain(question, name, objective)) < 4 * error, name


CONFIG: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "teachers": [{"name": name, "teacher_model_name_or_path": f"exact:{name}"} for name in ("good", "weak", "harmful", "stylistic")],
    "task": {"kind": "exact", "num_questions": 24, "length": 24, "spacing": 4, "seed": 3},
    "rollouts": {"num_rollouts": 24, "num_demonstrations": 0, "max_completion_length": 32},
    "targeted": {"paths_per_outcome": 1, "nodes_per_path": 4, "continuations_per_node": 48},
}


TREE: dict[str, Any] = {
    **CONFIG,
    "task": {"kind": "exact", "world": "tree", "num_questions": 24, "seed": 3},
    "targeted": {"paths_per_outcome": 1, "nodes_per_path": 3, "continuations_per_node": 32},
}


@pytest.mark.parametrize(("config", "world"), [(CONFIG, WORLD), (TREE, TreeWorld(seed=3))], ids=["chains", "tree"])
def test_the_whole_pipeline_finds_the_known_order_and_its_intervals_hold_the_truth(
    config: dict[str, Any], world: World, tmp_path: Any
) -> None:
    run = opdscope.diagnose(config, run_dir=tmp_path / "run")
    data = json.loads(opdscope.summarize(run.tables(), run.config, run.times()).to_json())
    order = [teacher["name"] for teacher in data["teachers"] if teacher["name"] in ("good", "weak", "harmful")]
    assert order == ["good", "weak", "harmful"]
    for teacher in data["teachers"]:
        if teacher["name"] not in TEACHERS:
            continue
        exact = np.mean([world.natural_gain(question, teacher["name"], "reverse_kl") for question in range(24)])
        found = teacher["natural_gain"]
        # the interval is at 90 % and over questions; widened to four standard errors, seven comparisons hold together
        reach = 4 / stats.t.ppf(0.95, 23)
        assert abs(found["value"] - exact) < reach * (found["high"] - found["low"]) / 2, teacher["name"]


def test_stored_strata_hold_the_worlds_probabilities(tmp_path: Any) -> None:
    run = opdscope.diagnose({**CONFIG, "task": {**CONFIG["task"], "num_questions": 2}}, run_dir=tmp_path / "run")
    nodes = {row["node_id"]: row for row in run.table("nodes").to_pylist()}
    following = WORLD.next_states()
    responses = {(row["question_id"], row["rollout_index"]): row["token_ids"] for row in run.table("rollouts").to_pylist()}
    for row in run.table("strata").to_pylist():
        node, state = nodes[row["node_id"]], SOUND
        for position, token in enumerate(responses[node["question_id"], node["rollout_index"]][: node["position"]]):
            state = following[position, state, token]
        if row["token_id"] >= 0:
            question = int(node["question_id"].rsplit("-", 1)[1])
            expected = np.exp(WORLD.student(question)[node["position"], state, row["token_id"]])
            assert row["student_prob"] == pytest.approx(expected, rel=1e-12)


def test_an_unknown_role_and_a_foreign_prompt_are_refused() -> None:
    with pytest.raises(ModelError, match="exact:good"):
        load_exact("exact:god", WORLD)
    with pytest.raises(ModelError, match="leave `prompt` out"):
        ExactModel(WORLD, "good").render_prompt("What is 2 + 2?")


def test_the_exact_task_is_a_valid_configuration() -> None:
    assert Config.model_validate(CONFIG).task.kind == "exact"
