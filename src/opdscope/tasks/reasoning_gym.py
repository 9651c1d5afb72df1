"""Questions and scorers of reasoning-gym's generators."""

import dataclasses
import difflib
import json
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from opdscope.config import PromptFormat, ReasoningGymTaskConfig
from opdscope.core.randomness import derive_seed
from opdscope.errors import TaskError
from opdscope.records import Question
from opdscope.tasks.answers import compile_answer_pattern
from opdscope.tasks.base import Task, VerifierSpec
from opdscope.tasks.extras import require

_TUPLE = "__tuple__"


def load_reasoning_gym(config: ReasoningGymTaskConfig) -> Task:
    """The first so many different questions of a generator.

    A generator is deterministic in its seed and options, but may say the same twice; repetitions are passed over. So is, counted in
    `Task.skipped`, a question whose reference answer its own scorer does not give full marks. `Question.metadata` holds the whole entry.

    Raises:
        TaskError: If reasoning-gym is missing, there is no such generator, it refuses an option, or it has too few different questions.
    """
    compile_answer_pattern(config.answer_pattern)
    options = json.dumps(config.options, sort_keys=True)
    spec = VerifierSpec(kind="reasoning_gym", answer_pattern=config.answer_pattern, target=config.dataset, options=options)
    skipped: Counter[str] = Counter()
    questions: list[Question] = []
    with _own_global_randomness(config):
        dataset = create_dataset(config.dataset, config.options, size=4 * config.num_questions + 64, seed=config.seed)
        for entry in _different(dataset):
            if not _accepts_own_answer(dataset, entry):
                skipped["the generator's scorer refuses the reference answer"] += 1
                continue
            question_id = f"{config.dataset}-{config.seed}-{len(questions):05d}"
            answer = "" if entry["answer"] is None else str(entry["answer"])
            questions.append(Question(question_id, entry["question"], answer, encode_entry(entry)))
            if len(questions) == config.num_questions:
                break
    if len(questions) < config.num_questions:
        raise TaskError(
            f"reasoning-gym generator {config.dataset!r} gave only {len(questions)} different questions with these options in "
            f"{len(dataset)} draws, but num_questions is {config.num_questions}; ask for fewer or widen task.options"
        )
    return Task(tuple(questions), spec, PromptFormat(), num_skipped=sum(skipped.values()), skipped=dict(skipped))


def reasoning_gym_scorer(spec: VerifierSpec) -> Callable[[str, str], float]:
    """The generator's own scorer, as a function of (answer, metadata of the question); some look at the generator's options."""
    dataset = create_dataset(spec.target or "", json.loads(spec.options), size=1, seed=0)
    return lambda answer, metadata: float(dataset.score_answer(answer, decode_entry(metadata)))


def create_dataset(name: str, options: dict[str, Any], size: int, seed: int) -> Any:
    """The generator with its options.

    Raises:
        TaskError: If reasoning-gym is missing, there is no such generator, or it refuses an option.
    """
    gym = require("reasoning_gym")
    datasets = require("reasoning_gym.factory").DATASETS
    if name not in datasets:
        near = difflib.get_close_matches(name, datasets, n=3, cutoff=0.4)
        raise TaskError(f"reasoning-gym has no generator {name!r}; {_did_you_mean(near) or f'there are {len(datasets)}, see its gallery'}")
    valid = sorted({setting.name for setting in dataclasses.fields(datasets[name][1])} - {"size", "seed"})
    for option in options:
        if option in ("size", "seed"):
            raise TaskError(f"task.options.{option} is not an option here; set task.{'num_questions' if option == 'size' else 'seed'}")
        if option not in valid:
            near = difflib.get_close_matches(option, valid, n=3, cutoff=0.4)
            raise TaskError(f"generator {name!r} has no option {option!r}; {_did_you_mean(near) or 'it has ' + ', '.join(valid)}")
    try:
        return gym.create_dataset(name, size=size, seed=seed, **options)
    except Exception as error:  # generators check their options with assertions, and some only fail on use
        raise TaskError(f"reasoning-gym generator {name!r} refuses the options {options}: {error or type(error).__name__}") from error


def encode_entry(entry: dict[str, Any]) -> str:
    """An entry as JSON. Tuples are marked, for scorers compare with them; what JSON does not know becomes text."""
    return json.dumps(_marked(entry), default=str)


def decode_entry(metadata: str) -> dict[str, Any]:
    """The entry as the scorer wants it."""
    return json.loads(metadata, object_hook=lambda value: tuple(value[_TUPLE]) if value.keys() == {_TUPLE} else value)


def _marked(value: Any) -> Any:
    if isinstance(value, tuple):
        return {_TUPLE: [_marked(part) for part in value]}
    if isinstance(value, list):
        return [_marked(part) for part in value]
    if isinstance(value, dict):
        return {key: _marked(part) for key, part in value.items()}
    return value


def _different(dataset: Any) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for index in range(len(dataset)):
        entry = dataset[index]
        if entry["question"] not in seen:
            seen.add(entry["question"])
            yield entry


def _accepts_own_answer(dataset: Any, entry: dict[str, Any]) -> bool:
    """Also after the way through JSON; puzzles with many right answers have no reference to check."""
    if entry["answer"] is None:
        return True
    try:
        return dataset.score_answer(entry["answer"], decode_entry(encode_entry(entry))) == 1.0
    except Exception:  # whatever a scorer stumbles over, the worker would stumble over it too
        return False


def _did_you_mean(near: list[str]) -> str:
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


@contextmanager
def _own_global_randomness(config: ReasoningGymTaskConfig) -> Generator[None]:
    """A few generators draw from the global random state: seed it, and put the caller's back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = derive_seed("reasoning-gym", config.dataset, config.seed) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
