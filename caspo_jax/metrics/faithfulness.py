"""Does the text sound as sure as the model is? MFG and its conditional forms."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, bin_of, per_item, unit


@dataclasses.dataclass(frozen=True)
class Linear:
    """A metric that is linear in F, with all else fixed: slope F + intercept."""

    slope: np.ndarray  # [n]
    intercept: float

    def __call__(self, f: np.ndarray) -> float:
        """The value for F [n]."""
        return float((self.slope * f).sum() + self.intercept)


Weighted = Callable[[np.ndarray], Linear]  # weights [n] -> the metric as a function of F


class Mass(NamedTuple):
    """The equal-mass bins behind `cmfg_star`."""

    edges: np.ndarray  # [b + 1] confidence
    counts: np.ndarray  # [b] items
    faithfulness: np.ndarray  # [b] mean F


def mfg(f: Any) -> float:
    """Mean faithfulness, mean of F = 1 - |D - C| over traces (or steps).

    Args:
      f: [n] in [0, 1]; None or NaN marks a missing value, which is not counted.

    Returns:
      A float; NaN if nothing is left.

    Raises:
      UserError: a value outside [0, 1] (a missing value is null, never -1).

    Source: arXiv 2606.03969.

    >>> round(mfg([1.0, 0.5, 0.6]), 3)
    0.7
    """
    (values,) = _present(f=f)
    return float(values.mean()) if values.size else float("nan")


def cmfg(f: Any, c: Any, bins: int = 10, empty: float | None = 0.5) -> float:
    """Faithfulness averaged over confidence levels: the mean over equal-width bins of C of the bin's mean F.

    Bins are [a, b), the last one [a, 1]: as published, but confidence 1.0 is not lost. A confidence within a
    rounding error of an edge counts as the edge, so consistency values k/10 are binned as the fractions they are.

    Args:
      f: [n] in [0, 1]; None or NaN marks a missing value, which is not counted.
      c: [n] in [0, 1], likewise.
      bins: number of bins.
      empty: what a bin without items counts (0.5 as published); None averages the occupied bins only.

    Returns:
      A float; NaN if nothing is left.

    Raises:
      UserError: lengths that differ, a value outside [0, 1], `empty` too.

    Source: arXiv 2606.03969.

    >>> round(cmfg([1.0, 0.6], [0.95, 0.15]), 3)  # two bins hold a value, eight count 0.5
    0.56
    """
    values, confidence = _present(f=f, c=c)
    return weighted_cmfg(confidence, bins, empty)(np.ones(values.size))(values.astype(np.float64))


def cmfg_star(f: Any, c: Any, bins: int = 10) -> float:
    """Faithfulness over equal-mass bins of C, each weighted by the width of C that it covers.

    np.array_split of the stable sort by C into at most n bins; edges midway between the last C of a bin and
    the first of the next, the smallest and largest C at the ends; sum_b width_b mean F_b / sum_b width_b.
    Where all C are equal there is no width, and the bins count alike (as published). Ties are cut in the order
    given: use `average_ties` first where C takes few values.

    Args:
      f: [n] in [0, 1]; None or NaN marks a missing value, which is not counted.
      c: [n] in [0, 1], likewise.
      bins: number of bins, at most n are used.

    Returns:
      A float; NaN if nothing is left.

    Raises:
      UserError: lengths that differ, a value outside [0, 1], bins < 1.

    Source: arXiv 2606.03969.

    >>> round(cmfg_star([1.0, 0.6], [0.95, 0.15]), 3)  # two bins of one value each, equally wide
    0.8
    """
    found = mass_bins(f, c, bins)
    if not found.counts.size:
        return float("nan")
    widths = np.diff(found.edges)
    if widths.sum() <= 0.0:
        return float(found.faithfulness.mean())
    return float(widths @ found.faithfulness / widths.sum())


def mass_bins(f: Any, c: Any, bins: int = 10) -> Mass:
    """The bins of `cmfg_star` with their edges, counts and mean F: one outlier may own most of the width."""
    if bins < 1:
        raise UserError(f"bins = {bins}; give at least 1")
    present_f, present_c = _present(f=f, c=c)
    values, confidence = present_f.astype(np.float64), present_c.astype(np.float64)
    if not values.size:
        return Mass(np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, values.size))
    inner = [0.5 * (confidence[a[-1]] + confidence[b[0]]) for a, b in itertools.pairwise(parts)]
    return Mass(
        edges=np.array([confidence[parts[0][0]], *inner, confidence[parts[-1][-1]]]),
        counts=np.array([part.size for part in parts]),
        faithfulness=np.array([values[part].mean() for part in parts]),
    )


def cmfg_statistic(f: Any, c: Any, bins: int = 10, empty: float | None = 0.5) -> Statistic:
    """`cmfg` as a function of the item weights; nothing may be missing. A bin of weight 0 is empty."""
    values, confidence = _complete(f, c)
    metric = weighted_cmfg(confidence, bins, empty)
    return per_item(values.size)(lambda weights: metric(weights)(values))


def weighted_cmfg(c: Any, bins: int = 10, empty: float | None = 0.5) -> Weighted:
    """`cmfg` of changing weights and F with C fixed: weights [n] -> a `Linear` function of F.

    With m_b the weight of bin b and b(i) that of item i: the slope is w_i / (bins m_b(i)), the intercept empty times the
    share of the bins that are empty; without `empty` the occupied bins are all.
    """
    (confidence,) = _complete(c)
    _check_empty(empty)
    index = bin_of(confidence, bins, right_closed=False)

    def metric(weights: np.ndarray) -> Linear:
        mass = np.bincount(index, weights, bins)
        occupied = int((mass > 0.0).sum())
        if not occupied:
            return Linear(np.zeros(index.size), float("nan"))
        counted = occupied if empty is None else bins
        share = np.divide(1.0 / counted, mass, out=np.zeros(bins), where=mass > 0.0)
        return Linear(weights * share[index], 0.0 if empty is None else empty * (bins - occupied) / bins)

    return metric


def cmfg_star_statistic(f: Any, c: Any, bins: int = 10) -> Statistic:
    """`cmfg_star` of `average_ties` as a function of the item weights, which are multiplicities (whole numbers)."""
    values, confidence = _complete(f, c)
    metric = weighted_cmfg_star(confidence, bins)
    return per_item(values.size)(lambda weights: metric(weights)(values))


def weighted_cmfg_star(c: Any, bins: int = 10) -> Weighted:
    """`cmfg_star` of `average_ties`, of changing weights (whole numbers) and F with C fixed: weights [n] -> a `Linear`
    function of F.

    All copies of the items in a row, by C: a bin of s copies and width v counts each of them v / (s sum of widths), and
    what the copies of one C count together is shared alike among them.
    """
    (confidence,) = _complete(c)
    levels, index = np.unique(confidence.astype(np.float64), return_inverse=True)

    def metric(weights: np.ndarray) -> Linear:
        copies = np.bincount(index, np.rint(weights), levels.size)
        last = np.cumsum(copies)  # of each level, places in the row
        total = int(last[-1]) if last.size else 0
        if total == 0:
            return Linear(np.zeros(index.size), float("nan"))
        used = min(bins, total)
        sizes = np.full(used, total // used)
        sizes[: total % used] += 1
        ends = np.cumsum(sizes)
        first, *starts = levels[np.searchsorted(last, ends - sizes, side="right")]  # lowest C of each bin
        *stops, final = levels[np.searchsorted(last, ends - 1, side="right")]  # and highest
        widths = np.diff([first, *(0.5 * np.add(stops, starts)), final])
        if widths.sum() <= 0.0:
            return Linear(weights / total, 0.0)
        # What one copy counts is that of the bin, but for the levels in which a bin ends.
        ended = np.searchsorted(last, ends)
        share = np.zeros(levels.size)
        share[: ended[-1] + 1] = np.repeat(widths / sizes, np.diff(ended, prepend=-1))
        behind = last[ended]
        reached = np.interp([behind - copies[ended], behind], [0, *ends], [0.0, *np.cumsum(widths)])
        share[ended] = np.diff(reached, axis=0)[0] / copies[ended]
        return Linear(weights * (share / widths.sum())[index], 0.0)

    return metric


def average_ties(f: Any, c: Any) -> np.ndarray:
    """F [n] with the F of equal C replaced by their mean, so that no order of ties can matter; nothing may be missing."""
    values, confidence = (array.astype(np.float64) for array in _complete(f, c))
    _, index, count = np.unique(confidence, return_inverse=True, return_counts=True)
    return (np.bincount(index, values) / count)[index]


def _present(**named: Any) -> list[np.ndarray]:
    """The 1-D arrays without the items that are missing in any, each in [0, 1], in its own float type."""
    arrays = {}
    for name, values in named.items():
        array = np.asarray(values)
        arrays[name] = array if array.dtype.kind == "f" else np.asarray(values, dtype=np.float64)
        if array.ndim != 1:
            raise UserError(f"{name} has shape {array.shape}; give a 1-D array")
    sizes = {name: array.size for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"lengths differ: {', '.join(f'{name} has {size}' for name, size in sizes.items())}")
    present = np.logical_and.reduce([~np.isnan(array) for array in arrays.values()])
    for name, array in arrays.items():
        unit(array[~np.isnan(array)], name)
    return [array[present] for array in arrays.values()]


def _check_empty(empty: float | None) -> None:
    if empty is not None and not 0.0 <= empty <= 1.0:
        raise UserError(f"empty = {empty} lies outside [0, 1]; give what a bin without items counts, or None")


def _complete(*arrays: Any) -> list[np.ndarray]:
    names = ("f", "c") if len(arrays) == 2 else ("c",)
    found = _present(**dict(zip(names, arrays)))
    if found[0].size != np.size(arrays[0]):
        raise UserError("no missing values are taken here; drop them first")
    return found
