"""Continuations in rounds: a pilot everywhere, then each round's batch where it narrows what was asked for most per token.

What decides how many continuations a stratum gets are probabilities, ordinary rollouts, and the pilot's outcomes at *other* questions, through a
cross-fitted regression; where continuations are scored, how much of an outcome's variance their controls leave is learnt in the same way, slopes
included. The pilot's own counts are fixed by probabilities alone. So with a width as the target and no budget, a stratum's count is
independent of every outcome of its question: means stay unbiased, and intervals that hold for fixed counts hold for these. (Slopes of controls are
learnt at other questions from all their continuations, of whose number a question's pilot had its small part in deciding.) Only the pilot is
learnt from: a second round that learnt from the first would, by way of other questions' counts, depend on its own outcomes again. A budget of
tokens is shared: what other questions take, and the lengths of what was drawn, scale all counts of a question together. That one number can
depend on its outcomes, by the order of its share in the run; how a question's continuations are shared out among its strata does not.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

from opdscope.config import Config
from opdscope.core.alignment import gain_variance, natural_gain
from opdscope.core.allocation import (
    allocate_tokens,
    counts_for_variance,
    cross_fitted_success,
    even_counts_for_variance,
    target_weights,
)
from opdscope.core.expansion import best_draws, drawing_variance
from opdscope.core.success import StratumOutcomes, mean_success, success_noise
from opdscope.records import TAIL, Outcome, to_table
from opdscope.store import Run
from opdscope.summary.evidence import question_folds, read_foretold_kept
from opdscope.summary.foretelling import READ, response_lengths, stratum_features
from opdscope.summary.nodes import padded, planned_counts
from opdscope.summary.paths import list_lengths
from opdscope.summary.split import class_weights, measure_split
from opdscope.summary.weights import drawn_nodes, question_weights

_MOST_DRAWS = 8
"""Times that nodes are drawn on a path."""

_LEAST_VARIANCE = 0.02
"""Of an outcome: a stratum foretold to succeed almost always is still looked at."""


@dataclass(frozen=True)
class Planned:
    """Continuations of one stratum in one round."""

    node_id: str
    stratum: int
    first_index: int
    """Index of the first one: the stratum's continuations before this round."""
    count: int


class Rounds:
    """The rounds of a run, planned one after another and read back where they are stored."""

    def __init__(self, run: Run, config: Config) -> None:
        """Read what nodes and strata are stored; the configuration may ask for another target than the run's own."""
        self._run, self._config = run, config
        self._rows = drawn_nodes({name: run.table(name) for name in ("nodes", "draws")})
        index_of = {row["node_id"]: i for i, row in enumerate(self._rows)}
        # an interrupted draw leaves strata of nodes that are not there yet
        strata = [row for row in run.table("strata").to_pylist() if row["node_id"] in index_of]
        shape = (len(self._rows), max((row["stratum"] + 1 for row in strata), default=0))
        self._probs, self._tape = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        self._is_tail, self._terminal = np.zeros(shape, dtype=bool), np.full(shape, np.nan)
        for row in strata:
            place = index_of[row["node_id"]], row["stratum"]
            self._probs[place], self._is_tail[place] = row["student_prob"], row["token_id"] == TAIL
            self._tape[place], self._terminal[place] = len(row["forced_token_ids"]), row["terminal"]
        settings = config.targeted
        self._pilot = np.where(self._tape > 0, settings.min_continuations, 0)
        self._most = np.where(self._tape > 0, settings.max_continuations, 0)

    def plan(self, index: int) -> list[Planned]:
        """What a round draws; empty if the target is reached or what may be spent is spent.

        All earlier rounds must be finished. The plan is stored before it is returned, so that an interrupted round goes on as it was meant.
        """
        run, name = self._run, f"{index:03d}"
        if run.has("rounds", name):
            own = run.unit("rounds", name).to_pylist()
            return [Planned(row["node_id"], row["stratum"], row["first_index"], row["count"]) for row in own]
        planned = self._decide(index)
        run.write("rounds", name, to_table("rounds", [{"round": index, **vars(each)} for each in planned]))
        return planned

    def _decide(self, index: int) -> list[Planned]:
        if index == 0:
            return self._planned(np.zeros_like(self._pilot), self._pilot)
        later, target = self._later(), self._config.target
        if index == 1 and later.any():
            return self._planned(self._have(), np.where(later[:, None], self._pilot, 0))
        index -= int(later.any())  # the pilot of further nodes is no round of the budget
        if index > self._last_round():
            return []
        have, spent = self._have(), self._spent()
        if index == 1:
            foretold = {"stage": "continuations", "tokens": self._foretold(have, spent), "pilot_tokens": spent}
            self._run.write("forecasts", "continuations", to_table("forecasts", [foretold]))
        left = self._limit() - spent
        if target.kind == "tokens":
            added = self._by_tokens(have, left / (self._last_round() - index + 1))
        elif target.kind == "map":
            added = self._by_width(have, left)
        else:
            added = self._by_split(have, min(left, float(spent))) if self._split_goes_on() else np.zeros_like(have)
        return self._planned(have, np.minimum(added, self._most - have))

    def _later(self) -> Bool[np.ndarray, "node"]:
        """Nodes that were not there when the first pilot was planned, and that there is something to sample at."""
        rounds = self._run.table("rounds", ["round", "node_id"]).to_pylist()
        first = {row["node_id"] for row in rounds if row["round"] == 0}
        return (self._pilot > 0).any(axis=1) & np.array([row["node_id"] not in first for row in self._rows], dtype=bool)

    def draws(self) -> dict[str, int]:
        """How often nodes are to be drawn on the paths of each question, after the pilot of the first draw.

        It is judged from the pilots at other questions alone, so that it is independent of a question's outcomes and of which of its nodes were
        drawn, as :mod:`opdscope.core.expansion` needs it. A fold of questions has one number.
        """
        names = list(dict.fromkeys(row["question_id"] for row in self._rows))
        fold = question_folds(self._rows)
        weight, budget = question_weights(self._rows), self._limit()
        found: dict[str, int] = {}
        for left_out in np.unique(fold):
            own = {row["question_id"] for row, part in zip(self._rows, fold, strict=True) if part == left_out}
            weights = np.where(fold == left_out, 0.0, weight)
            kept = float(self._kept[fold == left_out][0])
            noise = self._noise_of_draws(weights, kept, budget * (len(names) - len(own)) / len(names))
            found |= dict.fromkeys(own, best_draws(self._between(weights), noise))
        return {name: found[name] for name in names}

    def _between(self, weight: Float[np.ndarray, "node"]) -> float:
        """Variance of the target that comes from which nodes were drawn, mean over teachers; nodes without a weight are left out."""
        pilot = self._pilot_outcomes()
        outcomes = StratumOutcomes(pilot.num_correct, pilot.num_verified, self._terminal)
        with np.errstate(divide="ignore"):
            logprobs = np.log(self._probs)
        success, noise = mean_success(self._probs, outcomes), success_noise(outcomes)
        signals, variances = self._signals
        scales = np.sqrt(np.sum(weight**2 * variances, axis=1))
        certain = np.array([row["inclusion"] >= 1.0 for row in self._rows])
        paths: dict[tuple[str, int], list[int]] = {}
        for i in np.flatnonzero(weight).tolist():
            paths.setdefault((self._rows[i]["question_id"], self._rows[i]["rollout_index"]), []).append(i)
        found = 0.0
        for signal, scale in zip(signals, scales, strict=True):
            if scale > 0:
                terms = np.nan_to_num(weight * natural_gain(logprobs, signal, success)) / scale
                errors = weight**2 * gain_variance(logprobs, signal, noise) / scale**2
                found += sum(drawing_variance(terms[own], errors[own], certain[own]) for own in paths.values()) / len(signals)
        return found

    def _noise_of_draws(self, weight: Float[np.ndarray, "node"], kept: float, budget: float) -> list[float]:
        """Variance from continuations of one draw if the budget is shared by 1, 2, … draws; infinite where it does not pay for the pilots."""
        use = (self._tape > 0) & (weight > 0)[:, None]
        pilot = self._pilot_outcomes()
        verified, noise = pilot.num_verified[use], success_noise(pilot)[use]
        # one variance for all strata, what they have on average: the regression has looked at every question
        mean = kept * max(float(np.sum(verified * noise)) / max(int(verified.sum()), 1), _LEAST_VARIANCE)
        weights, have, cost, variance = self._weights(weight)[use], self._pilot[use], self._cost[use], np.full(len(verified), mean)
        found: list[float] = []
        for draws in range(1, _MOST_DRAWS + 1):
            left = budget / draws - float(np.sum(have * cost))
            counts = have + self._allocated(weights, variance, have, cost, left)
            found.append(float(np.sum(weights**2 * variance / counts)) if left >= 0 or draws == 1 else np.inf)
        return found

    def foretold_tokens(self) -> float:
        """Tokens of continuations, those that are drawn included, that the target is foretold to take."""
        return self._foretold(self._have(), self._spent())

    def _foretold(self, have: Int[np.ndarray, "node stratum"], spent: int) -> float:
        target = self._config.target
        match target.kind:
            case "tokens":
                needed = np.inf
            case "map":
                added = np.minimum(self._by_width(have, np.inf), np.maximum(self._most - have, 0))
                needed = spent + float(np.sum(added * self._cost))
            case "split":
                needed = self._foretold_split(have, spent)
            case _:
                needed = float(spent)
        return max(min(needed, self._limit()), self._pilot_tokens())

    def _foretold_split(self, have: Int[np.ndarray, "node stratum"], spent: int) -> float:
        """Each round doubles what was spent: by how many of them does what continuations add to the variance fall far enough?"""
        target = self._config.target
        open_ones = [s for s in measure_split(self._run.tables(), self._config) if s.width > target.width and s.continuations_help]
        wanted = min((split.noise_for(target.width) / split.noise for split in open_ones), default=1.0)
        weights, variance = self._split_weights(), self._variance
        use = (weights > 0) & (have > 0)

        def noise(counts: Int[np.ndarray, "node stratum"]) -> float:
            return float(np.sum((weights**2 * variance)[use] / counts[use]))

        counts, doublings = have, 0
        while doublings < target.rounds and noise(counts) > wanted * noise(have):
            added = self._shared_out(weights, counts, spent * 2.0**doublings)
            counts, doublings = counts + np.minimum(added, self._most - counts), doublings + 1
        return spent * 2.0**doublings

    def _last_round(self) -> int:
        return 1 if self._config.target.kind == "map" else self._config.target.rounds

    def _spent(self) -> int:
        return int(list_lengths(self._run.table("continuations", ["token_ids"])["token_ids"]).sum())

    def _have(self) -> Int[np.ndarray, "node stratum"]:
        """Continuations of each stratum that are planned so far."""
        have = np.zeros_like(self._pilot)
        places = {row["node_id"]: i for i, row in enumerate(self._rows)}
        for (node_id, stratum), count in planned_counts({name: self._run.table(name) for name in ("strata", "rounds")}).items():
            if node_id in places:
                have[places[node_id], stratum] = count
        return have

    def _split_goes_on(self) -> bool:
        """Some teacher's interval is still too wide, and continuations could narrow it."""
        splits, width = measure_split(self._run.tables(), self._config), self._config.target.width
        return any(split.width > width and split.continuations_help for split in splits)

    def _planned(self, have: Int[np.ndarray, "node stratum"], added: Int[np.ndarray, "node stratum"]) -> list[Planned]:
        return [
            Planned(self._rows[i]["node_id"], k, int(have[i, k]), int(added[i, k])) for i, k in zip(*np.nonzero(added > 0), strict=True)
        ]

    def _limit(self) -> float:
        """Tokens that may be drawn in all: those that were allowed, and those that the pace so far gets done in the seconds that were."""
        target = self._config.target
        tokens = np.inf if target.tokens is None else float(target.tokens)
        if target.seconds is None:
            return tokens
        # continuations, their pilot and their scoring; without any pace nothing more is begun
        took = sum(entry["seconds"] for entry in self._run.times() if "continuations" in entry["stage"])
        return min(tokens, target.seconds * self._spent() / took if took > 0 else 0.0)

    def _pilot_tokens(self) -> int:
        table = self._run.table("continuations", ["continuation_index", "token_ids"])
        first = table["continuation_index"].to_numpy() < self._config.targeted.min_continuations
        return int(list_lengths(table["token_ids"])[first].sum())

    def _by_tokens(self, have: Int[np.ndarray, "node stratum"], budget: float) -> Int[np.ndarray, "node stratum"]:
        """Least variance of the mean over questions of each teacher's natural gain, teachers counted alike."""
        return self._shared_out(self._weights(question_weights(self._rows)), have, budget)

    def _by_split(self, have: Int[np.ndarray, "node stratum"], budget: float) -> Int[np.ndarray, "node stratum"]:
        """Least variance of the difference of two means over questions, on incorrect and on correct paths; questions with one kind have none."""
        return self._shared_out(self._split_weights(), have, budget)

    def _split_weights(self) -> Float[np.ndarray, "node stratum"]:
        kinds = {(row["question_id"], row["path_outcome"]) for row in self._rows}
        both = np.array([{(row["question_id"], outcome) for outcome in ("correct", "incorrect")} <= kinds for row in self._rows])
        return self._weights(class_weights(self._rows) * both)

    def _weights(self, weight: Float[np.ndarray, "node"]) -> Float[np.ndarray, "node stratum"]:
        signals, variances = self._signals
        # a teacher's push over all nodes is one scale: nodes at which it pushes harder do count for more
        scales = np.sqrt(np.sum(weight**2 * variances, axis=1, keepdims=True))
        return target_weights(self._probs, signals * weight[:, None], scales)

    def _by_width(self, have: Int[np.ndarray, "node stratum"], left: float) -> Int[np.ndarray, "node stratum"]:
        """At each node what the width demands for every teacher; the most useful of it if that is too much."""
        target, level = self._config.target, self._config.analysis.confidence
        signals, variances = self._signals
        each = [
            target_weights(self._probs, signal[None], np.sqrt(variance)[None]) for signal, variance in zip(signals, variances, strict=True)
        ]
        weights = np.array(each)
        wanted = (target.width / (2.0 * float(ndtri(0.5 + level / 2)))) ** 2
        variance, cost, most = self._variance, self._cost, self._config.targeted.max_continuations
        if self._config.targeted.neyman_allocation:
            counts = counts_for_variance(weights, variance, cost, wanted, self._pilot, most)
        else:
            counts = even_counts_for_variance(weights, variance, wanted, self._pilot, most)
        added = np.maximum(counts - have, 0)
        if float(np.sum(added * cost)) > left:
            return np.minimum(added, self._shared_out(np.max(weights, axis=0), have, left))
        return added

    def _shared_out(self, weights: Float[np.ndarray, "node stratum"], have: Int[np.ndarray, "node stratum"], budget: float) -> np.ndarray:
        use = np.nonzero(self._tape > 0)
        added = np.zeros_like(have)
        added[use] = self._allocated(weights[use], self._variance[use], have[use], self._cost[use], budget)
        return added

    def _allocated(
        self,
        weights: Float[np.ndarray, "stratum"],
        variance: Float[np.ndarray, "stratum"],
        have: Int[np.ndarray, "stratum"],
        cost: Float[np.ndarray, "stratum"],
        budget: float,
    ) -> Int[np.ndarray, "stratum"]:
        """Where they tell most per token; or the same number at every stratum that matters, where each counts for as much as it costs."""
        if not self._config.targeted.neyman_allocation:
            weights, variance = np.sqrt(cost) * (weights > 0), np.ones_like(variance)
        return allocate_tokens(weights, variance, have, cost, budget)

    @functools.cached_property
    def _signals(self) -> tuple[Float[np.ndarray, "teacher node stratum"], Float[np.ndarray, "teacher node"]]:
        """Signal per stratum and its variance over the vocabulary, of every real teacher, for the objective that makes the ranking."""
        objective, places = self._config.objectives[0], {row["node_id"]: i for i, row in enumerate(self._rows)}
        names = [teacher.name for teacher in self._config.teachers]
        signals, variances = np.zeros((len(names), *self._probs.shape)), np.zeros((len(names), len(self._rows)))
        own = [
            r
            for r in self._run.table("node_signals").to_pylist()
            if r["objective"] == objective and r["teacher"] in names and r["node_id"] in places
        ]
        for row, values in zip(own, padded([row["signal"] for row in own], self._probs.shape[1]), strict=True):
            place = names.index(row["teacher"]), places[row["node_id"]]
            signals[place], variances[place] = values, row["signal_variance"]
        finite = np.isfinite(signals).all(axis=2) & np.isfinite(variances)  # a forward-KL signal may exceed any float
        return np.where(finite[..., None], signals, 0.0), np.where(finite, variances, 0.0)

    @functools.cached_property
    def _cost(self) -> Float[np.ndarray, "node stratum"]:
        """Tokens of a continuation: what was left of the node's path, known before any is drawn."""
        length = response_lengths(self._run.table("rollouts", READ))
        left = [max(length[row["question_id"], row["rollout_index"]] - row["position"] - 1, 1) for row in self._rows]
        return np.repeat(np.array(left, dtype=np.float64)[:, None], self._probs.shape[1], axis=1)

    @functools.cached_property
    def _variance(self) -> Float[np.ndarray, "node stratum"]:
        """Variance of an outcome of each stratum, foretold from the pilot at other questions; it is asked for when the pilot is finished."""
        use = np.nonzero(self._tape > 0)
        pilot = self._pilot_outcomes()
        fold = question_folds(self._rows)[use[0]]
        features = stratum_features(self._run.table("rollouts", READ), self._rows, self._probs, self._is_tail)
        success = cross_fitted_success(features[use], pilot.num_correct[use], pilot.num_verified[use], fold)
        variance = np.zeros(self._probs.shape)
        variance[use] = np.maximum(success * (1.0 - success), _LEAST_VARIANCE) * self._kept[use[0]]
        return variance

    @functools.cached_property
    def _kept(self) -> Float[np.ndarray, "node"]:
        """Share of that variance which controls are foretold to leave, from the pilot at other questions; one number for a fold of questions."""
        names = ("rollouts", "continuations", "continuation_scores")
        tables = {name: self._run.table(name) for name in names}
        return read_foretold_kept(tables, self._rows, self._probs, self._is_tail, self._pilot, self._config)

    def _pilot_outcomes(self) -> StratumOutcomes:
        places = {row["node_id"]: i for i, row in enumerate(self._rows)}
        table = self._run.table("continuations", ["node_id", "stratum", "continuation_index", "outcome"])
        nodes = np.array([places[node_id] for node_id in table["node_id"].to_pylist()], dtype=np.int64)
        strata, index = table["stratum"].to_numpy(), table["continuation_index"].to_numpy()
        outcomes = np.array(table["outcome"].to_pylist(), dtype=object)
        use = (index < self._pilot[nodes, strata]) & (outcomes != Outcome.UNVERIFIABLE)
        correct, verified = np.zeros_like(self._pilot), np.zeros_like(self._pilot)
        np.add.at(verified, (nodes[use], strata[use]), 1)
        np.add.at(correct, (nodes[use], strata[use]), outcomes[use] == Outcome.CORRECT)
        return StratumOutcomes(correct, verified, np.full(correct.shape, np.nan))
