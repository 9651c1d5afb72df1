"""What a teacher is shown, for every kind of context."""

from typing import Any

import pytest

from opdscope.config import CONTEXTS, Config, PromptFormat
from opdscope.contexts import Attempts, Demonstration, attempts_by_question, build_context, first_half, wording
from opdscope.errors import ConfigError
from opdscope.pipeline.diagnosis import diagnose
from opdscope.records import Outcome, Question

QUESTIONS = (
    Question("a", "2+2?", "4", solution="by hand 4"),
    Question("b", "1+3?", "4"),
    Question("c", "1+1?", "2"),
)
TEXTS = [
    ("a", 3, "wrong {solution} 5", Outcome.INCORRECT),
    ("a", 2, "two and two make 4", Outcome.CORRECT),
    ("a", 0, "cut", Outcome.TRUNCATED),
    ("a", 1, "two and two make 4", Outcome.CORRECT),
    ("a", 4, "thus 4", Outcome.CORRECT),
    ("a", 5, "so 4", Outcome.CORRECT),
    ("b", 0, "b gives 4", Outcome.CORRECT),
    ("c", 0, "c gives 2", Outcome.CORRECT),
]
ATTEMPTS = attempts_by_question([Demonstration(*row) for row in TEXTS])


def test_attempts_of_equal_text_count_once_in_the_order_in_which_they_were_drawn() -> None:
    assert [d.rollout_index for d in ATTEMPTS["a"].correct] == [1, 4, 5]
    assert [d.rollout_index for d in ATTEMPTS["a"].incorrect] == [3]


@pytest.mark.parametrize(
    ("kind", "shown", "sources"),
    [
        ("plain", [], []),
        ("answer", ["4"], []),
        ("solution", ["two and two make 4"], [("a", 1)]),
        ("three_solutions", ["two and two make 4", "thus 4", "so 4"], [("a", 1), ("a", 4), ("a", 5)]),
        ("solution_and_mistake", ["two and two make 4", "wrong {solution} 5"], [("a", 1), ("a", 3)]),
        ("mistake", ["wrong {solution} 5", "is wrong"], [("a", 3)]),
        ("hint", ["begins like this:\n\ntwo and\n"], [("a", 1)]),
        ("reference_solution", ["by hand 4"], []),
        ("unrelated_solution", ["another problem:\n\nc gives 2"], [("c", 0)]),
    ],
)
def test_a_context_shows_what_its_name_says_and_names_its_sources(kind: Any, shown: list[str], sources: list[tuple[str, int]]) -> None:
    context = build_context(kind, 0, QUESTIONS, PromptFormat(), ATTEMPTS)
    assert context.text is not None
    assert context.text.startswith("2+2?\n")
    positions = [context.text.index(part) for part in shown]
    assert positions == sorted(positions)
    assert [(source.question_id, source.rollout_index) for source in context.sources] == sources


@pytest.mark.parametrize("kind", [kind for kind in CONTEXTS if kind not in ("plain", "answer")])
def test_a_question_without_what_a_context_needs_has_none_and_a_reason(kind: Any) -> None:
    context = build_context(kind, 1, QUESTIONS, PromptFormat(), {"b": Attempts()})
    assert context.text is None
    assert context.reason
    assert context.sources == ()


@pytest.mark.parametrize(("text", "half"), [("", ""), ("abcdef", "abc"), ("one two", "one"), ("first\nsecond", "first"), ("a b c d", "a")])
def test_a_hint_ends_between_words_and_never_holds_more_than_half(text: str, half: str) -> None:
    assert first_half(text) == half
    assert len(half) <= len(text) / 2


def test_every_wording_must_hold_what_it_is_filled_with() -> None:
    for kind in CONTEXTS[1:]:
        with pytest.raises(ValueError, match=r"must contain \{"):
            PromptFormat.model_validate({kind: "{question}"})
    with pytest.raises(ValueError, match=r"must contain \{question\}"):
        PromptFormat.model_validate({"plain": "What?"})


def test_a_context_without_a_wording_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"privileged_context 'hint': the prompts of this task have no wording for it; use one of plain, answer,"
    ):
        wording("hint", PromptFormat(hint=None))


def test_teachers_that_could_be_shown_nothing_are_refused_before_anything_is_paid_for(tmp_path: Any) -> None:
    config = {
        "student": {"model_name_or_path": "exact:itself"},
        "teachers": [{"name": "own", "privileged_context": "reference_solution"}],
        "task": {"kind": "exact", "num_questions": 2},
    }
    with pytest.raises(ConfigError, match="is shown the task's own solutions, but this task has none"):
        diagnose(config, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_contexts_of_attempts_need_demonstrations() -> None:
    config = {
        "student": {"model_name_or_path": "embedded:chain-student"},
        "teachers": [{"name": "own", "privileged_context": "mistake"}],
        "task": {"kind": "chain"},
        "rollouts": {"num_demonstrations": 0},
    }
    with pytest.raises(ValueError, match=r"'own' is shown the student's attempts, but rollouts.num_demonstrations is 0"):
        Config.model_validate(config)
