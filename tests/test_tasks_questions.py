"""Question sets: deterministic, without repetitions, and refused with a sentence that helps."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opdscope.config import EmbeddedTaskConfig, JsonlTaskConfig, PromptFormat, ReasoningGymTaskConfig
from opdscope.errors import TaskError
from opdscope.records import Outcome
from opdscope.tasks import VerifierPool, VerifyItem, load_task
from opdscope.tasks.embedded import EMBEDDED
from opdscope.tasks.reasoning_gym import decode_entry, encode_entry
from opdscope.tasks.verifiers import build_verifier


@pytest.mark.parametrize("kind", ["chain", "addition"])
def test_embedded_questions_depend_on_the_seed_alone_and_do_not_repeat(kind: Any):
    task = load_task(EmbeddedTaskConfig(kind=kind, num_questions=500, seed=3))
    assert task == load_task(EmbeddedTaskConfig(kind=kind, num_questions=500, seed=3))
    assert len({question.text for question in task.questions}) == 500
    assert load_task(EmbeddedTaskConfig(kind=kind, num_questions=7, seed=3)).questions == task.questions[:7]
    other = load_task(EmbeddedTaskConfig(kind=kind, num_questions=500, seed=4))
    assert len({question.text for question in task.questions} & {question.text for question in other.questions}) < 50
    assert task.questions[7].question_id == f"{kind}-3-00007"


@pytest.mark.parametrize("kind", ["chain", "addition"])
def test_embedded_reference_answers_verify_within_the_recommended_length(kind: Any):
    task, generator = load_task(EmbeddedTaskConfig(kind=kind, num_questions=300)), EMBEDDED[kind]
    with VerifierPool(task.verifier) as pool:
        right = [VerifyItem(generator.worked_solution(question.text), question.answer) for question in task.questions]
        assert set(pool.verify(right)) == {Outcome.CORRECT}
        wrong = [VerifyItem(item.response, other.answer + "1") for item, other in zip(right, right, strict=True)]
        assert set(pool.verify(wrong)) == {Outcome.INCORRECT}
    assert max(len(item.response) for item in right) + 1 <= generator.max_completion_length


def test_the_first_questions_are_pinned():
    """A change here changes every stored run of these tasks."""
    assert [question.text for question in load_task(EmbeddedTaskConfig(kind="chain", num_questions=2)).questions] == [
        "3*7+7+5+7",
        "7-8*9+4-8*4",
    ]


def test_more_embedded_questions_than_there_are_is_refused():
    with pytest.raises(TaskError, match="'chain' has 3,620,884,680 different questions, but num_questions is 9,000,000,000; ask for fewer"):
        load_task(EmbeddedTaskConfig(kind="chain", num_questions=9_000_000_000))


# reasoning-gym


def gym(dataset: str = "chain_sum", num_questions: int = 5, **settings: Any) -> ReasoningGymTaskConfig:
    return ReasoningGymTaskConfig(kind="reasoning_gym", dataset=dataset, num_questions=num_questions, **settings)


def test_reasoning_gym_questions_are_stable_and_leave_the_global_random_state_alone():
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, again = load_task(gym("list_functions", seed=5)), load_task(gym("list_functions", seed=5))
    assert first == again
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002
    assert [question.question_id for question in first.questions[:2]] == ["list_functions-5-00000", "list_functions-5-00001"]
    assert first.prompt_format == PromptFormat()


@pytest.mark.parametrize("dataset", ["chain_sum", "rearc", "gsm_symbolic", "list_functions", "rubiks_cube"])
def test_reasoning_gym_reference_answers_get_full_marks_and_others_do_not(dataset: str):
    task = load_task(gym(dataset, answer_pattern=r"(?s)Answer: (.*)"))
    verify = build_verifier(task.verifier)
    for question in task.questions:
        if question.answer:
            assert verify(f"So…\nAnswer: **{question.answer}**.", question.answer, question.metadata) is Outcome.CORRECT
        assert verify("Answer: 123456", question.answer, question.metadata) is Outcome.INCORRECT
        assert verify("none", question.answer, question.metadata) is Outcome.INCORRECT


def test_reasoning_gym_partial_marks_are_not_success_and_thousands_commas_are_no_mistake():
    task = load_task(
        gym(options={"min_digits": 4, "max_digits": 4, "min_terms": 2, "max_terms": 2, "allow_negation": False}, num_questions=1)
    )
    (question,) = task.questions
    with VerifierPool(task.verifier, num_workers=1) as pool:
        answers = [f"{int(question.answer):,}", question.answer, f"{question.answer} or so"]
        outcomes = pool.verify([VerifyItem(f"Answer: {answer}", question.answer, question.metadata) for answer in answers])
    assert outcomes == [Outcome.CORRECT, Outcome.CORRECT, Outcome.INCORRECT]


def test_entries_keep_their_tuples_through_json():
    entry = {"metadata": {"grid": ((1, 2), (3,)), "list": [1, (2,)], "text": "x"}}
    assert decode_entry(encode_entry(entry)) == entry


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (gym("chain_sums"), "reasoning-gym has no generator 'chain_sums'; did you mean 'chain_sum' or "),
        (gym("qqqq"), "reasoning-gym has no generator 'qqqq'; there are [0-9]+, see its gallery"),
        (gym(options={"min_term": 3}), "generator 'chain_sum' has no option 'min_term'; did you mean 'min_terms' or"),
        (gym(options={"qqqq": 3}), "generator 'chain_sum' has no option 'qqqq'; it has .*min_terms"),
        (gym(options={"size": 3}), r"task\.options\.size is not an option here; set task\.num_questions"),
        (gym(options={"seed": 3}), r"task\.options\.seed is not an option here; set task\.seed"),
        (gym(options={"min_terms": -3}), "refuses the options {'min_terms': -3}: min_terms must be positive"),
        (gym(options={"min_terms": "a"}), "refuses the options {'min_terms': 'a'}: "),
        (gym(answer_pattern="("), "is not a regular expression"),
        (
            gym(options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, num_questions=300),
            "gave only [0-9]+ different questions with these options in 1264 draws, but num_questions is 300; ask for fewer or widen",
        ),
    ],
)  # fmt: skip
def test_a_reasoning_gym_task_that_cannot_be_is_refused_with_a_remedy(config: ReasoningGymTaskConfig, message: str):
    with pytest.raises(TaskError, match=message):
        load_task(config)


# JSONL


def jsonl(path: Path, lines: list[Any], **settings: Any) -> JsonlTaskConfig:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return JsonlTaskConfig(kind="jsonl", path=path, **settings)


def test_jsonl_questions_come_in_the_order_of_the_file_with_their_line_in_the_id(tmp_path: Path):
    lines = [
        {"question": "a", "answer": 3},
        "",
        {"question": "b\u2028b", "answer": "work\n#### 1,042"},
        {"question": "c", "answer": "5 apples"},
    ]
    task = load_task(jsonl(tmp_path / "set.jsonl", lines))
    assert [(q.question_id, q.text, q.answer) for q in task.questions] == [
        ("set-00001", "a", "3"), ("set-00003", "b\u2028b", "1,042"), ("set-00004", "c", "5 apples"),
    ]  # fmt: skip
    assert task.num_skipped == 0
    first = load_task(jsonl(tmp_path / "set.jsonl", lines, num_questions=1))
    assert first.questions == task.questions[:1]


@pytest.mark.parametrize("verifier", ["numeric", "math"])
def test_jsonl_leaves_out_and_counts_repetitions_and_answers_that_cannot_be_verified(tmp_path: Path, verifier: Any):
    answers = {"numeric": ["7", "seven", "8", "1 or 2"], "math": [r"\frac{1}{2}", "", "8", " "]}[verifier]
    lines = [{"q": str(i), "a": answer} for i, answer in enumerate(answers)] + [{"q": "0", "a": "7"}]
    task = load_task(jsonl(tmp_path / "set.jsonl", lines, question_field="q", answer_field="a", verifier=verifier))
    assert [question.text for question in task.questions] == ["0", "2"]
    assert task.num_skipped == 3
    assert task.skipped == {"the question stands in the file already": 1, f"the answer cannot be verified as {verifier}": 2}


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(tmp_path: Path):
    (tmp_path / "set.jsonl").write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": "1"}\r\n\r\n{"question": "b", "answer": "2"}\r\n')
    assert len(load_task(JsonlTaskConfig(kind="jsonl", path=tmp_path / "set.jsonl")).questions) == 2


def test_a_function_of_your_own_judges_with_the_fields_of_the_line_and_a_solution_field_becomes_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own_checks.py").write_text(
        "def near(response, answer, fields):\n    return abs(float(response) - float(answer)) < fields['margin']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = [{"question": "a", "answer": "1", "margin": 0.5, "work": "one"}, {"question": "b", "answer": "1", "margin": 0, "work": "w"}]
    settings = {"verifier": "python", "verifier_function": "own_checks:near", "solution_field": "work"}
    task = load_task(jsonl(tmp_path / "set.jsonl", lines, **settings))
    assert [(q.text, q.solution) for q in task.questions] == [("a", "one")]
    assert task.skipped == {"the answer cannot be verified as python": 1}
    with VerifierPool(task.verifier, num_workers=1) as pool:
        metadata = task.questions[0].metadata
        items = [VerifyItem(f"Answer: {found}", "1", metadata) for found in ("1.2", "2", "word")]
        assert pool.verify(items) == [Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE]


def test_a_function_that_reads_whole_responses_need_not_take_the_bare_answer_but_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "whole_checks.py").write_text("def ends(response, answer, fields):\n    return response.endswith(f'so {answer}')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings: dict[str, Any] = {"verifier": "python", "answer_pattern": None}
    lines = [{"question": "a", "answer": "1"}]
    assert len(load_task(jsonl(tmp_path / "set.jsonl", lines, verifier_function="whole_checks:ends", **settings)).questions) == 1
    with pytest.raises(TaskError, match="whole_checks:begins' cannot be imported"):
        load_task(jsonl(tmp_path / "set.jsonl", lines, verifier_function="whole_checks:begins", **settings))


@pytest.mark.parametrize("settings", [{"verifier": "python"}, {"verifier_function": "a:b"}])
def test_a_function_and_the_python_verifier_belong_together(settings: dict[str, Any]):
    with pytest.raises(ValueError, match="belong together; give both or neither"):
        JsonlTaskConfig(kind="jsonl", path=Path("set.jsonl"), **settings)


GOOD = {"question": "a", "answer": "1"}


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([GOOD, "{"], {}, r"set\.jsonl, line 2 is not JSON: .*; the file must have one JSON object a line"),
        ([GOOD, [1]], {}, r"line 2: expected a JSON object, found list"),
        ([{"problem": "a", "answer": "1"}], {}, r"line 1 has no field 'question'; found 'problem', 'answer'; set task\.question_field"),
        ([{"question": "a"}], {}, r"line 1 has no field 'answer'; found 'question'; set task\.answer_field"),
        ([{}], {}, r"line 1 has no field 'question'; found none"),
        ([{"question": "a", "answer": ["1"]}], {}, r"line 1: field 'answer' is \[\"1\"\], expected a text or a number"),
        ([{"question": "a", "answer": None}], {}, r"line 1: field 'answer' is null, expected a text or a number"),
        ([], {}, r"set\.jsonl holds no questions; it must have one JSON object a line"),
        (["", " "], {}, r"holds no questions"),
        ([{"question": "a", "answer": "one"}], {}, r"none of the answers in 'answer' can be verified as numeric, for example 'one'"),
        ([GOOD, GOOD], {"num_questions": 2}, r"has 1 different questions with an answer that can be verified, but num_questions is 2; ask"),
        ([GOOD], {"solution_field": "work"}, r"line 1 has no field 'work'; found 'question', 'answer'; set task\.solution_field"),
        ([GOOD], {"answer_pattern": "["}, r"answer_pattern '\[' is not a regular expression"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_with_a_remedy(tmp_path: Path, lines: list[Any], settings: dict[str, Any], message: str):
    with pytest.raises(TaskError, match=message):
        load_task(jsonl(tmp_path / "set.jsonl", lines, **settings))


def test_a_missing_file_a_folder_and_other_bytes_are_refused(tmp_path: Path):
    with pytest.raises(TaskError, match=r"there is no question file .*none\.jsonl; task\.path must name a file"):
        load_task(JsonlTaskConfig(kind="jsonl", path=tmp_path / "none.jsonl"))
    with pytest.raises(TaskError, match=r"cannot be read as UTF-8 text: .*directory"):
        load_task(JsonlTaskConfig(kind="jsonl", path=tmp_path))
    (tmp_path / "set.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="cannot be read as UTF-8 text"):
        load_task(JsonlTaskConfig(kind="jsonl", path=tmp_path / "set.jsonl"))
