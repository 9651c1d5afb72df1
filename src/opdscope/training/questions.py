"""A task's questions as a trainer's data set, and its verifier as a reward function."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from opdscope.config import CONTEXTS, PromptFormat
from opdscope.contexts import Demonstration, attempts_by_question, build_context, fill
from opdscope.errors import TrainingError
from opdscope.records import Outcome
from opdscope.tasks import Task, VerifierPool, VerifyItem


def training_rows(
    task: Task, prompts: PromptFormat | None = None, demonstrations: Sequence[Demonstration] = (), *, chat: bool = False
) -> Dataset:
    """One row a question: `question_id`, `prompt`, `answer`, `metadata`, and a teacher's prompt per context, `teacher_answer` and so on.

    Args:
        task: The questions.
        prompts: Wording; None takes the task's own.
        demonstrations: The student's attempts, for the contexts that show some; questions without them have None there.
        chat: Prompts as messages, for a model with a chat template; else as text.
    """
    wording = prompts or task.prompt_format

    def shown(text: str | None) -> Any:
        if text is None or not chat:
            return text
        system = [] if wording.system is None else [{"role": "system", "content": wording.system}]
        return [*system, {"role": "user", "content": text}]

    attempts = attempts_by_question(demonstrations)
    rows: list[dict[str, Any]] = []
    for index, question in enumerate(task.questions):
        contexts = {kind: build_context(kind, index, task.questions, wording, attempts).text for kind in CONTEXTS if kind != "plain"}
        rows.append(
            {
                "question_id": question.question_id,
                "prompt": shown(fill(wording.plain, question=question.text)),
                "answer": question.answer,
                "metadata": question.metadata,
                **{f"teacher_{kind}": shown(text) for kind, text in contexts.items()},
            }
        )
    return Dataset.from_list(rows)


class TaskReward:
    """A task's verifier as a reward function for TRL's trainers: 1 correct, 0 incorrect or cut off, None unverifiable; a context manager."""

    __name__ = "task_reward"

    def __init__(self, task: Task, eos_token_ids: Sequence[int], num_workers: int = 1, deadline_seconds: float = 10.0) -> None:
        """Verify in processes of their own.

        Args:
            task: Whose verifier judges.
            eos_token_ids: Tokens that end a response; one without them was cut off.
            num_workers: Processes.
            deadline_seconds: A verification that takes longer is unverifiable.
        """
        self._eos, self._pool = set(eos_token_ids), VerifierPool(task.verifier, num_workers, deadline_seconds)

    def __enter__(self) -> "TaskReward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def __call__(
        self, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], answer: Sequence[str] | None = None,
        metadata: Sequence[str] | None = None, **_: Any,
    ) -> list[float | None]:  # fmt: skip
        """Judge completions, texts or messages.

        Raises:
            TrainingError: If the data set has no column `answer`.
        """
        if answer is None:
            raise TrainingError("the data set has no column 'answer', which the task's verifier compares responses with")
        extra = ["{}"] * len(answer) if metadata is None else metadata
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        ended = [bool(ids) and ids[-1] in self._eos for ids in completion_ids]
        items = [VerifyItem(*item) for item, end in zip(zip(texts, answer, extra, strict=True), ended, strict=True) if end]
        verdicts = iter(self._pool.verify(items))
        values = {Outcome.CORRECT: 1.0, Outcome.UNVERIFIABLE: None}
        return [values.get(next(verdicts), 0.0) if end else 0.0 for end in ended]
