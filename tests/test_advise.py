"""Advice from runs of the exact world, where the right teacher is known, and from made-up gains; recipes are written, read and refused."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import binom
from typer.testing import CliRunner

import opdscope
from opdscope.advice import Advice, TokenBins, advice_data, advise, load_recipe, render_advice, write_recipe
from opdscope.advice.choice import Choice, choose
from opdscope.advice.curriculum import make_curriculum
from opdscope.advice.making import caution, goes_further
from opdscope.advice.recipe import Recipe
from opdscope.advice.settings import trainer_settings
from opdscope.advice.tokens import Rollouts, Tokens
from opdscope.advice.weights import question_weighting, token_parts
from opdscope.cli import app
from opdscope.config import Config, same_entropy_name
from opdscope.core.aggregation import clustered_mean
from opdscope.core.stopping import spending_widths
from opdscope.errors import RecipeError, RunDirectoryError
from opdscope.store import Run, start_run
from opdscope.summary.looks import over_null, planned_looks
from opdscope.summary.teachers import QuestionGains

SETTINGS: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "task": {"kind": "exact", "num_questions": 24, "length": 24},
    "objectives": ["reverse_kl", "generalized_jsd(0.5)"],
    "rollouts": {"num_rollouts": 16},
    "targeted": {"nodes_per_path": 3, "continuations_per_node": 16, "paths_per_outcome": 1},
}


def configuration(*teachers: str) -> dict[str, Any]:
    return {**SETTINGS, "teachers": [{"name": f"the {t} one", "teacher_model_name_or_path": f"exact:{t}"} for t in teachers]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return opdscope.diagnose(configuration("harmful", "good"), run_dir=tmp_path_factory.mktemp("advise") / "run")


@pytest.fixture(scope="module")
def advice(run: Run) -> Advice:
    return advise(run)


@pytest.fixture
def written(advice: Advice, tmp_path: Path) -> Path:
    advice.write(tmp_path / "advice")
    return tmp_path / "advice"


def test_the_good_teacher_is_chosen_and_the_harmful_one_is_no_alternative(advice: Advice) -> None:
    recipe = advice.recipe
    assert recipe.kind == "distil"
    assert recipe.teacher is not None
    assert recipe.teacher.name == "the good one"
    assert recipe.alternatives == ()
    assert next(c for c in advice.choice.candidates if c.teacher == "the harmful one").verdict == "harms"
    assert sum(c.chance_best for c in advice.choice.candidates) + advice.choice.chance_none == pytest.approx(1.0)


@pytest.mark.parametrize(("high", "warned"), [(-0.001, True), (0.001, False), (None, False)])
def test_a_way_that_begins_well_and_ends_badly_is_warned_of(high: float | None, warned: bool) -> None:
    advantage = {"value": -0.01, "low": -0.02, "high": high}
    summary = {"teachers": [{"name": "other", "targeted": None}, {"name": "one", "targeted": {"all": {"advantage": advantage}}}]}
    assert ("-0.0100 [-0.0200, -0.0010] a token" in caution(summary, "one")) == warned
    assert caution(summary, "other") == ""


def test_a_screened_run_is_advised_on(tmp_path: Path) -> None:
    found = advise(opdscope.screen(configuration("good"), run_dir=tmp_path / "run"))
    assert found.recipe.kind == "distil"
    assert "Take small steps" not in found.recipe.text  # the advantage is not known without targeted rollouts


@pytest.mark.parametrize(("null_high", "said"), [(0.004, True), (0.03, False), (None, False)])
def test_a_teacher_that_goes_further_than_the_null_that_wins_the_first_steps_is_named(null_high: float | None, said: bool) -> None:
    rows = [
        {"name": NAMES[0], "targeted": {"all": {"advantage": {"value": 0.02, "low": 0.01, "high": 0.03}}}},
        {"name": "sharpened", "targeted": {"all": {"advantage": {"value": 0.002, "low": 0.001, "high": null_high}}}},
        {"name": NAMES[1]},  # of a screened run
    ]
    choice = _chosen(_gains(0.5, 0.03, 0), _gains(0.3, 0.03, 1), _gains(0.6, 0.03, 2))
    assert choice.kind == "sharpen"
    assert (f"{NAMES[0]}'s own tokens succeed more often" in goes_further({"teachers": rows}, choice)) == said


def test_a_run_without_a_helping_teacher_is_not_advised_to_distil(tmp_path: Path) -> None:
    found = advise(opdscope.screen(configuration("harmful"), run_dir=tmp_path / "run"))
    assert found.recipe.kind == "none"
    assert (found.recipe.teacher, found.recipe.objective, found.recipe.schedule, found.settings) == (None, None, None, {})
    found.write(tmp_path / "advice")
    loaded = load_recipe(tmp_path / "advice")
    assert loaded.token_bins is None
    assert set(loaded.question_weights.values()) == {1.0}
    assert "Do not distil" in _plain_text(found)


def test_a_run_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="nothing to advise on"):
        advise(start_run(tmp_path / "run", Config.model_validate(configuration("good"))))


def test_a_recipe_is_read_as_it_was_written(advice: Advice, written: Path) -> None:
    loaded = load_recipe(written / "recipe.yaml")
    assert loaded.recipe == advice.recipe.model_copy(update={"files": loaded.recipe.files})
    assert loaded.questions.equals(advice.tables["questions.parquet"])
    assert loaded.token_weights.equals(advice.tables["token_weights.parquet"])
    assert sorted(q for batch in loaded.batches for q in batch) == sorted(
        row["question_id"] for row in loaded.questions.to_pylist() if not row["held_back"]
    )


def test_the_bins_of_a_recipe_weigh_tokens_as_its_table_says(advice: Advice, tmp_path: Path) -> None:
    evidence = advice.recipe.token_weighting.model_copy(update={"use": True, "feature": "depth"})
    write_recipe(tmp_path, advice.recipe.model_copy(update={"token_weighting": evidence}), advice.tables)
    loaded = load_recipe(tmp_path)
    bins = loaded.token_bins
    assert bins is not None
    rows = [row for row in loaded.token_weights.to_pylist() if row["feature"] == bins.feature]
    for row in rows:
        inside = np.array([row["low"] if np.isfinite(row["low"]) else row["high"] - 1.0])
        assert bins.weight(inside).tolist() == [row["weight"]]


def test_a_recipe_for_another_tokenizer_is_refused(advice: Advice, written: Path) -> None:
    own = advice.recipe.student.tokenizer_hash
    assert own is not None
    assert load_recipe(written, tokenizer_hash=own).recipe.kind == "distil"
    with pytest.raises(RecipeError, match="made with the tokenizer of exact:itself"):
        load_recipe(written, tokenizer_hash="0" * 64)


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = yaml.safe_load((path / "recipe.yaml").read_text())
    change(data)
    (path / "recipe.yaml").write_text(yaml.safe_dump(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(version=99), "version 99"),
        (lambda data: data.update(objectiv="reverse_kl"), "objectiv"),
        (lambda data: data.update(teacher=None), "teacher: missing from a recipe whose kind is 'distil'"),
        (lambda data: data["schedule"].update(start_gain=-1.0), "start_gain must be positive"),
        (lambda data: data["outcome_weights"].update(correct=-1.0), "outcome_weights.correct"),
    ],
)
def test_a_recipe_that_was_changed_into_nonsense_is_refused_with_the_reason(
    written: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    _edit(written, change)
    with pytest.raises(RecipeError, match=message):
        load_recipe(written)


def test_missing_and_foreign_files_are_named(written: Path) -> None:
    table = pq.read_table(written / "questions.parquet")
    pq.write_table(table.slice(1), written / "questions.parquet")
    with pytest.raises(RecipeError, match=r"questions\.parquet is not the file"):
        load_recipe(written)
    (written / "questions.parquet").unlink()
    with pytest.raises(RecipeError, match=r"questions\.parquet is missing"):
        load_recipe(written)
    (written / "recipe.yaml").write_text("- a list")
    with pytest.raises(RecipeError, match="expected a recipe, found list"):
        load_recipe(written)
    (written / "recipe.yaml").write_text("{")
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        load_recipe(written)
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(written / "elsewhere")


def test_a_recipe_that_cannot_be_written_says_where(advice: Advice, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="another place with --output"):
        advice.write(tmp_path / "file" / "advice")


def test_settings_of_an_earlier_recipe_do_not_outlive_it(advice: Advice, written: Path) -> None:
    assert {path.name for path in written.iterdir()} >= {"trl.py", "verl.sh", "ms_swift.sh"}
    Advice(advice.recipe, advice.tables, {}, advice.choice, advice.details, advice.student).write(written)
    assert sorted(path.name for path in written.iterdir()) == ["questions.parquet", "recipe.yaml", "token_weights.parquet"]


def _with(recipe: Recipe, objective: str, **teacher: Any) -> Recipe:
    assert recipe.teacher is not None
    return recipe.model_copy(update={"objective": objective, "teacher": recipe.teacher.model_copy(update=teacher)})


def test_settings_use_only_options_that_trl_has(advice: Advice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl")
    from trl import DistillationConfig
    from trl.experimental.sdft import SDFTConfig

    cases = [
        (_with(advice.recipe, "generalized_jsd(0.5)"), DistillationConfig, {"beta": 0.5}),
        (_with(advice.recipe, "reverse_kl", self_distillation=True, privileged_context="answer"), SDFTConfig, {"distillation_alpha": 1.0}),
    ]
    for recipe, known, expected in cases:
        names: dict[str, Any] = {known.__name__: dict}
        source = "\n".join(line for line in trainer_settings(recipe)["trl.py"].splitlines() if not line.startswith(("from", "#")))
        exec(source, names)
        found = names["args"]
        assert set(found) <= set(known.__dataclass_fields__)
        assert found["temperature"] == recipe.temperature
        assert expected.items() <= found.items()


def test_settings_say_what_a_trainer_cannot_do(advice: Advice) -> None:
    assert "loss_mode=k1" in trainer_settings(_with(advice.recipe, "reverse_kl"))["verl.sh"]
    assert "forward_kl_topk" in trainer_settings(_with(advice.recipe, "forward_kl"))["verl.sh"]
    assert "nothing to paste" in trainer_settings(_with(advice.recipe, "generalized_jsd(0.5)"))["verl.sh"]
    hostile = trainer_settings(_with(advice.recipe, "reverse_kl", model_name_or_path="a'; rm -rf x", privileged_context="answer\nrm"))
    assert "'a'\"'\"'; rm -rf x'" in hostile["ms_swift.sh"]
    assert all("\nrm" not in text for text in hostile.values())


def _plain_text(advice: Advice) -> str:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render_advice(advice))
    return console.export_text()


def test_the_text_shows_evidence_schedule_weights_curriculum_and_mix(advice: Advice) -> None:
    text = _plain_text(advice)
    for part in ("Distil from the good one", "gain over null", "success now", "Weights by outcome", "Curriculum", "Beside reinforcement"):
        assert part in text
    data = advice_data(advice)
    assert data["recipe"]["kind"] == "distil"
    assert len(data["reinforcement"]) == 3
    assert len(data["questions"]) == 24


def test_the_command_writes_a_recipe_and_prints_json_that_agrees_with_it(run: Run, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["advise", str(run.path), "--output", str(tmp_path / "advice"), "--criterion", "gain", "--json"])
    assert found.exit_code == 0
    loaded = load_recipe(tmp_path / "advice")
    assert json.loads(found.stdout)["recipe"]["criterion"] == loaded.recipe.criterion == "gain"


CONFIG = Config.model_validate({**configuration("good", "fair"), "objectives": ["reverse_kl"]})
NAMES = ("the good one", "the fair one")


def _gains(mean: float, spread: float, seed: int) -> QuestionGains:
    values = mean + spread * np.random.default_rng(seed).normal(size=40)
    return QuestionGains(values, values, np.full(40, 1.0))


def _chosen(good: QuestionGains, fair: QuestionGains, null: QuestionGains) -> Choice:
    known = {(name, "reverse_kl"): own for name, own in zip((*NAMES, "sharpened"), (good, fair, null), strict=True)}
    return choose(NAMES, [known], CONFIG, "gain")


@pytest.mark.parametrize(
    ("good", "fair", "null", "kind"),
    [
        (0.5, 0.3, 0.1, "distil"),
        (0.5, 0.3, 0.6, "sharpen"),
        (-0.5, -0.3, -0.1, "none"),
        (0.01, 0.0, -0.1, "none"),
    ],
)
def test_the_kind_of_advice_follows_from_gains_and_null(good: float, fair: float, null: float, kind: str) -> None:
    assert _chosen(_gains(good, 0.03, 0), _gains(fair, 0.03, 1), _gains(null, 0.03, 2)).kind == kind


def test_wide_intervals_are_not_enough_data() -> None:
    assert _chosen(_gains(0.3, 5.0, 0), _gains(0.0, 5.0, 1), _gains(-0.1, 0.1, 2)).kind == "not enough data"


def test_the_criterion_decides_between_a_strong_push_and_an_efficient_one() -> None:
    strong, efficient = _gains(0.8, 0.01, 0), _gains(0.5, 0.01, 1)
    known = {
        ("the good one", "reverse_kl"): QuestionGains(strong.natural_gain, strong.gain, np.full(40, 16.0)),
        ("the fair one", "reverse_kl"): QuestionGains(efficient.natural_gain, efficient.gain, np.full(40, 1.0)),
    }
    assert choose(NAMES, [known], CONFIG, "gain").candidates[0].teacher == "the good one"
    assert choose(NAMES, [known], CONFIG, "gain_per_push").candidates[0].teacher == "the fair one"


def test_a_run_that_stopped_at_its_second_look_is_judged_by_the_width_of_its_looks() -> None:
    ranked = Config.model_validate({**configuration("good", "fair"), "objectives": ["reverse_kl"], "target": {"kind": "rank", "rounds": 5}})
    looks = [
        {
            (name, "reverse_kl"): _gains(mean, 0.3, seed + k)
            for name, mean, seed in zip((*NAMES, "sharpened"), (0.5, 0.3, 0.1), (0, 10, 20), strict=True)
        }
        for k in range(2)
    ]
    once, spent = choose(NAMES, looks[1:], CONFIG, "gain"), choose(NAMES, looks, ranked, "gain")
    single, wide = (found.comparisons[0].difference for found in (once, spent))
    assert wide.value == single.value
    assert wide.high - wide.low > 1.1 * (single.high - single.low)
    values = [over_null(look, name, "reverse_kl", ranked) for look in looks for name in NAMES]
    differences = [first - second for first, second in zip(values[::2], values[1::2], strict=True)]
    width = spending_widths(
        [np.expand_dims(column, -1) for column in differences], len(planned_looks(ranked)), 0.9, np.random.default_rng(0)
    )[-1]
    expected = clustered_mean(differences[1], 0.9, width)
    assert (wide.low, wide.high) == pytest.approx((expected.low, expected.high), abs=0.03 * (expected.high - expected.low))


def test_without_any_teacher_there_is_nothing_to_choose() -> None:
    found = choose([], [{}], CONFIG, "gain")
    assert (found.kind, found.candidates, found.comparisons) == ("not enough data", [], [])


def test_a_null_at_the_teachers_own_entropy_counts() -> None:
    known = {
        ("the good one", "reverse_kl"): _gains(0.4, 0.02, 0),
        (same_entropy_name("the good one"), "reverse_kl"): _gains(0.6, 0.02, 1),
    }
    found = choose(NAMES[:1], [known], CONFIG, "gain")
    assert found.kind == "sharpen"
    assert found.candidates[0].null.name == same_entropy_name("the good one")


def _random_tokens(seed: int, *, questions: int = 30, rollouts: int = 8, length: int = 12, gain: float = 0.4) -> Tokens:
    """Tokens on which success depends on the whole push alike, and on no feature."""
    generator = np.random.default_rng(seed)
    count = questions * rollouts
    signal = generator.normal(size=(count, length))
    chance = np.clip(0.5 + gain * signal.sum(axis=1) / length, 0.02, 0.98)
    outcome = (generator.random(count) < chance).astype(float)
    push, ones = np.full(count * length, 0.5), np.ones(count * length)
    known = Rollouts(np.repeat(np.arange(questions), rollouts), np.tile(np.arange(rollouts), questions), outcome, np.full(count, length))
    features = {"depth": np.tile(np.arange(length, dtype=float), count), "entropy": generator.random(count * length)}
    rollout = np.repeat(np.arange(count), length)
    return Tokens(questions, known, rollout, features, push, signal.ravel(), ones, ones, ones, ones)


def test_on_noise_weights_of_tokens_and_questions_are_selected_no_more_often_than_the_bound_allows() -> None:
    repetitions, bound = 40, 0.05
    tokens = [_random_tokens(seed) for seed in range(repetitions)]
    by_token = sum(any(parts.helps for parts in token_parts({}, each, None, CONFIG)) for each in tokens)
    by_question = sum(question_weighting(each, CONFIG).helps for each in tokens)
    # more would come with a chance of 1 in 1,000 if the rate were the bound
    assert max(by_token, by_question) <= binom.ppf(0.999, repetitions, bound)


def test_the_curriculum_says_that_an_order_of_noise_is_noise_and_finds_harm() -> None:
    plain = make_curriculum(_random_tokens(1, gain=0.0), CONFIG)
    assert sorted(plain.order.tolist()) == list(range(30))
    assert plain.reliability < 0.5
    tokens = _random_tokens(2, rollouts=200)
    harmed = np.where(np.isin(tokens.rollouts.question, [3, 4]), 1.0 - tokens.rollouts.outcome, tokens.rollouts.outcome)
    rollouts = Rollouts(tokens.rollouts.question, tokens.rollouts.index, harmed, tokens.rollouts.length)
    found = make_curriculum(Tokens(**{**vars(tokens), "rollouts": rollouts}), CONFIG)
    assert np.flatnonzero(found.held_back).tolist() == [3, 4]
    assert set(found.order[-2:].tolist()) == {3, 4}
    assert found.batch[[3, 4]].tolist() == [-1, -1]


def test_bins_put_a_value_on_an_edge_into_the_upper_bin() -> None:
    bins = TokenBins("entropy", np.array([0.5, 1.0]), np.array([0.1, 0.2, 0.3]))
    assert bins.weight(np.array([0.0, 0.5, 1.0, 9.0, np.nan])).tolist() == [0.1, 0.2, 0.3, 0.3, 1.0]
