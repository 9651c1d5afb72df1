"""The tasks that the package ships models for."""

from collections.abc import Mapping
from types import MappingProxyType

from opdscope.config import EmbeddedTaskConfig
from opdscope.core.randomness import generator
from opdscope.errors import TaskError
from opdscope.records import Question
from opdscope.tasks.addition import ADDITION
from opdscope.tasks.base import EMBEDDED_PROMPT_FORMAT, EmbeddedTask, Task, VerifierSpec
from opdscope.tasks.chain import CHAIN

EMBEDDED: Mapping[str, EmbeddedTask] = MappingProxyType({task.name: task for task in (CHAIN, ADDITION)})
"""By name."""


def load_embedded(config: EmbeddedTaskConfig) -> Task:
    """Questions drawn from the config's seed; a larger set of the same seed begins with the smaller one.

    Raises:
        TaskError: If more questions are asked for than there are.
    """
    task = EMBEDDED[config.kind]
    if config.num_questions > task.num_possible:
        raise TaskError(
            f"task {config.kind!r} has {task.num_possible:,} different questions, but num_questions is {config.num_questions:,}; "
            "ask for fewer"
        )
    rng = generator("task", config.kind, config.seed)
    texts: dict[str, None] = {}
    while len(texts) < config.num_questions:
        texts[task.draw_question(rng)] = None
    questions = tuple(
        Question(
            question_id=f"{config.kind}-{config.seed}-{index:05d}", text=text, answer=task.answer(text), solution=task.worked_solution(text)
        )
        for index, text in enumerate(texts)
    )
    return Task(questions, VerifierSpec(kind="final_answer"), EMBEDDED_PROMPT_FORMAT)
