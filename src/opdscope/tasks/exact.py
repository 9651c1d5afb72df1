"""The questions of an exact world: numbers, each with its own student and teachers."""

from opdscope.config import ExactTaskConfig
from opdscope.records import Question
from opdscope.tasks.base import EMBEDDED_PROMPT_FORMAT, Task, VerifierSpec


def load_exact_task(config: ExactTaskConfig) -> Task:
    """Questions 0 to `num_questions` - 1; the right answer to each is 1."""
    questions = tuple(
        Question(question_id=f"exact-{config.seed}-{index:05d}", text=str(index), answer="1") for index in range(config.num_questions)
    )
    return Task(questions, VerifierSpec(kind="final_answer"), EMBEDDED_PROMPT_FORMAT)
