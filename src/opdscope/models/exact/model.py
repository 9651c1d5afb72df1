"""Exact worlds behind the protocols of real engines, so that the whole pipeline runs on them unchanged."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opdscope.core.randomness import uniforms
from opdscope.errors import ModelError
from opdscope.models.base import Progress, Sample, SampleRequest, ScoreRequest
from opdscope.models.exact.world import START, TEACHERS, World, tables

_PROMPT = re.compile(r"(?:([AS])\S* )?Q(\d+):$")
_SHOWN = {None: "itself", "A": "weak", "S": "fair"}
"""What the student turns into with a context: with the answer it slips a little less, with a solution less still. It cannot tell another
question's solution from this one's."""


@dataclass(frozen=True, eq=False)
class ExactModel:
    """A teacher or the student of a world; implements :class:`~opdscope.models.base.Model`."""

    world: World
    """The rules."""
    role: str
    """One of `TEACHERS`."""

    engine = "exact"
    dtype = "float64"
    revision = None
    num_parameters = 0
    weight_bytes = 0
    cache_bytes_per_token = 0

    @property
    def name(self) -> str:
        """As the config names it."""
        return f"exact:{self.role}"

    @property
    def vocab_size(self) -> int:
        """Tokens of the world."""
        return len(self.world.texts)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The world's answers."""
        return self.world.eos_token_ids

    @property
    def fingerprint(self) -> str:
        """Of the rules and the role."""
        return hashlib.sha256(repr((self.world, self.role)).encode()).hexdigest()

    @property
    def tokenizer_hash(self) -> str:
        """Of the tokens' texts."""
        return hashlib.sha256(repr(self.world.texts).encode()).hexdigest()

    @property
    def token_to_id(self) -> dict[str, int]:
        """The vocabulary."""
        return {text: index for index, text in enumerate(self.world.texts)}

    def render_prompt(self, user: str, system: str | None = None) -> tuple[str, tuple[int, ...]]:
        """The prompt's characters, as ids beyond the vocabulary: the world reads the question's number and the kind of context.

        Raises:
            ModelError: If the text is not a prompt of this world.
        """
        if system is not None or not _PROMPT.search(user):
            raise ModelError(f"{self.name!r} reads prompts such as 'Q7:' or 'A1 Q7:', found {user[:60]!r}; leave `prompt` out")
        return user, tuple(self.vocab_size + ord(character) for character in user)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The tokens side by side; the answer is `>1` or `>0`."""
        return "".join(self.world.texts[token] for token in token_ids)

    def token_text(self, token_id: int) -> str:
        """Text of one token."""
        return self.world.texts[token_id]

    def sampler(self, max_rows: int) -> "ExactSampler":
        """A sampler; `max_rows` changes nothing."""
        return ExactSampler(self)

    def scorer(self) -> "ExactScorer":
        """A scorer."""
        return ExactScorer(self)

    def logprobs(self, prompt: Sequence[int]) -> Float[np.ndarray, "position state token"]:
        """What the model does after a prompt."""
        found = _PROMPT.search("".join(chr(token - self.vocab_size) for token in prompt))
        if found is None:
            raise ValueError("the prompt is not one of this world")
        return tables(self.world, _SHOWN[found[1]] if self.role == "itself" else self.role, int(found[2]))


class ExactSampler:
    """Draws by inversion of the exact distribution."""

    def __init__(self, model: ExactModel) -> None:
        """Sample from a model."""
        self._model = model
        self._next_states = model.world.next_states()

    def sample(self, requests: Sequence[SampleRequest], temperature: float, progress: Progress | None = None) -> list[list[Sample]]:
        """See :class:`~opdscope.models.base.Sampler`."""
        results: list[list[Sample]] = []
        for request in requests:
            prompt, response = _split(request.trunk[: request.length], self._model.vocab_size)
            response = (*response, *request.forced)
            logprobs = _at(self._model.logprobs(prompt), temperature)
            start = int(_walk(self._next_states, response)[-1])
            drawn = self._draw(logprobs, len(response), start, request)
            results.append(drawn)
            if progress is not None:
                progress(sum(len(sample.token_ids) for sample in drawn))
        return results

    def _draw(self, logprobs: Float[np.ndarray, "position state token"], position: int, state: int, request: SampleRequest) -> list[Sample]:
        """All continuations of one prefix, side by side: none ends before the answer, and all end there."""
        seeds = np.array(request.seeds, dtype=np.uint64)
        mirrored = np.array(request.mirrored) if request.mirrored else None
        states = np.full(len(seeds), state)
        steps = min(request.max_new_tokens, len(logprobs) - position)
        drawn, taken = np.zeros((len(seeds), steps), dtype=np.int64), np.zeros((len(seeds), steps))
        cumulative = np.cumsum(np.exp(logprobs), axis=-1)
        for step in range(steps):
            numbers = uniforms(seeds, np.full(len(seeds), step), mirrored) * cumulative[position + step, states, -1]
            drawn[:, step] = np.sum(cumulative[position + step, states] <= numbers[:, None], axis=-1)
            taken[:, step] = logprobs[position + step, states, drawn[:, step]]
            states = self._next_states[position + step, states, drawn[:, step]]
        finished = position + steps == len(logprobs) and steps > 0
        return [Sample(tuple(row), finished, own) for row, own in zip(drawn.tolist(), taken, strict=True)]


class ExactEncoding:
    """The places of the wanted rows; see :class:`~opdscope.models.base.Encoding`."""

    def __init__(self, places: list[tuple[Float[np.ndarray, "position state token"], int, int]], vocab_size: int) -> None:
        """Hold table, position and state of each row."""
        self.num_rows = len(places)
        self._places, self._vocab_size = places, vocab_size

    def logprobs(self, start: int, stop: int, temperature: float) -> Float[np.ndarray, "row token"]:
        """Float64 log-probabilities of rows [start, stop)."""
        rows = [table[position, state] for table, position, state in self._places[start:stop]]
        return _at(np.array(rows).reshape(len(rows), self._vocab_size), temperature)


class ExactScorer:
    """Looks the distributions up."""

    def __init__(self, model: ExactModel) -> None:
        """Score with a model."""
        self._model, self.vocab_size = model, model.vocab_size
        self._next_states = model.world.next_states()

    def encode(self, requests: Sequence[ScoreRequest], progress: Progress | None = None) -> ExactEncoding:
        """See :class:`~opdscope.models.base.Scorer`."""
        places: list[tuple[Float[np.ndarray, "position state token"], int, int]] = []
        for request in requests:
            prompt, begun = _split(request.prompt_ids, self._model.vocab_size)
            table, first = self._model.logprobs(prompt), len(begun)
            states = _walk(self._next_states, (*begun, *request.response_ids[: max(request.positions, default=0)]))
            places += [(table, first + position, int(states[first + position])) for position in request.positions]
            if progress is not None:
                progress(max(request.positions, default=0))
        return ExactEncoding(places, self.vocab_size)


def load_exact(name: str, world: World) -> ExactModel:
    """The model behind `exact:ROLE`.

    Raises:
        ModelError: If there is no such role.
    """
    role = name.removeprefix("exact:")
    if role not in TEACHERS:
        raise ModelError(
            f"there is no model {name!r} in an exact world; those there are: {', '.join(f'exact:{each}' for each in TEACHERS)}"
        )
    return ExactModel(world, role)


def _split(token_ids: Sequence[int], vocab_size: int) -> tuple[Sequence[int], tuple[int, ...]]:
    """Prompt and response: only a prompt has ids beyond the vocabulary."""
    length = sum(token >= vocab_size for token in token_ids)
    return token_ids[:length], tuple(token_ids[length:])


def _walk(next_states: Int[np.ndarray, "position state token"], response: Sequence[int]) -> Int[np.ndarray, "position"]:
    """The state before each response token and after the last."""
    states = [START]
    for position, token in enumerate(response):
        states.append(int(next_states[position, states[-1], token]))
    return np.array(states)


def _at(logprobs: Float[np.ndarray, "*batch token"], temperature: float) -> Float[np.ndarray, "*batch token"]:
    if temperature == 1.0:
        return logprobs
    scaled = logprobs / temperature
    return scaled - np.log(np.sum(np.exp(scaled), axis=-1, keepdims=True))
