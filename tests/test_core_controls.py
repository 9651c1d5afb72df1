"""Control variates of screening: mean zero by construction, slopes from elsewhere, and no difference to what is estimated."""

from pathlib import Path

import numpy as np

import opdscope
from opdscope.core.controls import cross_fitted_slopes, zero_mean_products
from opdscope.core.divergences import reverse_kl_signal
from opdscope.models.exact import ReasoningWorld
from opdscope.records import to_table
from opdscope.summary.controls import Controls
from opdscope.summary.teachers import screen_questions


def test_products_at_different_positions_have_mean_zero_over_the_students_responses() -> None:
    world, question, source, count = ReasoningWorld(length=12, spacing=3), 1, np.random.default_rng(0), 4000
    student, following = world.student(question), world.next_states()
    centred = []
    for name in ("good", "random"):
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
    assert controls.products(("q", 0), np.ones(3)).tolist() == [0.0]


def test_slopes_do_not_depend_on_their_own_fold() -> None:
    source = np.random.default_rng(1)
    controls, fold = source.normal(size=(60, 2)), np.repeat(np.arange(3), 20)
    values = source.normal(size=60)
    same, other = (cross_fitted_slopes(controls, v, fold) for v in (values, np.where(fold == 2, -values, values)))
    np.testing.assert_array_equal(same[fold == 2], other[fold == 2])
    assert not np.allclose(same[fold != 2], other[fold != 2])


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
