"""Two ways on the same questions: is the difference more than chance?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import vector


class PairedTest(NamedTuple):
    """A mean paired difference and its sign-flip test."""

    difference: float  # mean of a - b over the questions
    p_value: float  # two-sided
    better: int  # questions with a > b
    worse: int  # questions with a < b


def paired_permutation_test(a: Any, b: Any, draws: int = 10_000, seed: int = 0) -> PairedTest:
    """Sign-flip permutation test of mean(a - b) = 0, one value a question.

    Under the null the two ways are exchangeable within each question, so each difference keeps its size and takes
    either sign. All 2^m sign patterns are counted where that is at most `draws` (m the questions that differ), else
    `draws` random ones with the data counted in. For 0/1 values this is McNemar's exact test.

    Args:
      a: [Q] e.g. 1 where the first way was right, or its mean over repeats.
      b: [Q] the same of the second, in the same order of questions.
      draws: sign patterns, at most.
      seed: of the random patterns.

    Returns:
      PairedTest; the p-value is 1 where no question differs.

    >>> paired_permutation_test([1, 1, 1, 1, 0], [0, 0, 0, 1, 0]).p_value  # 3 questions differ: 2 of 8 sign patterns
    0.25
    """
    first, second = vector(a, "a"), vector(b, "b")
    if first.size != second.size or not first.size:
        raise UserError(
            f"a has {first.size} values and b {second.size}; give one for each of the same questions"
        )
    if draws < 1:
        raise UserError(f"draws = {draws}; give at least 1")
    difference = first - second
    moved = difference[difference != 0.0]
    value = float(difference.mean())
    counts = int((difference > 0).sum()), int((difference < 0).sum())
    if not moved.size:
        return PairedTest(value, 1.0, *counts)
    # Sums in another order differ in the last bits of their terms: of a sum of 0 those are no share.
    observed = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()
    if moved.size < 40 and 2**moved.size <= draws:
        patterns = (np.arange(2**moved.size)[:, None] >> np.arange(moved.size)) & 1
        sums = (2 * patterns - 1) @ moved
        return PairedTest(value, float((np.abs(sums) >= observed).mean()), *counts)
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, draws, 1000):
        signs = rng.integers(0, 2, (min(1000, draws - start), moved.size)) * 2 - 1
        extreme += int((np.abs(signs @ moved) >= observed).sum())
    return PairedTest(value, (1 + extreme) / (draws + 1), *counts)
