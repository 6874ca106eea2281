"""Do two scores rank alike? Spearman and Kendall, and both as functions of item weights for the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, group_index, per_item, vector

_CHUNK = 1 << 22  # pairs of items compared at once
_LEAST, _BLOCKS = 512, 256  # items of a block at least, but for the last; blocks at most, but for long ties


def spearman(x: Any, y: Any) -> float:
    """Spearman's rho of two score vectors: the correlation of their average ranks.

    Args:
      x: [n] scores.
      y: [n] scores of the same items.

    Returns:
      A float in [-1, 1]; NaN for fewer than two items, or scores that are all equal.

    Raises:
      UserError: lengths that differ, NaN.

    >>> spearman([1, 2, 3], [1, 4, 9])
    1.0
    """
    first, second = _pair(x, y)
    if first.size < 2:
        return float("nan")
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 0.0 else float("nan")


def kendall(x: Any, y: Any) -> float:
    """Kendall's tau-b of two score vectors, in O(n log n).

    (concordant - discordant) / sqrt((pairs - ties in x) (pairs - ties in y)) over all pairs of items.

    Args:
      x: [n] scores.
      y: [n] scores of the same items.

    Returns:
      A float in [-1, 1]; NaN for fewer than two items, or scores that are all equal.

    Raises:
      UserError: lengths that differ, NaN.

    Source: W. R. Knight, A Computer Method for Calculating Kendall's Tau with Ungrouped Data, JASA 61 (1966).

    >>> kendall([1, 2, 3], [9, 4, 1])
    -1.0
    """
    (first, _), (second, levels) = (_runs(values) for values in _pair(x, y))
    n = first.size
    order = np.lexsort((second, first))
    a, b = first[order], second[order]
    pairs = n * (n - 1) // 2
    ties_x, ties_y, ties_both = _tied_pairs(a), _tied_pairs(b), _tied_pairs(a * levels + b)
    scale = math.sqrt((pairs - ties_x) * (pairs - ties_y))
    if scale == 0.0:
        return float("nan")
    discordant = _inversions(b.tolist())
    concordant = pairs - ties_x - ties_y + ties_both - discordant
    return float((concordant - discordant) / scale)


def spearman_statistic(x: Any, y: Any) -> Statistic:
    """`spearman` as a function of the weights: w copies of an item share its average rank.

    With W(<) the weight below a value and w(=) that of the value, the rank is W(<) + (w(=) + 1) / 2.
    """
    first, second = _pair(x, y)
    runs = [_runs(values) for values in (first, second)]

    @per_item(first.size)
    def statistic(weights: np.ndarray) -> float:
        total = weights.sum()
        if total <= 0.0:
            return float("nan")
        centred = []
        for index, count in runs:
            tied = np.bincount(index, weights, count)
            rank = (np.cumsum(tied) - tied + 0.5 * (tied + 1.0))[index]
            centred.append(rank - (weights * rank).sum() / total)
        a, b = centred
        weighted = weights * a
        scale = math.sqrt(float((weighted * a).sum()) * float((weights * b * b).sum()))
        return float(np.clip((weighted * b).sum() / scale, -1.0, 1.0)) if scale > 0.0 else float("nan")

    return statistic


def kendall_statistic(x: Any, y: Any, groups: Sequence[Hashable] | np.ndarray) -> Statistic:
    """Kendall's tau-b as a function of the weights, which must be constant within each group.

    With K_gh the sum of sign(x_i - x_j) sign(y_i - y_j) over i in g and j in h, w the weight of a group, W the sum of
    all weights and t the weights of the tied values: tau-b = w K w / sqrt((W^2 - sum t_x^2)(W^2 - sum t_y^2)). K is
    computed once, so that 1,000 resamples are cheap.
    """
    first, second = _pair(x, y)
    index, count = group_index(groups, first.size)
    order = np.argsort(index, kind="stable")
    position = np.searchsorted(index[order], np.arange(count))
    concordance = _concordance(first[order], second[order], index[order], count)
    representative = order[position] if first.size else np.zeros(0, np.int64)
    runs = [_runs(values) for values in (first, second)]

    @per_item(first.size)
    def statistic(weights: np.ndarray) -> float:
        total = float(weights.sum())
        pairs = [total**2 - float(np.square(np.bincount(i, weights, n)).sum()) for i, n in runs]
        scale = math.sqrt(max(pairs[0], 0.0) * max(pairs[1], 0.0))
        if scale <= 0.0:
            return float("nan")
        group_weight = weights[representative]
        return float(np.clip(group_weight @ concordance @ group_weight / scale, -1.0, 1.0))

    return statistic


def _concordance(x: np.ndarray, y: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """K [g, g] of items sorted by group.

    Items are compared one by one only within a block of like x, or of like y. Between blocks their order is that of the
    blocks, and it is enough to count.
    """
    blocks, others = _blocks(x), _blocks(y)
    return (
        _within(blocks, x, y, group, count)
        + _within(others, blocks, y, group, count)
        + _between(blocks, others, group, count)
    )


def _blocks(values: np.ndarray) -> np.ndarray:
    """Blocks [n] of neighbouring values, in their order. Equal ones are in one block, and many equal ones are a block."""
    _, index, size = np.unique(values, return_inverse=True, return_counts=True)
    most = max(_LEAST, -(-values.size // _BLOCKS))
    window = (np.cumsum(size) - size) // most
    alone = size >= most
    new = (np.diff(window) > 0) | alone[1:] | alone[:-1]
    return np.concatenate([[0], np.cumsum(new)])[index] if values.size else index


def _within(block: np.ndarray, x: np.ndarray, y: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """K [g, g] of the pairs of items that are in one block."""
    found = np.zeros((count, count))
    order = np.argsort(block, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        # Ranks within a block are small, and exact in float32.
        (a, levels), (b, others) = (_runs(values[part]) for values in (x, y))
        if levels < 2 or others < 2:
            continue
        groups, position, index = np.unique(group[part], return_index=True, return_inverse=True)
        pairs = _all_pairs(a.astype(np.float32), b.astype(np.float32), index, position)
        found[np.ix_(groups, groups)] += pairs
    return found


def _between(first: np.ndarray, second: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """K [g, g] with blocks for values."""
    found = np.zeros((count, count))
    columns = int(second.max(initial=-1)) + 1
    order = np.argsort(first, kind="stable")
    cell = group * columns + second
    counts = (
        np.bincount(cell[part], minlength=count * columns).reshape(count, columns).astype(np.float64)
        for part in np.split(order, np.flatnonzero(np.diff(first[order])) + 1)
    )
    before = np.zeros((count, columns))
    after = np.bincount(cell, minlength=count * columns).reshape(count, columns).astype(np.float64)
    for mine in counts:
        after -= mine
        others = before - after  # those of lower x count one, those of higher x minus one
        below = np.cumsum(others, axis=1) - others
        above = others.sum(axis=1, keepdims=True) - below - others
        found += mine @ (below - above).T
        before += mine
    return found


def _all_pairs(x: np.ndarray, y: np.ndarray, group: np.ndarray, position: np.ndarray) -> np.ndarray:
    """K [g, g] of items sorted by group, whose first items are at `position` [g], in O(n^2)."""
    count, n = position.size, x.size
    found = np.zeros((count, count))
    rows = max(1, _CHUNK // max(n, 1))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        signs = np.sign(x[part, None] - x[None]) * np.sign(y[part, None] - y[None])
        of_groups = np.add.reduceat(signs, position, axis=1)
        begin = np.flatnonzero(np.diff(group[part], prepend=-1))
        found[group[part][begin]] += np.add.reduceat(of_groups, begin, axis=0)
    return found


def _pair(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = vector(x, "x"), vector(y, "y")
    if first.size != second.size:
        raise UserError(f"x has {first.size} values and y {second.size}; give one each")
    return first, second


def _runs(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Which distinct value each item has, ascending, and how many there are."""
    distinct, index = np.unique(values, return_inverse=True)
    return index, distinct.size


def _ranks(values: np.ndarray) -> np.ndarray:
    """Average ranks, 1 to n."""
    _, index, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2.0)[index]


def _tied_pairs(values: np.ndarray) -> int:
    """Pairs of equal values."""
    count = np.unique(values, return_counts=True)[1].astype(np.int64)
    return int((count * (count - 1) // 2).sum())


def _inversions(ranks: Sequence[int]) -> int:
    """Pairs i < j with ranks[i] > ranks[j], by a Fenwick tree over the ranks."""
    size = max(ranks, default=-1) + 1
    tree = [0] * (size + 1)
    found = 0
    for seen, rank in enumerate(ranks):
        at, not_above = rank + 1, 0
        while at > 0:
            not_above += tree[at]
            at &= at - 1
        found += seen - not_above
        at = rank + 1
        while at <= size:
            tree[at] += 1
            at += at & -at
    return found
