"""What a task is: questions, how their answers are verified, and how they are put to a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from opdscope.config import PromptFormat
from opdscope.records import Question

VerifierKind = Literal["final_answer", "exact", "numeric", "math", "reasoning_gym", "python"]

EMBEDDED_PROMPT_FORMAT = PromptFormat(
    plain="Q{question}:",
    answer="A{answer} Q{question}:",
    solution="S{solution} Q{question}:",
    three_solutions=None,
    solution_and_mistake=None,
    mistake=None,
    hint=None,
    reference_solution="S{solution} Q{question}:",
    unrelated_solution="S{solution} Q{question}:",
)
"""The prompts that the embedded models were trained on. A solution of another question wears the same tag as one of this question, so a
model has to check whether it fits."""


@dataclass(frozen=True)
class VerifierSpec:
    """Which verifier judges the responses of a task; plain data, so that it can be sent to a worker process."""

    kind: VerifierKind
    """final_answer: what follows the last `>`, as text; exact, numeric, math: see `opdscope.tasks.verifiers`; reasoning_gym: the scorer
    of a generator; python: a function of your own, named by `target`."""
    answer_pattern: str | None = None
    """Regular expression that finds the final answer (first group, last match); None gives the whole response to the verifier."""
    target: str | None = None
    """For reasoning_gym the generator's name, for python the import path `module:function`."""
    options: str = "{}"
    """For reasoning_gym the generator's options, as JSON."""


@dataclass(frozen=True)
class Task:
    """Questions with their verifier and prompts."""

    questions: tuple[Question, ...]
    """No two have the same text."""
    verifier: VerifierSpec
    """Judges every response to every question."""
    prompt_format: PromptFormat
    """The task's own wording; `Config.prompt` goes before it."""
    num_skipped: int = 0
    """Questions of the source that were left out; the reasons are counted in `skipped`."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Reason → how many questions were left out for it."""


@dataclass(frozen=True)
class EmbeddedTask:
    """A generator of questions that the package ships models for."""

    name: str
    """`chain` or `addition`."""
    draw_question: Callable[[np.random.Generator], str]
    """Draws the text of a question."""
    worked_solution: Callable[[str], str]
    """The worked solution of a question's text; ends in `>` and the answer."""
    num_possible: int
    """How many different questions there are."""
    max_completion_length: int
    """Recommended limit on the tokens of a response; no worked solution reaches it."""

    def answer(self, question: str) -> str:
        """The reference answer."""
        return self.worked_solution(question).rpartition(">")[2]
