"""Randomness as an argument: seeds by a stable hash, uniforms by a counter.

The seed of every sample is a hash of what the sample *is* (run seed, question, rollout, position, candidate, index), never of when it was
drawn, so batches, shards, resumption and the number of machines cannot change a result.
"""

import hashlib
from operator import index

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed that depends on every part and on nothing else, equal on every machine and Python version.

    Parts are length-prefixed before hashing, so ``("a", "bc")`` and ``("ab", "c")`` differ, and so do ``1`` and ``"1"``.

    Args:
        *parts: What identifies the sample, for example ``(run_seed, "rollout", question_id, index)``. An integer of numpy counts as the
            Python integer that it equals.

    Returns:
        An integer in [0, 2**64).

    Raises:
        TypeError: If a part is neither text nor an integer.

    Notes:
        BLAKE2b with an 8-byte digest over the typed, length-prefixed parts.

    Example:
        >>> derive_seed(0, "rollout", "q1", 3) == derive_seed(0, "rollout", "q1", 3)
        True
        >>> derive_seed("a", "bc") == derive_seed("ab", "c")
        False
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = (f"str:{part}" if isinstance(part, str) else f"int:{int(index(part))}").encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


def uniforms(
    seeds: UInt64[np.ndarray, "n"], counters: Int[np.ndarray, "n"], mirrored: Bool[np.ndarray, "n"] | None = None
) -> Float[np.ndarray, "n"]:
    """One uniform number per (seed, counter), by counter-based hashing: no state, any order, any batch.

    Args:
        seeds: 64-bit seeds, for example from :func:`derive_seed`.
        counters: Which draw of that seed, from 0; for a continuation the number of tokens it has already drawn.
        mirrored: Where the number is taken from one, so that it is large where that of the same seed is small; None: nowhere.

    Returns:
        Numbers in (0, 1), never exactly 0 or 1, with 52 random bits.

    Notes:
        The SplitMix64 generator, ``finalise(state + (counter + 1) * golden)``, started at ``state = finalise(seed)``, so that adjacent
        seeds give unrelated sequences.

    References:
        Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.

    Example:
        >>> uniforms(np.array([7, 7, 8], dtype=np.uint64), np.array([0, 1, 0])).round(3).tolist()
        [0.524, 0.302, 0.926]
        >>> uniforms(np.array([7, 7], dtype=np.uint64), np.array([0, 0]), np.array([False, True])).sum().tolist()
        1.0
    """
    with np.errstate(over="ignore"):  # wrapping is what a hash does
        state = _finalise(np.asarray(seeds, dtype=np.uint64))
        state = _finalise(state + (np.asarray(counters).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    # one bit fewer than a float64 holds: with 53, adding the half would round the largest numbers to exactly 1
    numbers = ((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return numbers if mirrored is None else np.where(mirrored, 1.0 - numbers, numbers)


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator for a named purpose, seeded by :func:`derive_seed` of `parts`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def _finalise(state: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
