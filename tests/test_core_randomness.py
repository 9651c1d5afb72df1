"""Seeds and uniforms: pinned for ever, uniform, independent of their neighbours, and never exactly 0 or 1."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from opdscope.core.randomness import derive_seed, generator, uniforms

ALMOST_NEVER = 1e-6
"""Level of the tests below. The draws are fixed, so a pass is a pass for ever; the level says how surprising a failure would have been."""


def test_seeds_are_pinned():
    # stored runs depend on these: a change here orphans every run directory
    assert derive_seed() == 13020603013274838756
    assert derive_seed(0, "rollout", "q1", 3) == 6824917636571925145
    assert derive_seed(-1, "ü") == 15286483562830454323


def test_uniforms_are_pinned():
    found = uniforms(np.array([0, 1, 2**64 - 1, derive_seed("a")], dtype=np.uint64), np.array([0, 1, 2, 2**40]))
    # exact: integer arithmetic and one exact scaling
    np.testing.assert_array_equal(found, [0.8833108082136426, 0.37239342287916577, 0.31821586879124186, 0.5641966330345142])


def test_seed_zero_gives_the_published_splitmix64_sequence():
    # first outputs of the reference implementation (Vigna, splitmix64.c) from state 0; the finaliser leaves 0 at 0
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    found = uniforms(np.zeros(3, dtype=np.uint64), np.arange(3))
    np.testing.assert_array_equal(found, [((value >> 12) + 0.5) / 2**52 for value in published])


def test_generators_are_pinned_and_belong_to_their_name():
    assert generator(0, "draws").integers(0, 2**63, size=2).tolist() == [5991505998442266106, 1381178790719183592]
    assert generator(0, "draws").random() != generator(1, "draws").random()


def test_seeds_do_not_depend_on_the_process():
    code = "from opdscope.core.randomness import derive_seed; print(derive_seed(7, 'continuation', 'q', 1, 2, 3))"
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{derive_seed(7, 'continuation', 'q', 1, 2, 3)}\n"}


def test_every_part_its_type_and_its_place_matter():
    parts = [(), (1,), ("1",), (1, 2), (2, 1), (12,), ("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), ("",), ("", "")]
    assert len({derive_seed(*part) for part in parts}) == len(parts)
    assert all(0 <= derive_seed(*part) < 2**64 for part in parts)


def test_numpy_integers_count_as_the_integers_they_equal():
    assert derive_seed(np.int64(3), np.uint8(1), np.str_("x")) == derive_seed(3, 1, "x")


def test_parts_that_are_neither_text_nor_integer_are_refused():
    for part in (1.0, None, b"x"):
        with pytest.raises(TypeError):
            derive_seed(part)


def unfinalise(state):
    """Inverse of the SplitMix64 finaliser."""
    mask = 2**64 - 1

    def unshift(value, bits):
        result = value
        for _ in range(64 // bits + 1):
            result = value ^ (result >> bits)
        return result

    state = unshift(state, 31)
    state = unshift(state * pow(0x94D049BB133111EB, -1, 2**64) & mask, 27)
    return unshift(state * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask, 30)


def test_uniforms_never_reach_zero_or_one():
    # the seeds whose hash is all zeros and all ones, found by running the hash backwards
    golden = 0x9E3779B97F4A7C15
    seeds = [unfinalise((unfinalise(target) - golden) % 2**64) for target in (0, 2**64 - 1)]
    low, high = uniforms(np.array(seeds, dtype=np.uint64), np.zeros(2, dtype=np.int64))
    assert low == 2.0**-53
    assert high == 1 - 2.0**-53


def test_uniforms_depend_on_seed_and_counter_alone_in_any_batch():
    seeds, counters = np.arange(50, dtype=np.uint64), np.arange(50) % 7
    whole = uniforms(seeds, counters)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(uniforms(seeds[order], counters[order]), whole[order])
    np.testing.assert_array_equal([uniforms(seeds[i : i + 1], counters[i : i + 1])[0] for i in range(50)], whole)


@pytest.mark.parametrize("kind", ["adjacent seeds", "counters of one seed", "derived seeds"])
def test_uniforms_are_uniform_and_neighbours_are_independent(kind):
    size = 100_000
    seeds = {
        "adjacent seeds": np.arange(size, dtype=np.uint64),
        "counters of one seed": np.full(size, 42, dtype=np.uint64),
        "derived seeds": np.array([derive_seed("s", index) for index in range(size)], dtype=np.uint64),
    }[kind]
    values = uniforms(seeds, np.arange(size) if kind == "counters of one seed" else np.zeros(size, dtype=np.int64))
    assert stats.kstest(values, "uniform").pvalue > ALMOST_NEVER
    # pairs of neighbours fall evenly into 16 × 16 cells
    cells = np.histogram2d(values[:-1:2], values[1::2], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > ALMOST_NEVER
    # the last bits are as random as the first
    assert stats.kstest((values * 2.0**30) % 1.0, "uniform").pvalue > ALMOST_NEVER


def test_sequences_of_adjacent_seeds_are_independent_at_every_lag():
    seeds, counters = np.repeat(np.arange(400, dtype=np.uint64), 64), np.tile(np.arange(64), 400)
    table = uniforms(seeds, counters).reshape(400, 64) - 0.5
    for lag in (-2, -1, 0, 1, 2):
        products = (table[:-1] * np.roll(table[1:], lag, axis=1)).ravel() * 12.0  # variance one under independence
        # five standard errors: one in two million, five times
        assert abs(products.mean()) < 5.0 / np.sqrt(products.size)
