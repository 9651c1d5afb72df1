"""Control variates of screening: mean zero by construction, slopes from elsewhere, and no difference to what is estimated."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import opdscope
from opdscope.core.controls import cross_fitted_slopes, zero_mean_products
from opdscope.core.divergences import reverse_kl_signal
from opdscope.models.exact import ReasoningWorld
from opdscope.records import to_table
from opdscope.summary.controls import Controls, corrections
from opdscope.summary.teachers import screen_questions


@pytest.mark.parametrize("judged", ["good", "random"])  # the informing teacher itself goes along with its own signal at each position
def test_products_at_different_positions_have_mean_zero_over_the_students_responses(judged: str) -> None:
    world, question, source, count = ReasoningWorld(length=12, spacing=3), 1, np.random.default_rng(0), 4000
    student, following = world.student(question), world.next_states()
    centred = []
    for name in ("good", judged):
        signal = reverse_kl_signal(student, world.teacher(name, question))
        centred.append(signal - np.sum(np.exp(student) * signal, axis=-1, keepdims=True))
    found = np.empty(count)
    for k in range(count):
        state, taken = 0, []
        for position in range(len(student)):
            token = source.choice(student.shape[-1], p=np.exp(student[position, state]) / np.exp(student[position, state]).sum())
            taken.append([table[position, state, token] for table in centred])
            state = following[position, state, token]
        h, f = np.array(taken).T
        found[k] = zero_mean_products(h[None], f)[0]
    # four standard errors of the mean
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(count)


def test_a_teacher_without_a_context_for_a_question_informs_nothing_there() -> None:
    controls = Controls({"teacher_positions": to_table("teacher_positions", [])}, ["shown a solution"])
    assert controls.products([("q", 0)], [np.ones(3)]).tolist() == [[[0.0]]]
    assert controls.centred(("q", 0), 3).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("most", [1, 40, 1 << 20])
def test_products_of_many_rollouts_are_those_of_each(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdscope.summary.controls._MOST_ENTRIES", most)
    source = np.random.default_rng(3)
    lengths = [4, 0, 7, 1, 7, 2]
    ratios = {(f"q{k}", k, name): source.normal(size=length) for k, length in enumerate(lengths) for name in ("a", "b")}
    del ratios["q2", 2, "b"], ratios["q3", 3, "a"], ratios["q3", 3, "b"]  # contexts that questions lack
    ratios["q4", 4, "a"][2] = -np.inf  # a token that the teacher excludes
    divergences = [np.where(np.isfinite(own), 0.3, np.inf) for own in ratios.values()]
    keys = dict(zip(("question_id", "rollout_index", "teacher"), zip(*ratios, strict=True), strict=True))
    table = pa.table({**keys, "log_ratio": list(ratios.values()), "reverse_kl": divergences})
    controls = Controls({"teacher_positions": table}, ["a", "b"])
    named = [(f"q{k}", k) for k in (5, 2, 2, 4, 0, 3, 1)]  # as often as teachers judge a rollout
    signals = [[source.normal(size=lengths[k]) for _, k in named] for _ in range(2)]
    signals[0][4][0], signals[1][1][3] = np.inf, np.nan  # where another teacher excludes a token; the first is at the first stored position
    found = controls.products(named, *signals)
    assert not np.isfinite(found[4, 0]).any()
    for row, (q, k) in enumerate(named):
        centred = [np.nan_to_num(ratios.get((q, k, name), np.full(lengths[k], -0.3)) + 0.3, neginf=0.0) for name in ("a", "b")]
        for kind in range(2):
            if np.isfinite(signals[kind][row]).all():
                expected = zero_mean_products(np.array(centred), signals[kind][row])
                np.testing.assert_allclose(found[row, kind], expected, rtol=0, atol=1e-14)


def test_slopes_do_not_depend_on_their_own_fold() -> None:
    source = np.random.default_rng(1)
    controls, fold = source.normal(size=(60, 2)), np.repeat(np.arange(3), 20)
    values = source.normal(size=60)
    same, other = (cross_fitted_slopes(controls, v, fold) for v in (values, np.where(fold == 2, -values, values)))
    np.testing.assert_array_equal(same[fold == 2], other[fold == 2])
    assert not np.allclose(same[fold != 2], other[fold != 2])


def test_slopes_of_a_batch_are_those_of_each_and_leave_out_what_has_no_verdict() -> None:
    source, fold = np.random.default_rng(2), np.array([3, 1, 3, 0, 0, 1, 3, 0, 1, 1])
    controls, values = source.normal(size=(2, 3, 10, 2)), source.normal(size=(2, 3, 10))
    values[1, 2, 4] = np.nan
    found = cross_fitted_slopes(controls, values, fold)
    for place in np.ndindex(2, 3):
        known = np.isfinite(values[place])
        own = cross_fitted_slopes(controls[place][known], values[place][known], fold[known])
        np.testing.assert_allclose(found[place][known], own, rtol=1e-12)
    np.testing.assert_array_equal(found[1, 2, 4], found[1, 2, 3])


def test_a_correction_is_the_slope_of_other_questions_times_the_mean_of_all_scored_rollouts() -> None:
    source = np.random.default_rng(4)
    contributions, products = source.normal(size=(12, 6)), source.normal(size=(12, 6, 2))
    scored = np.ones((12, 6), dtype=bool)
    scored[3, 4:], products[3, 4:] = False, 0.0
    contributions[3, 4:], contributions[5, 0], contributions[7] = np.nan, np.nan, np.nan  # not scored; one and six without a verdict
    found = corrections(contributions, products, scored)
    slopes = cross_fitted_slopes(products.reshape(-1, 2), contributions.ravel(), np.repeat(np.arange(12) % 10, 6)).reshape(12, 6, 2)
    expected = [slopes[q, 0] @ products[q, scored[q]].mean(axis=0) for q in range(12)]
    expected[7] = 0.0
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_gain_with_control_variates_is_nearer_to_the_truth(tmp_path: Path) -> None:
    world = ReasoningWorld(length=18)
    run = opdscope.screen(
        {
            "student": {"model_name_or_path": "exact:itself"},
            "teachers": [
                {"name": f"{name} teacher", "teacher_model_name_or_path": f"exact:{name}"} for name in ("good", "stylistic", "random")
            ],
            "task": {"kind": "exact", "num_questions": 40, "length": 18},
            "objectives": ["reverse_kl"],
            "rollouts": {"num_rollouts": 32, "num_demonstrations": 0, "max_completion_length": 19},
        },
        run_dir=tmp_path / "run",
    )
    plain, corrected = screen_questions(run.tables()), screen_questions(run.tables(), ["good teacher"])
    for name in ("stylistic", "random"):
        truth = np.array([world.natural_gain(question, name, "reverse_kl") for question in range(40)])
        errors = [np.mean((found[f"{name} teacher", "reverse_kl"].natural_gain - truth) ** 2) for found in (plain, corrected)]
        # a good teacher's log-odds explain a third of the noise here (docs/economy.md); 40 questions tell a twentieth for certain
        assert errors[1] < 0.95 * errors[0]
