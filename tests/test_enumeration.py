"""Enumerated bounds: exact on a world that is known, and around what the sampler really does on a trained network."""

import dataclasses
import doctest
import itertools

import numpy as np
import pytest

from opdscope.core.randomness import derive_seed
from opdscope.models import enumeration
from opdscope.models.base import SampleRequest
from opdscope.models.enumeration import EnumeratedNode, enumerate_success
from opdscope.models.exact import ExactModel, TreeWorld
from opdscope.models.exact.tree import FIRST_LETTER
from opdscope.models.exact.world import RIGHT, START
from opdscope.models.packaged import resolve_model
from opdscope.models.transformers import LanguageModel, load_language_model
from opdscope.records import Outcome
from opdscope.tasks.base import VerifierSpec
from opdscope.tasks.chain import CHAIN
from opdscope.tasks.verifiers import build_verifier

WORLD, QUESTION = TreeWorld(depth=4, seed=3), 2
LETTERS = slice(FIRST_LETTER, None)


def enumerated(
    prefix: tuple[int, ...] = (),
    *,
    role: str = "itself",
    max_length: int = WORLD.depth + 1,
    temperature: float = 1.0,
    min_prob: float = 0.0,
    batch_rows: int = 1024,
) -> EnumeratedNode:
    model = ExactModel(WORLD, role)
    settings = {"max_length": max_length, "temperature": temperature, "min_prob": min_prob, "batch_rows": batch_rows}
    return enumerate_success(model, model.render_prompt(f"Q{QUESTION}:")[1], prefix, lambda ids: ids[-1] == RIGHT, **settings)


def state_after(prefix: tuple[int, ...]) -> int:
    state = START
    for position, token in enumerate(prefix):
        state = WORLD.next_states()[position, state, token]
    return state


def test_the_documented_example_is_true() -> None:
    assert doctest.testmod(enumeration).failed == 0


def test_nothing_pruned_gives_the_worlds_success_and_no_residual() -> None:
    node = enumerated()
    assert node.residual == 0.0
    assert node.num_scored == sum(4**length for length in range(WORLD.depth + 1))
    np.testing.assert_allclose(node.success_low[LETTERS], WORLD.success(QUESTION)[0, START, LETTERS], atol=1e-12)
    np.testing.assert_allclose(node.success_high[LETTERS], WORLD.success(QUESTION)[0, START, LETTERS], atol=1e-12)
    assert node.value_low == pytest.approx(WORLD.success_rate(QUESTION), abs=1e-12)


@pytest.mark.parametrize("min_prob", [1e-4, 1e-2, 0.1, 0.9])
def test_the_bounds_hold_the_truth_at_every_node_whatever_is_pruned(min_prob: float) -> None:
    """Rounding of the sums is all that could put the truth outside, hence 1e-12."""
    success, student = WORLD.success(QUESTION), np.exp(WORLD.student(QUESTION))
    for length in range(WORLD.depth):
        for prefix in itertools.product(range(FIRST_LETTER, len(WORLD.texts)), repeat=length):
            node, state = enumerated(prefix, min_prob=min_prob), state_after(prefix)
            truth = success[length, state, LETTERS]
            assert np.all(node.success_low[LETTERS] <= truth + 1e-12)
            assert np.all(truth <= node.success_high[LETTERS] + 1e-12)
            value = np.sum(student[length, state] * success[length, state])
            assert node.value_low - 1e-12 <= value <= node.value_high + 1e-12
            assert node.value_high - node.value_low == pytest.approx(node.residual, abs=1e-12)


def test_a_smaller_threshold_narrows_the_bounds_and_scores_more() -> None:
    wide, narrow = enumerated(min_prob=0.05), enumerated(min_prob=0.001)
    assert 0 < narrow.residual < wide.residual < 1
    assert wide.num_scored < narrow.num_scored
    assert np.all(wide.success_low <= narrow.success_low)
    assert np.all(narrow.success_high <= wide.success_high + 1e-12)


def test_of_a_pruned_token_nothing_is_claimed() -> None:
    node = enumerated(min_prob=0.3)
    rare = node.probs <= 0.3
    assert 0 < rare.sum() < len(rare)
    assert np.all(node.success_low[rare] == 0.0)
    assert np.all(node.success_high[rare] == 1.0)


def test_a_truncated_response_is_certainly_not_correct() -> None:
    node = enumerated(max_length=WORLD.depth)
    assert node.residual == 0.0
    assert node.value_high < 1e-20  # an answer out of place has probability 1e-30


def test_the_temperature_is_the_policys() -> None:
    warm, flattened = enumerated(temperature=1.25, min_prob=0.01), enumerated(role="flattened", min_prob=0.01)
    for field in dataclasses.fields(EnumeratedNode):
        np.testing.assert_allclose(getattr(warm, field.name), getattr(flattened, field.name), atol=1e-12)


def test_batches_change_nothing() -> None:
    one, many = enumerated(min_prob=0.001, batch_rows=1), enumerated(min_prob=0.001)
    for field in dataclasses.fields(EnumeratedNode):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(many, field.name))


@pytest.mark.parametrize(
    ("prefix", "options", "text"),
    [
        ((FIRST_LETTER, RIGHT), {}, "holds an end-of-sequence token"),
        ((FIRST_LETTER,) * 5, {}, "shorter than max_length = 5, found 5 tokens"),
        ((), {"min_prob": 1.0}, r"min_prob must lie in \[0, 1\), found 1.0"),
        ((), {"batch_rows": 0}, "batch_rows must be at least 1, found 0"),
    ],
)
def test_arguments_out_of_range_are_named(prefix: tuple[int, ...], options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        enumerated(prefix, **options)


@pytest.fixture(scope="module")
def student() -> LanguageModel:
    return load_language_model(resolve_model("embedded:chain-student-weak"), device="cpu")


@pytest.mark.parametrize(
    ("question", "written", "min_prob"),
    [("5-9-8-9", "5-9=6;6-8=8;8-9=", 3e-7), ("8-4-6*4-7", "8-4=4;4-6=8;8*4=", 1e-7)],
)
def test_what_a_network_really_does_lies_within_proven_bounds(student: LanguageModel, question: str, written: str, min_prob: float) -> None:
    """A node before the third result, 4/5 and 3/5 into a response; 2,000 continuations for the value, and as many for each likely token."""
    _, prompt = student.render_prompt(f"Q{question}:")
    prefix = tuple(student.token_to_id[character] for character in written)
    verify, answer = build_verifier(VerifierSpec(kind="final_answer")), CHAIN.answer(question)
    max_length = len(CHAIN.worked_solution(question)) + 4  # room for the end of sequence and three tokens more

    def is_correct(token_ids: tuple[int, ...]) -> bool:
        return verify(student.decode(token_ids), answer, "{}") == Outcome.CORRECT

    node = enumerate_success(student, prompt, prefix, is_correct, max_length=max_length, min_prob=min_prob)
    assert node.residual < 1e-3
    likely = np.flatnonzero(node.probs > 0.02).tolist()
    assert len(likely) >= 2
    bounds = {(): (node.value_low, node.value_high)} | {(j,): (node.success_low[j], node.success_high[j]) for j in likely}
    count = 2000
    requests = [
        SampleRequest(
            prompt + prefix,
            len(prompt + prefix),
            forced,
            tuple(derive_seed("enumeration", question, *forced, index) for index in range(count)),
            max_length - len(prefix + forced),
        )
        for forced in bounds
    ]
    for (forced, (low, high)), samples in zip(bounds.items(), student.sampler(512).sample(requests, 1.0), strict=True):
        observed = np.mean([sample.finished and is_correct(prefix + forced + sample.token_ids) for sample in samples])
        # four standard errors at the end of the interval that has the larger one
        reach = 4 * np.sqrt(max(low * (1 - low), high * (1 - high)) / count)
        assert low - reach <= observed <= high + reach, forced
