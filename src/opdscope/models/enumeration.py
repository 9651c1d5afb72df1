"""Success at a node of any model by enumeration of its responses, with bounds that hold whatever was left out.

For models and tasks so small that most of the probability lies on a few thousand responses: there the truth can be had to three digits
without sampling, and estimates be held against it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import to_device
from jaxtyping import Bool, Float

from opdscope.models.base import Model, Scorer, ScoreRequest


@dataclass(frozen=True)
class EnumeratedNode:
    """What is known for certain about a node; probabilities are given the node, per next token j."""

    probs: Float[np.ndarray, "vocab"]
    """Student probability p_j, summing to one."""
    correct: Float[np.ndarray, "vocab"]
    """Probability C_j of the correct responses found that go on with j."""
    pruned: Float[np.ndarray, "vocab"]
    """Probability R_j of the pruned prefixes that go on with j: nothing is known of what they lead to."""
    num_scored: int
    """Prefixes scored, the node itself included."""

    @property
    def success_low(self) -> Float[np.ndarray, "vocab"]:
        """Lower bound of S_j, C_j / p_j; 0 where p_j is 0."""
        return np.divide(self.correct, self.probs, out=np.zeros_like(self.probs), where=self.probs > 0)

    @property
    def success_high(self) -> Float[np.ndarray, "vocab"]:
        """Upper bound of S_j, (C_j + R_j) / p_j; 1 where p_j is 0."""
        ratio = np.divide(self.correct + self.pruned, self.probs, out=np.ones_like(self.probs), where=self.probs > 0)
        return np.minimum(ratio, 1.0)  # rounding can pass it by 1e-16

    @property
    def value_low(self) -> float:
        """Lower bound of V = Σ p_j S_j."""
        return float(self.correct.sum())

    @property
    def value_high(self) -> float:
        """Upper bound of V."""
        return min(float(self.correct.sum() + self.pruned.sum()), 1.0)

    @property
    def residual(self) -> float:
        """Probability of everything that was pruned: the width of the bounds of V."""
        return float(self.pruned.sum())


def enumerate_success(
    model: Model,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    is_correct: Callable[[Sequence[int]], bool],
    *,
    max_length: int,
    temperature: float = 1.0,
    min_prob: float = 1e-6,
    batch_rows: int = 1024,
) -> EnumeratedNode:
    r"""Bounds on success and value at a node, from all of the student's responses that are not too improbable.

    Args:
        model: The student.
        prompt_ids: Token ids of its prompt.
        response_ids: Response tokens before the node; none for the first one.
        is_correct: Judges a finished response, given as its token ids from the first one on, the end-of-sequence token included.
        max_length: Most tokens in a response, those before the node counted; a response without an end-of-sequence token by then is
            truncated, and that is not success.
        temperature: Of the policy.
        min_prob: A prefix or response of at most this probability, given the node, is pruned. A smaller one narrows the bounds and costs
            more passes. 0 prunes nothing of positive probability: for worlds that are finite and small only.
        batch_rows: Prefixes given to the scorer at once.

    Returns:
        Lower and upper bounds for every next token. They are [0, 1] for a token that was pruned itself.

    Raises:
        ValueError: If the response has ended or is too long, `min_prob` lies outside [0, 1), or `batch_rows` is less than 1.

    Notes:
        Proof that truth lies within the bounds. Let p(y) be the probability, given the node, of going on with the tokens y. Every
        continuation that starts with j is in exactly one of four classes: it is finished and was judged correct (total probability
        :math:`C_j`), it is finished and was judged incorrect, it was cut by `max_length`, or it passes through a pruned prefix. No pruned
        prefix begins with another one, since nothing is expanded below one; so the fourth class has the sum of their probabilities,
        :math:`R_j`. Success is the conditional probability of all correct continuations,
        :math:`S_j = \frac{1}{p_j} \sum_{y: y_1 = j} p(y)\,[y \text{ correct}]`. The first class adds :math:`C_j` to the sum, the second and
        third nothing, and the fourth between 0 and :math:`R_j`. Hence :math:`C_j \le p_j S_j \le C_j + R_j`, and summed over j
        :math:`\sum_j C_j \le V \le \sum_j C_j + \sum_j R_j`. No independence, no smoothness and no sampling is used. p is the scorer's, with
        each row's rounding divided out, so the bounds are about this numerical p; sums are in float64 and add 1e-12 at most.

        Cost: at most :math:`1 / \text{min\_prob}` prefixes a length, since those of one length exclude each other.

    Example:
        >>> from opdscope.models.exact import ExactModel, TreeWorld
        >>> student = ExactModel(TreeWorld(depth=2), "itself")
        >>> _, prompt = student.render_prompt("Q0:")
        >>> node = enumerate_success(student, prompt, (), lambda ids: ids[-1] == 0, max_length=3, min_prob=0.0)
        >>> node.residual, node.num_scored, abs(node.value_low - student.world.success_rate(0)) < 1e-12
        (0.0, 21, True)
    """
    prompt, response = tuple(prompt_ids), tuple(response_ids)
    _check(response, model.eos_token_ids, max_length, min_prob, batch_rows)
    scorer = model.scorer()
    ends = np.isin(np.arange(scorer.vocab_size), model.eos_token_ids)
    tree = _Tree(response, ends, is_correct, max_length, min_prob)
    [probs] = _next_probs(scorer, prompt, [response], temperature)
    tree.expand(_Prefix((), None, 1.0), probs)
    num_scored = 1
    while tree.open:
        batch = [tree.open.popleft() for _ in range(min(batch_rows, len(tree.open)))]
        rows = _next_probs(scorer, prompt, [response + prefix.token_ids for prefix in batch], temperature)
        for prefix, row in zip(batch, rows, strict=True):
            tree.expand(prefix, row)
        num_scored += len(batch)
    return EnumeratedNode(probs, tree.correct, tree.pruned, num_scored)


@dataclass(frozen=True)
class _Prefix:
    token_ids: tuple[int, ...]
    """Tokens after the node."""
    first: int | None
    """The first of them; None at the node itself."""
    mass: float
    """Probability given the node."""


class _Tree:
    """The prefixes that wait for their scores, first in, first out, and the probability that is settled."""

    def __init__(
        self,
        response: tuple[int, ...],
        ends: Bool[np.ndarray, "vocab"],
        is_correct: Callable[[Sequence[int]], bool],
        max_length: int,
        min_prob: float,
    ) -> None:
        self.open: deque[_Prefix] = deque()
        self.correct, self.pruned = np.zeros(len(ends)), np.zeros(len(ends))
        self._response, self._ends, self._is_correct = response, ends, is_correct
        self._max_length, self._min_prob = max_length, min_prob

    def expand(self, prefix: _Prefix, probs: Float[np.ndarray, "vocab"]) -> None:
        """Settle what a prefix can go on with, and queue the rest."""
        masses = prefix.mass * probs
        if len(self._response) + len(prefix.token_ids) + 1 == self._max_length:
            masses = np.where(self._ends, masses, 0.0)  # the others are truncated: not correct, and certainly so
        kept = masses > self._min_prob
        lost = np.where(kept, 0.0, masses)
        if prefix.first is None:
            self.pruned += lost
        else:
            self.pruned[prefix.first] += lost.sum()
        for token in np.flatnonzero(kept).tolist():
            first = token if prefix.first is None else prefix.first
            child = _Prefix((*prefix.token_ids, token), first, float(masses[token]))
            if not self._ends[token]:
                self.open.append(child)
            elif self._is_correct(self._response + child.token_ids):
                self.correct[first] += child.mass


def _next_probs(
    scorer: Scorer, prompt: tuple[int, ...], responses: Sequence[tuple[int, ...]], temperature: float
) -> Float[np.ndarray, "response vocab"]:
    """Next-token probabilities after each response, summing to one."""
    encoding = scorer.encode([ScoreRequest(prompt, response, (len(response),)) for response in responses])
    logprobs = to_device(encoding.logprobs(0, encoding.num_rows, temperature), "cpu")
    probs = np.exp(np.asarray(logprobs, dtype=np.float64))
    return probs / probs.sum(axis=-1, keepdims=True)


def _check(response: tuple[int, ...], eos_token_ids: Sequence[int], max_length: int, min_prob: float, batch_rows: int) -> None:
    if set(response) & set(eos_token_ids):
        raise ValueError("a node lies before the end of its response, but response_ids holds an end-of-sequence token; cut it there")
    if len(response) >= max_length:
        raise ValueError(f"response_ids must be shorter than max_length = {max_length}, found {len(response)} tokens")
    if not 0 <= min_prob < 1:
        raise ValueError(f"min_prob must lie in [0, 1), found {min_prob}")
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be at least 1, found {batch_rows}")
