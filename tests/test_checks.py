"""The check before a run: every fault that it promises to find is provoked here, and a sound setup has none."""

import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import opdscope
from fixtures.stored_runs import EXACT
from fixtures.tiny_models import save_tiny_model
from opdscope.cli import app
from opdscope.config import Config, PromptFormat, load_config
from opdscope.config.sections import DEFAULT_ANSWER_PATTERN
from opdscope.models.base import Sample, SampleRequest, ScoreRequest
from opdscope.models.memory import FreeMemory, free_memory
from opdscope.models.transformers import LanguageModel, load_language_model
from opdscope.pipeline.checks import CheckLine, State, check_setup
from opdscope.pipeline.checks.cost import check_memory, check_time
from opdscope.pipeline.checks.setup import Setup, load_each_model, load_questions
from opdscope.pipeline.checks.verifier import check_verifier
from opdscope.pipeline.plan import Plan, PlannedStage
from opdscope.records import Question
from opdscope.report import render_check
from opdscope.tasks import Task, VerifierSpec

QUESTIONS = tuple(Question(f"q{i}", f"{i}+{i + 1}", str(2 * i + 1)) for i in range(8))
NUMERIC = VerifierSpec("numeric", answer_pattern=DEFAULT_ANSWER_PATTERN)
TASK = Task(QUESTIONS, NUMERIC, PromptFormat())
OPEN, CLOSED = "<think>", "<think></think>"


def template(after: str = "", system: bool = True) -> str:
    drop = "" if system else "{% if message['role'] != 'system' %}"
    body = "{% for message in messages %}" + drop + "<bos>{{ message['content'] }};" + ("" if system else "{% endif %}") + "{% endfor %}"
    return body + "{% if add_generation_prompt %}<bos>a>" + after + "{% endif %}"


class Altered:
    """A model with some of its parts replaced."""

    def __init__(self, model: Any, **parts: Any) -> None:
        self._model, self._parts = model, parts

    def __getattr__(self, name: str) -> Any:
        return self._parts[name] if name in self._parts else getattr(self._model, name)


class Hot:
    """An engine that takes no notice of the temperature that it is asked for."""

    def __init__(self, model: Any) -> None:
        self._sampler = model.sampler(16)

    def sample(self, requests: Sequence[SampleRequest], temperature: float, progress: Any = None) -> list[list[Sample]]:
        return self._sampler.sample(requests, 2.0 * temperature, progress)


class Noisy:
    """A scorer in which something is random."""

    def __init__(self, model: Any, scale: float) -> None:
        self._scorer, self._scale, self.vocab_size = model.scorer(), scale, model.vocab_size

    def encode(self, requests: Sequence[ScoreRequest], progress: Any = None) -> Any:
        encoding, scale = self._scorer.encode(requests, progress), self._scale

        class Encoding:
            num_rows = encoding.num_rows

            def logprobs(self, start: int, stop: int, temperature: float) -> torch.Tensor:
                rows = encoding.logprobs(start, stop, temperature)
                return torch.log_softmax(rows + scale * torch.randn_like(rows), dim=-1)

        return Encoding()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    save_tiny_model(path / "student", "llama", chat_template=template())
    save_tiny_model(path / "other", "llama", seed=1, chat_template=template())
    save_tiny_model(path / "wider", "llama", num_others=3)
    return path


@pytest.fixture(scope="module")
def student(folder: Path) -> LanguageModel:
    return load_language_model(str(folder / "student"), device="cpu")


@pytest.fixture(scope="module")
def other(folder: Path) -> LanguageModel:
    return load_language_model(str(folder / "other"), device="cpu")


def with_template(model: LanguageModel, text: str) -> LanguageModel:
    tokenizer = type(model.tokenizer)(tokenizer_object=model.tokenizer._tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    tokenizer.chat_template = text
    return replace(model, tokenizer=tokenizer)


def config_for(folder: Path, *teachers: dict[str, Any], **sections: Any) -> Config:
    listed = list(teachers) or [{"name": "other", "teacher_model_name_or_path": str(folder / "other")}]
    data = {
        "student": {"model_name_or_path": str(folder / "student")},
        "teachers": listed,
        "task": {"kind": "chain", "num_questions": 8},
        "rollouts": {"max_completion_length": 24, "num_rollouts": 2},
        "engine": {"device": "cpu"},
    }
    return load_config({**data, **sections})


def lines_of(setup: Setup) -> dict[str, CheckLine]:
    return {line.name: line for line in check_setup(setup, probe_tokens=24).lines}


def verifier_lines(folder: Path, student: LanguageModel, task: Task, **engine: Any) -> dict[str, CheckLine]:
    config = config_for(folder, engine={"device": "cpu", "verifier_workers": 1, **engine})
    return {line.name.removeprefix("verifier, "): line for line in check_verifier(Setup(config, task, student))}


def test_a_sound_setup_passes_every_line_and_says_what_it_measured(folder: Path, student: LanguageModel, other: LanguageModel) -> None:
    config = config_for(folder, {"name": "other", "teacher_model_name_or_path": "x"}, {"name": "told", "privileged_context": "answer"})
    report = check_setup(Setup(config, TASK, student, {"other": other, "told": student}), probe_tokens=24)
    # a random network of another seed is far from the student, as it should be told
    states = {line.name: line.state for line in report.lines if line.name != "distance of other"}
    assert set(states.values()) == {State.PASS}, [line for line in report.lines if line.state is not State.PASS]
    assert list(report.prompts) == ["student", "other", "told"]
    assert "correct result is 1" in report.prompts["told"]
    assert not report.failed
    assert all(line.value and not line.remedy for line in report.lines if line.state is State.PASS)


def test_the_exact_world_passes_from_configuration_to_cost() -> None:
    report = opdscope.check(EXACT | {"task": {"kind": "exact", "num_questions": 8}})
    assert [line.name for line in report.lines if line.state is not State.PASS] == []
    assert report.plan is not None
    assert report.plan.expected_seconds is not None


def test_a_teacher_with_another_vocabulary_fails_and_the_others_are_looked_at(folder: Path) -> None:
    wider = {"name": "wider", "teacher_model_name_or_path": str(folder / "wider")}
    report = opdscope.check(config_for(folder, wider, {"name": "told", "privileged_context": "answer"}))
    by_name = {line.name: line for line in report.lines}
    assert by_name["vocabulary of wider"].state is State.FAIL
    assert "3 tokens differ" in by_name["vocabulary of wider"].value
    assert by_name["not checked"].value == "prompts and numbers of 'wider'"
    assert by_name["context of told"].state is State.PASS
    assert "memory" in by_name
    assert report.failed


def test_tokens_that_read_differently_fail_though_the_vocabularies_agree(
    folder: Path, student: LanguageModel, other: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = {str(folder / "student"): student, "other": Altered(other, decode=lambda ids: student.decode(ids).upper())}
    monkeypatch.setattr("opdscope.pipeline.experiment._load_model", lambda config, spec, name: loaded[name])
    _, teachers, lines = load_each_model(config_for(folder, {"name": "other", "teacher_model_name_or_path": "other"}))
    assert not teachers
    assert lines[-1].state is State.FAIL
    assert "have another text" in lines[-1].value


@pytest.mark.parametrize(("own", "theirs", "state"), [((1,), (0,), State.WARN), ((), (1,), State.FAIL), ((1,), (0, 1), State.PASS)])
def test_the_tokens_that_end_a_response_are_compared(
    folder: Path,
    student: LanguageModel,
    other: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    own: tuple[int, ...],
    theirs: tuple[int, ...],
    state: State,
) -> None:
    loaded = {str(folder / "student"): replace(student, eos_token_ids=own), "other": replace(other, eos_token_ids=theirs)}
    monkeypatch.setattr("opdscope.pipeline.experiment._load_model", lambda config, spec, name: loaded[name])
    _, _, lines = load_each_model(config_for(folder, {"name": "other", "teacher_model_name_or_path": "other"}))
    assert (lines[-1].name, lines[-1].state) == ("end of response of other", state)


def test_a_model_that_is_not_there_fails_and_says_what_was_not_checked(folder: Path) -> None:
    report = opdscope.check(config_for(folder, student={"model_name_or_path": "./nowhere"}))
    assert [(line.name, line.state) for line in report.lines] == [
        ("questions", State.PASS),
        ("student", State.FAIL),
        ("not checked", State.WARN),
    ]


def test_half_precision_is_named_with_what_it_costs(folder: Path) -> None:
    student = {"model_name_or_path": str(folder / "student"), "dtype": "bfloat16"}
    config = config_for(folder, {"name": "told", "privileged_context": "answer"}, student=student)
    model, teachers, lines = load_each_model(config)
    assert model is not None
    assert lines[0].state is State.WARN
    drift = lines_of(Setup(config, TASK, model, teachers))["sampler against scorer"]
    # the sampler's head computes in bfloat16 and the scorer's in float32: rounding of 2^-8 of logits near ten
    assert drift.state is State.WARN
    assert "float32" in drift.remedy


def test_few_questions_missing_questions_and_left_out_questions_are_told(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{i}?", "answer": "word" if i == 3 else i}) for i in range(9)))
    task = {"kind": "jsonl", "path": str(path)}
    left_out = load_questions(load_config(EXACT | {"task": task}))[1][0]
    assert left_out.state is State.WARN
    assert "1 (the answer cannot be verified as numeric)" in left_out.value
    few = load_questions(load_config(EXACT | {"task": task | {"num_questions": 3}}))[1][0]
    assert few.state is State.WARN
    assert "num_questions" in few.remedy
    report = opdscope.check(EXACT | {"task": task | {"path": str(tmp_path / "none.jsonl")}})
    assert "there is no question file" in report.lines[0].value
    assert report.failed


@pytest.mark.parametrize(
    ("text", "system", "state", "words"),
    [
        ("{% if add_generation_prompt %}<bos>a>{% endif %}", None, State.FAIL, "drops the question"),
        (template(system=False), "be brief", State.FAIL, "drops the system message"),
        ("<bos>" + template(), None, State.WARN, "stands there twice"),
    ],
)
def test_what_a_chat_template_swallows_or_doubles_is_seen(
    folder: Path, student: LanguageModel, text: str, system: str | None, state: State, words: str
) -> None:
    prompt = {"system": system, "plain": "{question}"}
    config = config_for(folder, {"name": "told", "privileged_context": "answer"}, prompt=prompt)
    changed = with_template(student, text)
    line = lines_of(Setup(config, TASK, changed, {"told": changed}))["prompt of student"]
    assert line.state is state
    assert words in line.value


def test_a_chat_template_that_refuses_the_prompt_fails_and_the_verifier_is_tried_still(folder: Path, student: LanguageModel) -> None:
    changed = with_template(student, "{{ raise_exception('no system turn here') }}")
    by_name = lines_of(Setup(config_for(folder), TASK, changed))
    assert by_name["prompt of student"].state is State.FAIL
    assert "no system turn here" in by_name["prompt of student"].value
    assert by_name["verifier, reference answers"].state is State.PASS


@pytest.mark.parametrize(("own", "theirs"), [(OPEN, ""), ("", OPEN), (OPEN, CLOSED), (CLOSED, "")])
def test_another_side_of_a_thought_fails(folder: Path, student: LanguageModel, other: LanguageModel, own: str, theirs: str) -> None:
    teachers = {"other": with_template(other, template(theirs))}
    by_name = lines_of(Setup(config_for(folder), TASK, with_template(student, template(own)), teachers))
    assert by_name["thought of other"].state is State.FAIL
    assert "same chat template" in by_name["thought of other"].remedy
    teachers = {"other": with_template(other, template(own))}
    same = lines_of(Setup(config_for(folder), TASK, with_template(student, template(own)), teachers))
    assert same["thought of other"].state is State.PASS


def test_a_student_that_opens_a_thought_which_its_prompt_has_opened_is_warned_of(folder: Path, student: LanguageModel) -> None:
    opened = with_template(student, template(OPEN))
    thinking = Altered(opened, token_text=lambda i: OPEN)
    line = lines_of(Setup(config_for(folder), TASK, thinking))["thought of the student"]
    assert line.state is State.WARN
    assert line.value == "responses begin inside <think>; 16 of 16 open one themselves"


def test_a_teacher_that_is_the_student_is_warned_of(folder: Path, student: LanguageModel) -> None:
    by_name = lines_of(Setup(config_for(folder, {"name": "plain"}), TASK, student, {"plain": student}))
    assert by_name["context of plain"].state is State.WARN


def test_a_context_that_cannot_be_built_is_warned_of(folder: Path, student: LanguageModel) -> None:
    task = replace(TASK, questions=tuple(replace(question, answer="7") for question in QUESTIONS))
    config = config_for(folder, {"name": "misled", "privileged_context": "unrelated_solution"})
    by_name = lines_of(Setup(config, task, student, {"misled": student}))
    assert by_name["context of misled"].state is State.WARN
    assert by_name["verifier, wrong answers"].state is State.PASS  # one more than a whole number is always there to try


def test_an_engine_that_draws_from_another_distribution_fails(folder: Path, student: LanguageModel) -> None:
    hot = Altered(student, sampler=lambda max_rows: Hot(student))
    line = lines_of(Setup(config_for(folder), TASK, hot))["sampler against scorer"]
    assert line.state is State.FAIL
    assert "temperature" in line.remedy


def test_an_engine_that_tells_no_probabilities_is_warned_of(folder: Path, student: LanguageModel) -> None:
    class Silent:
        def sample(self, requests: Any, temperature: float, progress: Any = None) -> list[list[Sample]]:
            drawn = student.sampler(16).sample(requests, temperature)
            return [[replace(sample, logprobs=None) for sample in group] for group in drawn]

    quiet = Altered(student, sampler=lambda max_rows: Silent())
    assert lines_of(Setup(config_for(folder), TASK, quiet))["sampler against scorer"].state is State.WARN


@pytest.mark.parametrize(("scale", "state"), [(0.02, State.WARN), (2.0, State.FAIL)])
def test_a_scorer_that_does_not_repeat_itself_is_no_zero_either(folder: Path, student: LanguageModel, scale: float, state: State) -> None:
    torch.manual_seed(0)
    noisy = Altered(student, scorer=lambda: Noisy(student, scale))
    by_name = lines_of(Setup(config_for(folder), TASK, noisy))
    assert by_name["scorer of student"].state is state
    assert "deterministic" in by_name["scorer of student"].remedy
    assert by_name["teacher = student"].state in (state, State.FAIL)  # ratios of probabilities double the noise


def test_a_teacher_that_says_what_the_student_says_is_warned_of_as_is_one_that_is_far_away(
    folder: Path, student: LanguageModel, other: LanguageModel
) -> None:
    config = config_for(folder, {"name": "copy", "teacher_model_name_or_path": "x"}, {"name": "far", "teacher_model_name_or_path": "y"})
    copy = load_language_model(str(folder / "student"), device="cpu")
    by_name = lines_of(Setup(config, TASK, student, {"copy": copy, "far": Altered(other, scorer=lambda: Noisy(other, 6.0))}))
    assert by_name["distance of copy"].state is State.WARN
    assert "choose another" in by_name["distance of copy"].remedy
    assert by_name["distance of far"].state is State.WARN
    assert "rendered prompts" in by_name["distance of far"].remedy


def test_a_student_without_words_fails(folder: Path, student: LanguageModel) -> None:
    class Mute:
        def sample(self, requests: Any, temperature: float, progress: Any = None) -> list[list[Sample]]:
            return [[Sample((), False) for _ in request.seeds] for request in requests]

    mute = Altered(student, sampler=lambda max_rows: Mute())
    assert lines_of(Setup(config_for(folder), TASK, mute))["numbers"].state is State.FAIL


@pytest.fixture
def own_verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lax_verifiers.py").write_text(
        textwrap.dedent(
            """
            import time

            def yes(response, answer, metadata):
                return True

            def contains(response, answer, metadata):
                return answer in response

            def unsure(response, answer, metadata):
                return True if response.endswith(": " + answer) else None

            def slow(response, answer, metadata):
                time.sleep(1000)
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("own_verifiers")
def test_a_verifier_that_says_yes_to_everything_fails(folder: Path, student: LanguageModel) -> None:
    by_name = verifier_lines(folder, student, replace(TASK, verifier=VerifierSpec("python", target="lax_verifiers:yes")))
    assert by_name["reference answers"].state is State.PASS
    assert by_name["wrong answers"].state is State.FAIL
    assert "16 of 16 count as right" in by_name["wrong answers"].value
    assert by_name["no answer"].state is State.FAIL


@pytest.mark.usefixtures("own_verifiers")
def test_a_verifier_that_looks_for_the_answer_anywhere_is_found_out(folder: Path, student: LanguageModel) -> None:
    """Question 0 has the answer 1, which stands in 11 and in 13."""
    task = replace(TASK, verifier=VerifierSpec("python", target="lax_verifiers:contains"))
    numbers = tuple(replace(q, answer=a) for q, a in zip(QUESTIONS, ("1", "11", "2", "22", "3", "33", "4", "44"), strict=True))
    line = verifier_lines(folder, student, replace(task, questions=numbers))["wrong answers"]
    assert line.state in (State.WARN, State.FAIL)
    assert "11 for 1" in line.value


@pytest.mark.usefixtures("own_verifiers")
def test_a_verifier_that_does_not_know_leaves_responses_out_and_that_is_told(folder: Path, student: LanguageModel) -> None:
    by_name = verifier_lines(folder, student, replace(TASK, verifier=VerifierSpec("python", target="lax_verifiers:unsure")))
    assert by_name["reference answers"].state is State.PASS
    assert by_name["wrong answers"].state is State.WARN
    assert by_name["no answer"].state is State.WARN
    assert "left out of every estimate" in by_name["no answer"].remedy


@pytest.mark.usefixtures("own_verifiers")
def test_a_verifier_that_hangs_fails_within_its_deadline(folder: Path, student: LanguageModel) -> None:
    task = replace(TASK, questions=QUESTIONS[:1], verifier=VerifierSpec("python", target="lax_verifiers:slow"))
    started = time.monotonic()
    line = verifier_lines(folder, student, task, verifier_deadline_seconds=0.3)["reference answers"]
    assert line.state is State.FAIL
    assert time.monotonic() - started < 30


def test_a_verifier_that_cannot_be_built_fails(folder: Path, student: LanguageModel) -> None:
    (line,) = verifier_lines(folder, student, replace(TASK, verifier=VerifierSpec("python", target="nothing:there"))).values()
    assert line.state is State.FAIL
    assert "cannot be imported" in line.value


def test_a_pattern_that_does_not_read_what_the_prompt_asks_for_fails(folder: Path, student: LanguageModel) -> None:
    task = replace(TASK, verifier=VerifierSpec("numeric", answer_pattern=r"RESULT (\d+)"))
    line = verifier_lines(folder, student, task)["reference answers"]
    assert line.state is State.FAIL
    assert "0 of 8 are right when written 'Answer: {answer}'" in line.value
    assert "answer_pattern" in line.remedy
    half = verifier_lines(folder, student, replace(TASK, verifier=VerifierSpec("numeric", answer_pattern=r"(\d)$")))
    assert "5 of 8 are right" in half["reference answers"].value  # 11, 13 and 15 have two digits
    assert "'11', '13', '15'" in half["reference answers"].value
    unknown = replace(task, prompt_format=PromptFormat(plain="{question}"))
    assert verifier_lines(folder, student, unknown)["reference answers"].state is State.WARN
    boxed = replace(TASK, prompt_format=PromptFormat(plain="{question}"))
    assert verifier_lines(folder, student, boxed)["reference answers"].state is State.PASS


def test_questions_without_answers_and_with_one_answer_are_warned_of(folder: Path, student: LanguageModel) -> None:
    none = replace(TASK, questions=tuple(replace(q, answer=" ") for q in QUESTIONS))
    (line,) = verifier_lines(folder, student, none).values()
    assert line.state is State.WARN
    same = replace(
        TASK, questions=tuple(replace(q, answer="yes") for q in QUESTIONS), verifier=VerifierSpec("exact", DEFAULT_ANSWER_PATTERN)
    )
    line = verifier_lines(folder, student, same)["wrong answers"]
    assert line.state is State.WARN
    assert "can be guessed" in line.remedy


def planned(seconds: float) -> Plan:
    return Plan((PlannedStage("rollouts", 10, 1000, 2000, seconds),), 10e9, "weights 10.0", "a guess", "a probe", "")


def test_memory_and_time_are_held_against_what_there_is() -> None:
    plan = planned(7200.0)
    assert check_memory(plan, FreeMemory(9e9, "memory")).state is State.FAIL
    assert check_memory(plan, FreeMemory(11e9, "memory")).state is State.WARN
    assert check_memory(plan, FreeMemory(40e9, "memory")).state is State.PASS
    assert check_memory(plan, None).state is State.WARN
    assert "2.0 h for 1,000 tokens" in check_time(plan).value
    assert check_time(planned(2 * 24 * 3600.0)).state is State.WARN
    free = free_memory("cpu")
    assert free is not None
    assert 0 < free.num_bytes < 1e15


def test_the_command_ends_with_1_where_something_fails_and_with_2_where_nothing_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "exact.yaml"
    path.write_text(json.dumps(EXACT | {"task": {"kind": "exact", "num_questions": 8}}))
    runner = CliRunner()
    good = runner.invoke(app, ["check", str(path), "--json"])
    assert good.exit_code == 0
    data = json.loads(good.stdout)
    assert not data["failed"]
    assert {line["state"] for line in data["lines"]} == {"pass"}
    assert data["plan"]["memory_bytes"] > 0
    bad = runner.invoke(app, ["check", str(path), "--set", "teachers.0.teacher_model_name_or_path=exact:nobody"])
    assert bad.exit_code == 1
    assert "FAIL" in bad.stdout
    assert "there is no model 'exact:nobody'" in " ".join(bad.stdout.split())
    unread = runner.invoke(app, ["check", str(tmp_path / "none.yaml")])
    assert isinstance(unread.exception, opdscope.OpdscopeError)  # `main` turns these into one sentence and exit code 2


def test_hostile_prompts_are_inert_in_the_terminal() -> None:
    report = opdscope.check(EXACT)
    shown = render_check(replace(report, prompts={"student": "\x1b[31mred[bold]"}))
    texts = [getattr(part, "plain", "") for part in shown.renderables]
    assert any("⟨U+001B⟩[31mred[bold]" in text for text in texts)


def test_a_sampler_tells_what_the_scorer_says_of_every_token_it_drew(student: LanguageModel) -> None:
    request = SampleRequest((3, 4, 5), 3, (), tuple(range(20)), 12)
    [samples] = student.sampler(7).sample([request], 0.7)
    encoding = student.scorer().encode([ScoreRequest((3, 4, 5), s.token_ids, tuple(range(len(s.token_ids)))) for s in samples])
    rows = encoding.logprobs(0, encoding.num_rows, 0.7)
    ids = torch.tensor([token for sample in samples for token in sample.token_ids])
    told = np.concatenate([sample.logprobs for sample in samples if sample.logprobs is not None])
    # float32 rounds logits of size ten by 1e-6, and a log-probability of size ten by as much
    assert np.allclose(told, rows.gather(1, ids[:, None])[:, 0].numpy(), atol=1e-4)
