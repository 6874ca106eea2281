"""Statistics that know how to resample themselves by group, faster than one call of theirs for each draw."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from caspo_jax.metrics.arrays import check_weights

_BLOCK = 2**14  # numbers of each array that a block of draws makes


class Resampled(abc.ABC):
    """A statistic, item weights [n] -> value, that can be given the multiplicities of many draws at once."""

    size: int  # n

    @abc.abstractmethod
    def __call__(self, weights: np.ndarray) -> float:
        """The value under item weights [n]."""

    @abc.abstractmethod
    def resample(self, group: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The values [draws] under the weights `counts[:, group]`: groups [n] and how often each is drawn [draws, groups]."""


class Term(NamedTuple):
    """What the items add to the sums: `value` [n] to the sum in `column`, one for all items or [n]."""

    column: np.ndarray | int
    value: np.ndarray


class SumStatistic(Resampled):
    """A statistic of weighted sums over the items, combine(sum_i w_i a_i) with a_i [columns] the terms of item i.

    With the sums of each group, all draws are combine(counts @ sums): the items are looked at once and not in every draw.

    Args:
      terms: the items' addends.
      columns: number of sums.
      combine: sums [..., columns] -> values [...].
    """

    def __init__(self, terms: Sequence[Term], columns: int, combine: Callable[[np.ndarray], np.ndarray]):
        self.size = len(terms[0].value)
        self._terms, self._columns, self._combine = terms, columns, combine

    def __call__(self, weights: np.ndarray) -> float:
        """combine(sum_i w_i a_i)."""
        check_weights(weights, self.size)
        everything = np.zeros(self.size, np.int64)
        return float(self._combine(self._sums(everything, 1, weights))[0])

    def resample(self, group: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """combine(counts @ the groups' sums)."""
        check_weights(group, self.size)
        return self._combine(counts @ self._sums(group, counts.shape[1], 1.0))

    def _sums(self, group: np.ndarray, groups: int, weights: np.ndarray | float) -> np.ndarray:
        """[groups, columns]."""
        cells = groups * self._columns
        first = group * self._columns
        total = np.zeros(cells)
        for column, value in self._terms:
            total += np.bincount(first + column, value * weights, cells)
        return total.reshape(groups, self._columns)


def in_blocks(values: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, items: int) -> np.ndarray:
    """The values [draws] of all the counts [draws, groups], of as many draws at a time as a cache holds the items of."""
    rows = max(1, _BLOCK // max(1, items))
    return np.concatenate([values(counts[i : i + rows]) for i in range(0, len(counts), rows)])


def quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    undefined = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)
