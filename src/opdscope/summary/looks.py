"""Screening at each look of a run that ranks teachers in rounds, and whether their order is settled; one look where the target is another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from opdscope.config import NULL_CONTEXTS, Config
from opdscope.core.aggregation import simultaneous_quantile
from opdscope.core.randomness import generator
from opdscope.core.stopping import SpendingBoundary, look_sizes, settled, spending_widths, standard_error_at
from opdscope.records import Role
from opdscope.summary.responses import Responses, read_responses
from opdscope.summary.teachers import QuestionGains, null_of, screen_questions, screen_responses

Screening = Mapping[tuple[str, str], QuestionGains]

Part = tuple[int, int]
"""Measured rollouts of every question from one index up to, without, another."""

_ORDER = ("order",)
"""What the random numbers of the order are for."""

_ALL = np.iinfo(np.int32).max
"""Beyond every rollout index."""


@dataclass
class Seen:
    """What the order of a run's teachers rests on, kept from one look to the next."""

    columns: dict[Part, tuple[list[str], Float[np.ndarray, "question test"]]] = field(default_factory=dict)
    """Real teachers that are screened in parts of the run, and :func:`order_columns` of them."""
    boundary: SpendingBoundary | None = None
    """Of the looks so far; None before the first one."""
    widths: list[float] = field(default_factory=list)
    """Standard errors to either side at each look."""


def planned_looks(config: Config) -> tuple[int, ...]:
    """Measured rollouts a question at each look that may be taken."""
    most = config.rollouts.num_rollouts
    return look_sizes(most, config.target.rounds) if config.target.kind == "rank" else (most,)


def screen_looks(tables: Mapping[str, pa.Table], config: Config) -> list[Screening]:
    """Screening at each finished look, the last one last; of a run without looks, or before its first one, of whatever is scored."""
    responses, screened = _responses(tables, config)
    return [screened(part) for part in _finished(responses, config)]


def _finished(responses: Responses, config: Config) -> list[Part]:
    """The parts that the finished looks screen; all there is without any."""
    scored = responses.scored.known.any(axis=0)
    least, sizes = int(np.min(scored.sum(axis=1), initial=responses.present.shape[1])), planned_looks(config)
    finished = [size for size in sizes if size <= least]
    return [(0, size) for size in finished] if len(sizes) > 1 and finished else [(0, _ALL)]


def _responses(tables: Mapping[str, pa.Table], config: Config) -> tuple[Responses, Callable[[Part], Screening]]:
    """All responses, and the screening of a part of them."""
    real = [t.name for t in config.teachers if t.privileged_context not in NULL_CONTEXTS]
    informing = real if config.analysis.control_variates else []
    responses = read_responses(tables, informing)

    def screened(part: Part) -> Screening:
        if config.analysis.fitted_values:
            return screen_questions(rollouts_between(tables, *part), informing, real)
        return screen_responses(responses.between(*part))

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


def joint_width(looks: Sequence[Float[np.ndarray, "question test"]], config: Config, *purpose: int | str) -> float:
    """Standard errors to either side at which the intervals of these means hold together, over all looks that may be taken.

    NaN where some mean has fewer than two questions.

    Args:
        looks: Numbers whose means are tested, at each look so far.
        config: The run's configuration.
        purpose: What tells its random numbers from others'.
    """
    source, level, planned = generator(config.seed, *purpose), config.analysis.confidence, len(planned_looks(config))
    if planned == 1:
        return simultaneous_quantile(looks[-1], level, source)
    return float(spending_widths(looks, planned, level, source)[-1])


def _order_width(looks: Sequence[Float[np.ndarray, "question test"]], config: Config, seen: Seen) -> float:
    """:func:`joint_width` of the order, of which earlier looks' part is known."""
    planned = len(planned_looks(config))
    if planned == 1:
        return joint_width(looks, config, *_ORDER)
    if seen.boundary is None:
        seen.boundary = SpendingBoundary(planned, config.analysis.confidence, generator(config.seed, *_ORDER))
    seen.widths += [seen.boundary.width(values) for values in looks[len(seen.widths) :]]
    return seen.widths[len(looks) - 1]


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
    foretell: Callable[[], int] = field(compare=False)
    """Rollouts a question at the look that is foretold to settle the order; the most that may be drawn where none is. Reckoned when asked for."""


def order_of(tables: Mapping[str, pa.Table], config: Config, seen: Seen | None = None) -> Order | None:
    """The order at the last finished look; None before the first one, or where no real teacher is scored.

    Args:
        tables: Every table of the run by name.
        config: The run's configuration.
        seen: What is known from earlier looks of the same run; what is found now, or when `foretell` is asked, is added. None: nothing is.
    """
    sizes, known = planned_looks(config), Seen() if seen is None else seen
    responses, screened = _responses(tables, config)
    parts = _finished(responses, config)
    if parts[-1][1] == _ALL and sizes != (config.rollouts.num_rollouts,):  # none of several looks is finished
        return None

    def columns(part: Part) -> Float[np.ndarray, "question test"]:
        if part not in known.columns:
            found = screened(part)
            real = _real(found, config)
            known.columns[part] = real, order_columns(found, real, config)
        return known.columns[part][1]

    looks, size = [columns(part) for part in parts], sizes[len(parts) - 1]
    names = known.columns[parts[-1]][0]
    if not names:
        return None
    values, width = looks[-1], _order_width(looks, config, known)
    state = order_state(values, width, len(names), config)
    label = [(name, "") for name in names] + [(names[a], names[b]) for a, b in combinations(range(len(names)), 2)]
    undecided = tuple(label[i] for i in state.needed if not state.decided[i])

    def foretell() -> int:
        half = size // 2
        halves = columns((0, half)), columns((half, 2 * half))
        within = np.nan_to_num(_means((halves[0] - halves[1]) ** 2) / 4.0)
        foretold = sizes[-1]
        for later in reversed(sizes[len(parts) - 1 :]):
            errors = standard_error_at(values, within, later / size)
            if not np.all(settled(_means(values), width * errors, config.analysis.smallest_gain)[state.needed]):
                break
            foretold = later
        return foretold

    return Order(tuple(names[i] for i in state.ranked), undecided, size, foretell)


def _real(screening: Screening, config: Config) -> list[str]:
    """Screened teachers but the nulls, as configured."""
    present = {teacher for teacher, _ in screening}
    return [t.name for t in config.teachers if t.privileged_context not in NULL_CONTEXTS and t.name in present]


def order_columns(screening: Screening, names: Sequence[str], config: Config) -> Float[np.ndarray, "question test"]:
    """What the order rests on, for the first objective: each teacher's gain over null, then the differences of every two."""
    over = [over_null(screening, name, config.objectives[0], config) for name in names]
    columns = [*over, *(first - second for first, second in combinations(over, 2))]
    return np.stack(columns, axis=-1) if columns else np.zeros((0, 0))


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
