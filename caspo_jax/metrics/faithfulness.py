"""Does the text sound as sure as the model is? MFG and its conditional forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import bin_of, unit


def mfg(f: Any) -> float:
    """Mean faithfulness, mean of F = 1 - |D - C| over traces (or steps).

    Args:
      f: [n] in [0, 1]; None or NaN marks a missing value, which is not counted.

    Returns:
      A float; NaN if nothing is left.

    Raises:
      UserError: a value outside [0, 1] (a missing value is null, never -1).

    Source: arXiv 2606.03969.
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
      UserError: lengths that differ, a value outside [0, 1].

    Source: arXiv 2606.03969.
    """
    values, confidence = _present(f=f, c=c)
    index = bin_of(confidence, bins, right_closed=False)
    if not values.size:
        return float("nan")
    count = np.bincount(index, minlength=bins)
    occupied = count > 0
    means = np.bincount(index, values.astype(np.float64), bins)[occupied] / count[occupied]
    if empty is None:
        return float(means.mean())
    return float((means.sum() + empty * (bins - occupied.sum())) / bins)


def cmfg_star(f: Any, c: Any, bins: int = 10) -> float:
    """Faithfulness over equal-mass bins of C, each weighted by the width of C that it covers.

    np.array_split of the stable sort by C into at most n bins; edges midway between the last C of a bin and
    the first of the next, the smallest and largest C at the ends; sum_b width_b mean F_b / sum_b width_b.
    Where all C are equal there is no width, and the plain mean of F is returned. Ties are cut in the order
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
    """
    if bins < 1:
        raise UserError(f"bins = {bins}; give at least 1")
    present_f, present_c = _present(f=f, c=c)
    values, confidence = present_f.astype(np.float64), present_c.astype(np.float64)
    if not values.size:
        return float("nan")
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, values.size))
    inner = [0.5 * (confidence[a[-1]] + confidence[b[0]]) for a, b in itertools.pairwise(parts)]
    widths = np.diff([confidence[parts[0][0]], *inner, confidence[parts[-1][-1]]])
    if widths.sum() <= 0.0:
        return float(values.mean())
    return float(widths @ np.array([values[part].mean() for part in parts]) / widths.sum())


def average_ties(f: Any, c: Any) -> np.ndarray:
    """F [n] with the F of equal C replaced by their mean, so that no order of ties can matter."""
    values, confidence = np.asarray(f, np.float64), np.asarray(c, np.float64)
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
