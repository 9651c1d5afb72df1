"""Overlap of the likely tokens equals the paper's formula written out token by token, in numpy and in torch."""

import numpy as np
import pytest
import torch

from opdscope.core.overlap import TOP_TOKENS, num_top, overlap, top_tokens


def rows(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    logits = np.random.default_rng(0).normal(scale=2.0, size=(2, 9, vocab_size))
    student, teacher = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return student, teacher


def by_hand(p: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    count = num_top(len(p))
    shared = [j for j in np.argsort(p)[-count:] if j in np.argsort(q)[-count:]]
    if not shared:
        return 0.0, 0.0
    own, other = (np.exp(values[shared]) / np.exp(values[shared]).sum() for values in (p, q))
    return len(shared) / count, float(np.mean(own * np.log(other / own)))


@pytest.mark.parametrize("vocab_size", [12, 200])
def test_overlap_equals_the_papers_formula(vocab_size: int):
    student, teacher = rows(vocab_size)
    expected = np.array([by_hand(p, q) for p, q in zip(student, teacher, strict=True)]).T
    assert 0 < expected[0].mean() < 1
    np.testing.assert_allclose(overlap(student, top_tokens(student), teacher), expected, atol=1e-13)
    own, other = torch.tensor(student), torch.tensor(teacher)
    np.testing.assert_allclose(torch.stack(overlap(own, top_tokens(own), other)).numpy(), expected, atol=1e-13)


def test_a_teacher_equal_to_the_student_shares_everything_and_one_that_never_takes_its_tokens_shares_nothing():
    student, _ = rows(200)
    ratio, advantage = overlap(student, top_tokens(student), student)
    np.testing.assert_array_equal(ratio, 1.0)
    np.testing.assert_allclose(advantage, 0.0, atol=1e-15)
    foreign = student.copy()
    np.put_along_axis(foreign, top_tokens(student), -np.inf, axis=-1)
    np.testing.assert_array_equal(overlap(student, top_tokens(student), foreign), np.zeros((2, 9)))


def test_a_small_vocabulary_is_not_compared_as_a_whole():
    assert (num_top(3), num_top(27), num_top(50_000)) == (1, 6, TOP_TOKENS)
