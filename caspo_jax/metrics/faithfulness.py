"""Does the text sound as sure as the model is? MFG and its conditional forms."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, bin_of, per_item, unit

Weighted = Callable[[np.ndarray, np.ndarray], float]  # (F [n], weights [n]) -> value


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
    return weighted_cmfg(confidence, bins, empty)(values.astype(np.float64), np.ones(values.size))


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
    return per_item(values.size)(lambda weights: metric(values, weights))


def weighted_cmfg(c: Any, bins: int = 10, empty: float | None = 0.5) -> Weighted:
    """`cmfg` of changing F and weights with C fixed: linear in F."""
    (confidence,) = _complete(c)
    _check_empty(empty)
    index = bin_of(confidence, bins, right_closed=False)

    def metric(f: np.ndarray, weights: np.ndarray) -> float:
        mass = np.bincount(index, weights, bins)
        occupied = mass > 0.0
        if not occupied.any():
            return float("nan")
        means = np.bincount(index, weights * f, bins)[occupied] / mass[occupied]
        if empty is None:
            return float(means.mean())
        return float((means.sum() + empty * (bins - occupied.sum())) / bins)

    return metric


def cmfg_star_statistic(f: Any, c: Any, bins: int = 10) -> Statistic:
    """`cmfg_star` of `average_ties` as a function of the item weights, which are multiplicities (whole numbers)."""
    values, confidence = _complete(f, c)
    metric = weighted_cmfg_star(confidence, bins)
    return per_item(values.size)(lambda weights: metric(values, weights))


def weighted_cmfg_star(c: Any, bins: int = 10) -> Weighted:
    """`cmfg_star` of `average_ties`, of changing F and weights (whole numbers) with C fixed: linear in F."""
    (confidence,) = _complete(c)
    order = np.argsort(confidence, kind="stable")
    ascending = confidence[order].astype(np.float64)
    _, tie = np.unique(ascending, return_inverse=True)

    def metric(f: np.ndarray, weights: np.ndarray) -> float:
        copies = np.rint(weights[order]).astype(np.int64)
        total = int(copies.sum())
        if total == 0:
            return float("nan")
        mass = np.bincount(tie, copies)
        averaged = (np.bincount(tie, copies * f[order]) / np.maximum(mass, 1))[tie]
        f_all, c_all = np.repeat(averaged, copies), np.repeat(ascending, copies)
        used = min(bins, total)
        sizes = np.full(used, total // used)
        sizes[: total % used] += 1
        ends = np.cumsum(sizes)
        starts = ends - sizes
        inner = 0.5 * (c_all[ends[:-1] - 1] + c_all[starts[1:]])
        widths = np.diff(np.concatenate([c_all[:1], inner, c_all[-1:]]))
        if widths.sum() <= 0.0:
            return float(f_all.mean())
        return float(widths @ (np.add.reduceat(f_all, starts) / sizes) / widths.sum())

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
