"""Shared random numbers: the correlations are found again, and variances and intervals that use them agree with simulation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

import opdscope
from opdscope.core.alignment import gain_variance, ideal_norm_noise, ideal_squared_norm, natural_gain, variance_of_sum
from opdscope.core.backup import back_up, interval_variance, no_links
from opdscope.core.coupling import Coupling, estimate_coupling
from opdscope.core.randomness import uniforms
from opdscope.core.success import StratumOutcomes
from opdscope.models.base import SampleRequest
from opdscope.models.exact import ExactModel, TreeWorld
from opdscope.models.exact.world import START
from opdscope.records import TAIL
from opdscope.summary.shared_numbers import read_coupling

SHARED, PAIRED = 0.5, -0.4


def shared_outcomes(rng: np.random.Generator, success: np.ndarray, count: int, shared: float, paired: float) -> np.ndarray:
    """Outcomes with the given correlations, node × stratum × continuation: a mixture of common and own draws, in pairs a common sign.

    Correlations of outcomes, not of what is behind them, since each outcome is a threshold of a uniform that is common with probability `shared`;
    of a pair the second uniform is one minus the first with probability `-paired` times a factor that only success 1/2 makes one.
    """
    nodes, strata = success.shape
    common = rng.random((nodes, 1, count)) < shared
    numbers = np.where(common, rng.random((nodes, 1, count)), rng.random((nodes, strata, count)))
    if paired:
        mirrored = rng.random((nodes, strata, count // 2)) < -paired
        numbers[..., 1::2] = np.where(mirrored, 1.0 - numbers[..., 0::2], numbers[..., 1::2])
    return (numbers < success[..., None]).astype(np.float64)


def test_correlations_are_found_again() -> None:
    """At success 1/2 a uniform that is common with probability ρ gives outcomes the correlation ρ, and a mirrored one −1 times its share."""
    rng = np.random.default_rng(0)
    success = np.full((2000, 4), 0.5)
    weights = [np.full(4, 0.25)] * len(success)
    across = estimate_coupling(list(shared_outcomes(rng, success, 8, SHARED, 0.0)), weights, pairs=False, across=True)
    # 2,000 · 6 covariances of eight pairs err by less than 0.01 in all; smoothing adds (n² - 1) / (n + 2)² · … ≤ 0.03 to the variance at n = 8
    assert across.across == pytest.approx(SHARED, abs=0.05)
    pair = estimate_coupling(list(shared_outcomes(rng, success, 8, 0.0, PAIRED)), weights, pairs=True, across=False)
    assert pair.pair == pytest.approx(PAIRED, abs=0.02)
    assert pair.across == 0.0
    apart = estimate_coupling(list(shared_outcomes(rng, success, 8, 0.0, 0.0)), weights, pairs=True, across=True)
    assert abs(apart.pair) < 0.02
    assert abs(apart.across) < 0.02


def test_candidates_cannot_all_go_against_one_another() -> None:
    found = Coupling(across=-0.9).correlations(np.array([[5, 5, 5, 0], [5, 5, 0, 0]]))
    assert found[0, 0, 1] == -0.5
    assert found[1, 0, 1] == -0.9
    assert np.all(np.linalg.eigvalsh(found) > -1e-12)


def test_one_node_that_weighs_more_than_all_others_is_not_believed() -> None:
    """Nodes without a correlation, and one heavy one whose few continuations happened to agree."""
    rng = np.random.default_rng(3)
    outcomes = [*shared_outcomes(rng, np.full((50, 2), 0.5), 6, 0.0, 0.0), np.array([[1.0, 0, 1, 0, 1, 0]] * 2)]
    found = estimate_coupling(outcomes, [np.ones(2)] * 50 + [np.full(2, 30.0)], pairs=False, across=True)
    assert abs(found.across) < 0.2


def test_what_has_no_verdict_tells_nothing() -> None:
    empty = np.full((2, 4), np.nan)
    assert estimate_coupling([empty], [np.array([0.5, 0.5])], pairs=True, across=True) == Coupling()
    assert estimate_coupling([], [], pairs=True, across=True) == Coupling()


@pytest.mark.parametrize("counts", [(8, 8, 8), (12, 8, 4)])
def test_variances_with_correlations_are_those_of_simulated_estimates(counts: tuple[int, ...]) -> None:
    """20,000 estimates: a variance errs by 1 %, so that 5 % is five of its errors; without correlations it is off by a third or more."""
    rng = np.random.default_rng(1)
    success, probs, signal = np.array([0.5, 0.5, 0.5]), np.array([0.5, 0.3, 0.2]), np.array([1.0, -0.5, 0.4])
    outcomes = shared_outcomes(rng, np.tile(success, (20_000, 1)), max(counts), SHARED, 0.0)
    shares = np.stack([outcomes[:, j, :n].mean(axis=1) for j, n in enumerate(counts)], axis=1)
    correlations = Coupling(across=SHARED).correlations(np.array(counts))
    variance = success * (1 - success) / np.array(counts)
    logprobs = np.log(probs)
    assert np.var(natural_gain(logprobs, signal, shares)) == pytest.approx(
        float(gain_variance(logprobs, signal, variance, correlations)), rel=0.05
    )
    assert np.var(shares @ probs) == pytest.approx(float(variance_of_sum(probs, variance, correlations)), rel=0.05)
    noise = float(ideal_norm_noise(logprobs, probs**2, variance, correlations))
    assert np.mean(ideal_squared_norm(logprobs, probs**2, shares)) == pytest.approx(
        noise, rel=0.05
    )  # success has no range: all of it is noise
    assert float(gain_variance(logprobs, signal, variance)) > 1.3 * float(gain_variance(logprobs, signal, variance, correlations))


def test_intervals_of_gains_hold_with_both_ways_of_sharing() -> None:
    """90 % intervals at 4,000 nodes with success anywhere: four Monte Carlo errors of a coverage of 90 % are 1.9 %."""
    rng = np.random.default_rng(2)
    success, probs = rng.beta(1.5, 1.5, size=(4000, 4)), rng.dirichlet(np.ones(4), size=4000)
    signal, count = rng.normal(size=(4000, 4)), 16
    outcomes = shared_outcomes(rng, success, count, SHARED, PAIRED)
    coupling = estimate_coupling(list(outcomes), list(probs), pairs=True, across=True)
    assert coupling.pair < -0.1
    assert coupling.across > 0.1
    counts = np.full(success.shape, count)
    own = StratumOutcomes(outcomes.sum(axis=2).astype(np.int64), counts, np.full(success.shape, np.nan))
    links = no_links(len(success))
    logprobs, found = np.log(probs), back_up(probs, own, links, coupling)
    width = float(ndtri(0.95)) * np.sqrt(
        gain_variance(logprobs, signal, interval_variance(probs, own, links, coupling), found.correlations)
    )
    error = natural_gain(logprobs, signal, found.mean) - natural_gain(logprobs, signal, success)
    assert 0.88 < np.mean(np.abs(error) <= width) < 0.93


def test_values_behind_an_arrival_know_that_their_strata_go_together() -> None:
    """The value of a node whose strata all share their luck is as uncertain as one of them alone."""
    probs, counts = np.full((1, 2), 0.5), np.full((1, 2), 10)
    outcomes = StratumOutcomes(np.full((1, 2), 5), counts, np.full((1, 2), np.nan))
    apart, together = (back_up(probs, outcomes, no_links(1), c) for c in (None, Coupling(across=0.95)))
    assert apart.correlations is None
    assert together.correlations is not None
    one = float(apart.variance[0, 0])
    assert float(variance_of_sum(probs, apart.variance, None)[0]) == pytest.approx(one / 2)
    assert float(variance_of_sum(probs, together.variance, together.correlations)[0]) == pytest.approx(0.975 * one)


def test_a_mirrored_continuation_draws_with_one_minus_each_number() -> None:
    model = ExactModel(TreeWorld(), "itself")
    prompt, seeds = model.render_prompt("Q0:")[1], tuple(range(40))
    drawn = model.sampler(64).sample([SampleRequest(prompt, len(prompt), (), seeds * 2, 1, (False,) * 40 + (True,) * 40)], 1.0)[0]
    row = np.cumsum(np.exp(model.logprobs(prompt)[0, START]))
    numbers = uniforms(np.array(seeds, dtype=np.uint64), np.zeros(40, dtype=np.int64))
    expected = [int(np.searchsorted(row, u * row[-1], side="right")) for u in (*numbers, *(1.0 - numbers))]
    assert [sample.token_ids[0] for sample in drawn] == expected
    with pytest.raises(ValueError, match="mirrored"):
        SampleRequest(prompt, 1, (), (1, 2), 1, (True,))


CONFIG: dict[str, Any] = {
    "student": {"model_name_or_path": "exact:itself"},
    "teachers": [{"name": name, "teacher_model_name_or_path": f"exact:{name}"} for name in ("good", "harmful")],
    "task": {"kind": "exact", "world": "tree", "num_questions": 12},
    "rollouts": {"num_rollouts": 16, "num_demonstrations": 0, "max_completion_length": 8},
    "target": {"kind": "tokens", "tokens": 1},
}


def test_the_pipeline_shares_numbers_as_it_is_told(tmp_path: Path) -> None:
    """Of the same nodes: what shares numbers is what the switches say, and a run knows how far its outcomes go together."""
    outcomes: dict[str, dict[tuple[str, int, int], tuple[int, ...]]] = {}
    for name, switches in {
        "apart": {}, "across": {"common_random_numbers": True}, "both": {"common_random_numbers": True, "antithetic": True}
    }.items():  # fmt: skip
        run = opdscope.diagnose({**CONFIG, "targeted": {"min_continuations": 8, **switches}}, run_dir=tmp_path / name)
        table = run.table("continuations").to_pylist()
        outcomes[name] = {(row["node_id"], row["stratum"], row["continuation_index"]): tuple(row["token_ids"]) for row in table}
        coupling = read_coupling(run.tables(), run.config)
        if name == "apart":
            assert coupling is None
        else:
            assert coupling is not None
            assert (coupling.pair < -0.1) == (name == "both")
            assert abs(coupling.across) > 0.0
            said = opdscope.summarize(run.tables(), run.config)
            assert said.data["targeted"]["shared_random_numbers"]["within_pair"] == coupling.pair
    assert outcomes["apart"].keys() == outcomes["across"].keys() == outcomes["both"].keys()
    # the first of each pair draws as that of half its index does without pairs, the second otherwise
    tails = {(row["node_id"], row["stratum"]) for row in run.table("strata").to_pylist() if row["token_id"] == TAIL}  # their tokens differ
    first = {key: tokens for key, tokens in outcomes["both"].items() if key[2] % 2 == 0 and key[:2] not in tails}
    assert all(tokens == outcomes["across"][node, stratum, index // 2] for (node, stratum, index), tokens in first.items())
    second = [outcomes["both"][node, stratum, index + 1] != tokens for (node, stratum, index), tokens in first.items() if tokens]
    assert np.mean(second) > 0.5
