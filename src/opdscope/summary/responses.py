"""Every scored response as the few numbers that screening needs of it: read once, then screened for any part of the rollouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from opdscope.core.screening import teacher_pushes
from opdscope.records import Outcome, Role
from opdscope.summary.controls import Controls, fitted_values
from opdscope.summary.paths import flat_lists, list_arrays
from opdscope.summary.positions import Rollout, rollouts_of

_KEY = ("question_id", "rollout_index")

READ: Mapping[str, tuple[str, ...]] = {
    "questions": ("question_id",),
    "rollouts": (*_KEY, "role", "outcome", "token_ids"),
    "teacher_positions": (*_KEY, "teacher", "log_ratio", "reverse_kl"),
    "scores": (*_KEY, "teacher", "objective", "taken_signal", "taken_gradient"),
}
"""Tables and columns that responses are read from."""
READ_FITTED: Mapping[str, tuple[str, ...]] = {**READ, "student_positions": (*_KEY, "entropy", "logprob")}
"""The same where values of prefixes are fitted."""

_Values = Mapping[Rollout, Float[np.ndarray, "position"]]


@dataclass(frozen=True)
class Scored:
    """Every (teacher, objective) at the measured rollouts."""

    keys: tuple[tuple[str, str], ...]
    """Teacher and objective, in the order in which they were stored."""
    known: Bool[np.ndarray, "key question rollout"]
    """Where it is scored; elsewhere the other numbers are zero."""
    pushes: Float[np.ndarray, "key 2 question rollout"]
    """Sum over a response of the centred signal, and of the centred gradient, at the tokens taken."""
    products: Float[np.ndarray, "key 2 question rollout control"]
    """Their products with the control variates; no controls where nothing informs."""
    weighted: Float[np.ndarray, "key 2 question rollout"] | None
    """Like the pushes, each token weighted by the fitted value of its prefix; None without fitted values."""


@dataclass(frozen=True)
class Responses:
    """The measured rollouts of a run: one column per rollout index."""

    index: Int[np.ndarray, "rollout"]
    """Rollout indices, rising."""
    present: Bool[np.ndarray, "question rollout"]
    """Where a rollout is stored."""
    outcomes: Float[np.ndarray, "question rollout"]
    """1 for CORRECT, 0 for INCORRECT and TRUNCATED, NaN for UNVERIFIABLE and where no rollout is stored."""
    divergences: Mapping[str, Float[np.ndarray, "question rollout"]]
    """By teacher: KL(student ‖ teacher) of a response in nats, NaN where it is undefined or not scored."""
    compared: Mapping[str, Bool[np.ndarray, "question rollout"]]
    """By teacher: where that is stored."""
    scored: Scored
    """What teachers say of them."""

    def between(self, start: int, stop: int) -> "Responses":
        """Those of the rollouts from index `start` up to, without, `stop`; fitted values would be other ones.

        Raises:
            ValueError: If there are fitted values.
        """
        scored = self.scored
        if scored.weighted is not None:
            raise ValueError("fitted values belong to the rollouts that they were fitted to; read the part anew")
        own = slice(*np.searchsorted(self.index, [start, stop]))
        part = replace(scored, known=scored.known[..., own], pushes=scored.pushes[..., own], products=scored.products[..., own, :])
        return Responses(
            self.index[own],
            self.present[:, own],
            self.outcomes[:, own],
            {name: values[:, own] for name, values in self.divergences.items()},
            {name: values[:, own] for name, values in self.compared.items()},
            part,
        )


def read_responses(tables: Mapping[str, pa.Table], informing: Sequence[str] = (), foretelling: Sequence[str] | None = None) -> Responses:
    """The measured rollouts with what every teacher says of them, questions in the order of the run.

    Args:
        tables: Those of :data:`READ`, or of :data:`READ_FITTED`.
        informing: Teachers whose log-ratios serve as control variates: see :mod:`opdscope.core.controls`.
        foretelling: Teachers whose log-odds so far enter the fitted values of prefixes, see :mod:`opdscope.core.values`; None for no fitted values.
    """
    rollouts = tables["rollouts"]
    measured = [role == Role.MEASURED for role in rollouts["role"].to_pylist()]
    rollouts = rollouts.select([*_KEY, "outcome"]).filter(pa.array(measured, pa.bool_()))
    index, inverse = np.unique(rollouts["rollout_index"].to_numpy(), return_inverse=True)
    question = {question_id: place for place, question_id in enumerate(tables["questions"]["question_id"].to_pylist())}
    places = np.array([question[q] for q in rollouts["question_id"].to_pylist()], dtype=np.int64), inverse
    shape = (len(question), len(index))
    present, outcomes = np.zeros(shape, dtype=bool), np.full(shape, np.nan)
    values = {Outcome.CORRECT.value: 1.0, Outcome.UNVERIFIABLE.value: np.nan}
    present[places] = True
    outcomes[places] = [values.get(outcome, 0.0) for outcome in rollouts["outcome"].to_pylist()]
    reader = _Reader(question, index, shape)
    divergences, compared = reader.divergences(tables["teacher_positions"])
    controls = Controls(tables, informing) if informing else None
    fitted: _Values | None = None
    if foretelling is not None:
        known = {q: dict(zip(index.tolist(), outcomes[place].tolist(), strict=True)) for q, place in question.items()}
        fitted = fitted_values(tables, known, foretelling) or None
    return Responses(index, present, outcomes, divergences, compared, reader.scored(tables["scores"], controls, len(informing), fitted))


class _Reader:
    """Rows of scored responses at their places in arrays of questions and rollouts."""

    def __init__(self, question: Mapping[str, int], index: Int[np.ndarray, "rollout"], shape: tuple[int, int]) -> None:
        self._question, self._index, self._shape = question, index, shape

    def _places(self, table: pa.Table) -> tuple[Int[np.ndarray, "row"], Int[np.ndarray, "row"]]:
        names, row = _labels(table, "question_id")
        questions = np.array([self._question[name] for (name,) in names], dtype=np.int64)
        return questions[row], np.searchsorted(self._index, table["rollout_index"].to_numpy())

    def divergences(self, table: pa.Table) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """By teacher: KL of each response, and where it is stored."""
        places, sums = self._places(table), teacher_pushes(*flat_lists(table["reverse_kl"]))
        found: dict[str, np.ndarray] = {}
        compared: dict[str, np.ndarray] = {}
        names, teacher = _labels(table, "teacher")
        for k, (name,) in enumerate(names):
            rows = teacher == k
            own = tuple(place[rows] for place in places)
            found[name], compared[name] = np.full(self._shape, np.nan), np.zeros(self._shape, dtype=bool)
            found[name][own], compared[name][own] = sums[rows], True
        return found, compared

    def scored(self, table: pa.Table, controls: Controls | None, num_controls: int, values: _Values | None) -> Scored:
        """Every teacher and objective."""
        (questions, rollouts), (keys, key) = self._places(table), _labels(table, "teacher", "objective")
        known = np.zeros((len(keys), *self._shape), dtype=bool)
        known[key, questions, rollouts] = True
        pushes, products = np.zeros((len(keys), 2, *self._shape)), np.zeros((len(keys), 2, *self._shape, num_controls))
        weighted = None if values is None else np.zeros(pushes.shape)
        names = rollouts_of(table) if controls is not None or values is not None else []
        place, columns = (key, slice(None), questions, rollouts), ("taken_signal", "taken_gradient")
        pushes[place] = np.transpose([teacher_pushes(*flat_lists(table[column])) for column in columns])
        centred = [list_arrays(table[column]) for column in columns]
        if controls is not None:
            products[place] = controls.products(names, *centred)
        if weighted is not None and values is not None:
            weighted[place] = [[values[name] @ own for own in row] for name, *row in zip(names, *centred, strict=True)]
        return Scored(tuple((teacher, objective) for teacher, objective in keys), known, pushes, products, weighted)


def _labels(table: pa.Table, *names: str) -> tuple[list[tuple[str, ...]], Int[np.ndarray, "row"]]:
    """The combinations of labels, in the order in which they first appear, and which of them each row has."""
    code = np.zeros(table.num_rows, dtype=np.int64)
    for name in names:
        encoded = table[name].combine_chunks().dictionary_encode()
        code = code * len(encoded.dictionary) + encoded.indices.to_numpy()
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(first)
    found = [tuple(table[name][row].as_py() for name in names) for row in first[order].tolist()]
    return found, np.argsort(order)[place]
