"""Does a confidence say more than the length does? AUROC among items of like length, with a permutation null."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import (
    Statistic,
    equal_count_part,
    group_index,
    per_item,
    scored,
    vector,
    weight_of,
)


class ControlledAuroc(NamedTuple):
    """A stratified AUROC beside what chance gives."""

    value: float  # NaN if no stratum has both verdicts
    p_value: float  # share of permutations at least as far above or below the null mean, the data counted in
    null_mean: float  # 0.5 in expectation
    null_high: float  # 97.5 % point of the null
    pairs: int  # pairs of a right and a wrong item that were compared
    length_only: float  # AUROC of -length over all items: what the length alone would give


def length_strata(length: Any, strata: int = 10) -> np.ndarray:
    """Stratum [n] of each item: (nearly) equal counts in order of length, equal lengths always together.

    Raises:
      UserError: strata < 1, a length that is NaN.
    """
    if strata < 1:
        raise UserError(f"strata = {strata}; give at least 1")
    return equal_count_part(vector(length, "length"), strata)


def stratified_auroc(
    confidence: Any, correct: Any, strata: Sequence[Hashable] | np.ndarray, weights: Any = None
) -> float:
    """Concordance over all pairs of a right and a wrong item of one stratum, ties half; NaN without a pair.

    Pairs are pooled over the strata (`grouped_auroc` averages groups instead), so that a stratum of two items does not
    weigh as much as one of a thousand.

    Args:
      confidence: [n], any real scores.
      correct: [n] 0/1.
      strata: [n] hashable.
      weights: [n] non-negative, default ones.
    """
    return stratified_auroc_statistic(confidence, correct, strata)(weight_of(weights, np.size(correct)))


def stratified_auroc_statistic(
    confidence: Any, correct: Any, strata: Sequence[Hashable] | np.ndarray
) -> Statistic:
    """`stratified_auroc` as a function of the weights."""
    score, verdict = scored(confidence, correct)
    index, count = group_index(strata, score.size)
    order = np.lexsort((score, index))
    group, ordered, right = index[order], score[order], verdict[order]
    new = np.ones(score.size, bool)
    new[1:] = (group[1:] != group[:-1]) | (ordered[1:] != ordered[:-1])
    run = np.cumsum(new) - 1
    run_group = group[new]
    runs = len(run_group)

    @per_item(score.size)
    def statistic(weights: np.ndarray) -> float:
        w = weights[order]
        positive, negative = np.bincount(run, w * right, runs), np.bincount(run, w * (1.0 - right), runs)
        positives = np.bincount(run_group, positive, count)
        negatives = np.bincount(run_group, negative, count)
        start = (np.cumsum(negatives) - negatives)[run_group]
        below = np.cumsum(negative) - 0.5 * negative - start
        pairs = positives @ negatives
        return float(positive @ below / pairs) if pairs > 0 else float("nan")

    return statistic


def length_controlled_auroc(
    confidence: Any,
    correct: Any,
    length: Any,
    strata: int = 10,
    draws: int = 1000,
    seed: int = 0,
) -> ControlledAuroc:
    """AUROC among items of like length, with a permutation null.

    The null permutes the verdicts inside each stratum, which keeps everything that the length explains. It takes the
    items of a stratum as exchangeable: steps of one question are not quite, so an interval comes from the bootstrap by
    question (`stratified_auroc_statistic` with `length_strata`).

    Args:
      confidence: [n], any real scores.
      correct: [n] 0/1.
      length: [n], tokens of each item.
      strata: how many strata of (nearly) equal counts.
      draws: permutations.
      seed: of the permutations.
    """
    if draws < 1:
        raise UserError(f"draws = {draws}; give at least 1")
    score, verdict = scored(confidence, correct)
    index = length_strata(length, strata)
    if index.size != score.size:
        raise UserError(f"length has {index.size} values for {score.size} items")
    count = int(index.max()) + 1 if index.size else 0
    order = np.lexsort((score, index))
    group, right = index[order], verdict[order]
    rank = _mid_ranks(score[order], group)
    positives = np.bincount(group, right, count)
    pairs = float(positives @ (np.bincount(group, minlength=count) - positives))
    everything = np.zeros(score.size, np.int64)
    length_only = stratified_auroc(-vector(length, "length"), verdict, everything)
    if pairs <= 0.0:
        return ControlledAuroc(float("nan"), float("nan"), float("nan"), float("nan"), 0, length_only)
    # U = (sum of the mid-ranks of right items) - n+ (n+ + 1) / 2, summed over the strata; the last part is fixed.
    offset = float((positives * (positives + 1.0) / 2.0).sum())
    value = (float(rank @ right) - offset) / pairs
    rng = np.random.default_rng(seed)
    shuffled = right.copy()
    parts = np.split(shuffled, np.flatnonzero(group[1:] != group[:-1]) + 1)  # views
    null = np.empty(draws)
    for i in range(draws):
        for part in parts:
            rng.shuffle(part)
        null[i] = (float((rank * shuffled).sum()) - offset) / pairs
    extreme = np.abs(null - 0.5) >= abs(value - 0.5) - 1e-12
    return ControlledAuroc(
        value=value,
        p_value=(1 + int(extreme.sum())) / (draws + 1),
        null_mean=float(null.mean()),
        null_high=float(np.quantile(null, 0.975)),
        pairs=int(pairs),
        length_only=length_only,
    )


def _mid_ranks(ordered: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rank of each item inside its group, from 1, ties at their mean; items sorted by (group, score)."""
    new_group = np.ones(group.size, bool)
    new_group[1:] = group[1:] != group[:-1]
    new = new_group.copy()
    new[1:] |= ordered[1:] != ordered[:-1]
    run = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    size = np.diff(np.append(first, group.size))
    start = np.flatnonzero(new_group)[np.cumsum(new_group) - 1]
    return first[run] - start + (size[run] + 1) / 2.0
