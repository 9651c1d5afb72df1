"""Everything about the teacher that is used: weights, curriculum, and its place beside reinforcement learning."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from opdscope.advice.choice import Candidate
from opdscope.advice.curriculum import Curriculum, make_curriculum
from opdscope.advice.reinforcement import Reinforcement, mix_with_reinforcement
from opdscope.advice.tokens import read_node_gains, read_tokens
from opdscope.advice.weights import Parts, QuestionWeights, outcome_parts, question_weighting, token_parts
from opdscope.config import Config


@dataclass(frozen=True)
class Details:
    """What was worked out for the teacher that is used."""

    tokens: list[Parts]
    """Weights by each feature."""
    outcomes: Parts | None
    """Weights by outcome class; None without targeted rollouts."""
    questions: QuestionWeights
    """Weights of questions."""
    curriculum: Curriculum
    """Order of questions."""
    reinforcement: list[Reinforcement]
    """Beside GRPO."""

    @property
    def token_choice(self) -> Parts | None:
        """The feature whose weights bring most on held-out data, if that is shown to be above zero."""
        helping = [parts for parts in self.tokens if parts.helps]
        return max(helping, key=lambda parts: parts.improvement.value) if helping else None


def work_out(tables: Mapping[str, pa.Table], first: Candidate, config: Config) -> Details:
    """Weights, curriculum and mix for one teacher and objective."""
    tokens = read_tokens(tables, first.teacher, first.objective)
    nodes = read_node_gains(tables, first.teacher, first.objective, config)
    return Details(
        tokens=token_parts(tables, tokens, nodes, config),
        outcomes=None if nodes is None else outcome_parts(tables, tokens, nodes, config),
        questions=question_weighting(tokens, config),
        curriculum=make_curriculum(tokens, config),
        reinforcement=mix_with_reinforcement(tables, tokens, nodes, config),
    )
