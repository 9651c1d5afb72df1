"""Screening at each look of a run that ranks teachers in rounds, and whether their order is settled; one look where the target is another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from opdscope.config import NULL_CONTEXTS, Config
from opdscope.core.aggregation import simultaneous_quantile
from opdscope.core.randomness import generator
from opdscope.core.stopping import look_sizes, settled, spending_widths, standard_error_at
from opdscope.records import Role
from opdscope.summary.responses import Responses, read_responses
from opdscope.summary.teachers import QuestionGains, null_of, screen_questions, screen_responses

Screening = Mapping[tuple[str, str], QuestionGains]

Columns = Callable[[Screening], Float[np.ndarray, "question test"]]
"""Per-question numbers whose means are tested, from the screening of one look."""


_ALL = np.iinfo(np.int32).max
"""Beyond every rollout index."""


def planned_looks(config: Config) -> tuple[int, ...]:
    """Measured rollouts a question at each look that may be taken."""
    most = config.rollouts.num_rollouts
    return look_sizes(most, config.target.rounds) if config.target.kind == "rank" else (most,)


def screen_looks(tables: Mapping[str, pa.Table], config: Config) -> list[Screening]:
    """Screening at each finished look, the last one last; of a run without looks, or before its first one, of whatever is scored."""
    return _looks(*_responses(tables, config), config)


def _looks(responses: Responses, screened: Callable[[int, int], Screening], config: Config) -> list[Screening]:
    scored = np.any([own.known for own in responses.scored.values()], axis=0) if responses.scored else np.zeros_like(responses.present)
    least, sizes = int(np.min(scored.sum(axis=1), initial=responses.present.shape[1])), planned_looks(config)
    finished = [size for size in sizes if size <= least]
    if len(sizes) == 1 or not finished:
        return [screened(0, _ALL)]
    return [screened(0, size) for size in finished]


def _responses(tables: Mapping[str, pa.Table], config: Config) -> tuple[Responses, Callable[[int, int], Screening]]:
    """All responses, and the screening of those between two rollout indices."""
    real = [t.name for t in config.teachers if t.privileged_context not in NULL_CONTEXTS]
    informing = real if config.analysis.control_variates else []
    responses = read_responses(tables, informing)

    def screened(start: int, stop: int) -> Screening:
        if config.analysis.fitted_values:
            return screen_questions(rollouts_between(tables, start, stop), informing, real)
        return screen_responses(responses.between(start, stop))

    return responses, screened


def rollouts_between(tables: Mapping[str, pa.Table], start: int, stop: int) -> dict[str, pa.Table]:
    """The tables that screening reads, with the measured rollouts of these indices alone."""

    def chosen(table: pa.Table) -> Bool[np.ndarray, "row"]:
        index = table["rollout_index"].to_numpy()
        return (start <= index) & (index < stop)

    rollouts = tables["rollouts"]
    measured = np.array([role == Role.MEASURED for role in rollouts["role"].to_pylist()], dtype=bool)
    own = {name: tables[name].filter(pa.array(chosen(tables[name]))) for name in ("student_positions", "teacher_positions", "scores")}
    return {**tables, **own, "rollouts": rollouts.filter(pa.array(chosen(rollouts) & measured))}


def joint_width(looks: Sequence[Screening], columns: Columns, config: Config, *purpose: int | str) -> float:
    """Standard errors to either side at which the intervals of these means hold together, over all looks that may be taken.

    NaN where some mean has fewer than two questions.
    """
    source, level, planned = generator(config.seed, *purpose), config.analysis.confidence, len(planned_looks(config))
    if planned == 1:
        return simultaneous_quantile(columns(looks[-1]), level, source)
    return float(spending_widths([columns(look) for look in looks], planned, level, source)[-1])


def over_null(screening: Screening, name: str, objective: str, config: Config) -> Float[np.ndarray, "question"]:
    """A teacher's natural gain minus that of the null that it has to beat."""
    return screening[name, objective].natural_gain - null_of(screening, name, objective, config).natural_gain


@dataclass(frozen=True)
class Order:
    """How far the order of the top teachers is settled at the last look."""

    names: tuple[str, ...]
    """Real teachers, by gain over null."""
    undecided: tuple[tuple[str, str], ...]
    """Pairs still open; the second name is empty where it is the teacher against its null."""
    rollouts: int
    """Measured rollouts a question."""
    foretold: int
    """Rollouts a question at the look that is foretold to settle the order; the most that may be drawn where none is."""


def order_of(tables: Mapping[str, pa.Table], config: Config, seen: dict[tuple[int, int], Screening] | None = None) -> Order | None:
    """The order at the last finished look; None before the first one, or where no real teacher is scored.

    Args:
        tables: Every table of the run by name.
        config: The run's configuration.
        seen: Screening by first and last rollout, from earlier looks of the same run; what is screened now is added. None: nothing was.
    """
    sizes, known = planned_looks(config), {} if seen is None else seen
    responses, screened = _responses(tables, config)

    def screened_between(start: int, stop: int) -> Screening:
        if (start, stop) not in known:
            found = screened(start, stop)
            if stop == _ALL:  # of a look that is not finished
                return found
            known[start, stop] = found
        return known[start, stop]

    looks = _looks(responses, screened_between, config)
    present = {teacher for teacher, _ in looks[-1]}
    names = [t.name for t in config.teachers if t.privileged_context not in NULL_CONTEXTS and t.name in present]
    if not names:
        return None

    made: dict[int, Float[np.ndarray, "question test"]] = {}

    def columns(screening: Screening) -> Float[np.ndarray, "question test"]:
        if id(screening) not in made:
            made[id(screening)] = order_columns(screening, names, config)
        return made[id(screening)]

    values, size = columns(looks[-1]), sizes[len(looks) - 1]
    width = joint_width(looks, columns, config, "order")
    state = order_state(values, width, len(names), config)
    half = size // 2
    first = looks[-2] if len(looks) > 1 and sizes[len(looks) - 2] == half else screened_between(0, half)
    second = screened_between(half, 2 * half)
    halves = columns(first), columns(second)
    within = np.nan_to_num(_means((halves[0] - halves[1]) ** 2) / 4.0)
    foretold = sizes[-1]
    for later in reversed(sizes[len(looks) - 1 :]):
        errors = standard_error_at(values, within, later / size)
        if not np.all(settled(_means(values), width * errors, config.analysis.smallest_gain)[state.needed]):
            break
        foretold = later
    label = [(name, "") for name in names] + [(names[a], names[b]) for a, b in combinations(range(len(names)), 2)]
    undecided = tuple(label[i] for i in state.needed if not state.decided[i])
    return Order(tuple(names[i] for i in state.ranked), undecided, size, foretold)


def order_columns(screening: Screening, names: Sequence[str], config: Config) -> Float[np.ndarray, "question test"]:
    """What the order rests on, for the first objective: each teacher's gain over null, then the differences of every two."""
    over = [over_null(screening, name, config.objectives[0], config) for name in names]
    return np.stack([*over, *(first - second for first, second in combinations(over, 2))], axis=-1)


@dataclass(frozen=True)
class OrderState:
    """What one look says about columns of :func:`order_columns`."""

    ranked: list[int]
    """Teachers by gain over null, undefined ones last."""
    needed: list[int]
    """Columns on which the order of the top depends: each against its null and against all behind it."""
    decided: Bool[np.ndarray, "test"]
    """Columns whose interval excludes zero, or lies within what makes no difference."""


def order_state(values: Float[np.ndarray, "question test"], width: float, num_teachers: int, config: Config) -> OrderState:
    """Order, and which decisions stand, with intervals of `width` standard errors to either side."""
    means = _means(values)
    ranked = sorted(range(num_teachers), key=lambda i: (np.isnan(means[i]), -means[i]))
    first = ranked[: config.target.top]
    place = {pair: num_teachers + k for k, pair in enumerate(combinations(range(num_teachers), 2))}
    behind = [place[min(a, b), max(a, b)] for k, a in enumerate(first) for b in ranked[k + 1 :]]
    half = width * standard_error_at(values, np.zeros(values.shape[1]), 1.0)
    return OrderState(ranked, [*first, *behind], settled(means, half, config.analysis.smallest_gain))


def _means(values: Float[np.ndarray, "question test"]) -> Float[np.ndarray, "test"]:
    present = ~np.isnan(values)
    return np.sum(np.where(present, values, 0.0), axis=0) / np.where(present.any(axis=0), present.sum(axis=0), np.nan)
