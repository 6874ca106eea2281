"""Checked inputs for the metrics: 1-D float64 arrays, verdicts, groups."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from caspo_jax.errors import UserError

Statistic = Callable[[np.ndarray], float]  # item weights [n] -> value; what the bootstrap resamples


def vector(values: Any, name: str) -> np.ndarray:
    """A 1-D float64 array without NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise UserError(f"{name} has shape {array.shape}; give a 1-D array")
    if np.isnan(array).any():
        raise UserError(f"{name}[{int(np.isnan(array).argmax())}] is NaN; drop missing values first")
    return array


def scored(scores: Any, correct: Any, name: str = "confidence") -> tuple[np.ndarray, np.ndarray]:
    """Scores and 0/1 verdicts of the same length."""
    score, verdict = vector(scores, name), vector(correct, "correct")
    if score.shape != verdict.shape:
        raise UserError(f"{name} has {score.size} values and correct {verdict.size}; give one verdict each")
    if not np.isin(verdict, (0.0, 1.0)).all():
        raise UserError("correct holds values other than 0 and 1; give verdicts")
    return score, verdict


def forecasts(confidence: Any, correct: Any) -> tuple[np.ndarray, np.ndarray]:
    """Confidences in [0, 1] and their verdicts."""
    score, verdict = scored(confidence, correct)
    unit(score, "confidence")
    return score, verdict


def unit(values: np.ndarray, name: str) -> None:
    """Refuse values outside [0, 1]: to drop them would flatter the metric."""
    outside = (values < 0.0) | (values > 1.0)
    if outside.any():
        index = int(outside.argmax())
        raise UserError(f"{name}[{index}] = {values[index]} lies outside [0, 1]")


def weight_of(weights: Any, size: int) -> np.ndarray:
    """Weights [size], finite and 0 or more, default ones."""
    if weights is None:
        return np.ones(size)
    array = vector(weights, "weights")
    if array.size != size:
        raise UserError(f"weights has {array.size} values for {size} items")
    bad = (array < 0.0) | np.isinf(array)
    if bad.any():
        index = int(bad.argmax())
        raise UserError(f"weights[{index}] = {array[index]}; give finite weights of 0 or more")
    return array


def check_weights(weights: np.ndarray, size: int) -> None:
    """Refuses any other number of weights, or of groups, than of items: some would silently be ignored."""
    if np.shape(weights) != (size,):
        raise UserError(
            f"a statistic of {size} items was given weights of shape {np.shape(weights)}: give exactly "
            "one weight (in a bootstrap: one group) for each item"
        )


def per_item(size: int) -> Callable[[Statistic], Statistic]:
    """Decorates a function of the weights of `size` items; see `check_weights`."""

    def checked(statistic: Statistic) -> Statistic:
        @functools.wraps(statistic)
        def of_all(weights: np.ndarray) -> float:
            check_weights(weights, size)
            return statistic(weights)

        return of_all

    return checked


def canonical(groups: Iterable[Hashable]) -> list[Hashable]:
    """The distinct groups in an order that depends on nothing but the set.

    Raises:
      UserError: a group is NaN, which is equal to nothing.
    """
    distinct = set(groups)
    if any(group != group for group in distinct):
        raise UserError("groups hold NaN: give every item the id of its group, or drop the items without one")
    try:
        return sorted(distinct)  # type: ignore[type-var]
    except TypeError:  # mixed or unorderable ids
        return sorted(distinct, key=repr)


def group_index(
    groups: Sequence[Hashable] | np.ndarray, size: int | None = None, order: Sequence[Hashable] | None = None
) -> tuple[np.ndarray, int]:
    """Integer group [n] of every item, and the number of groups; any hashable ids will do."""
    items = groups.tolist() if isinstance(groups, np.ndarray) else list(groups)
    if size is not None and len(items) != size:
        raise UserError(f"groups has {len(items)} values for {size} items")
    position = {group: i for i, group in enumerate(canonical(items) if order is None else order)}
    return np.array([position[item] for item in items], dtype=np.int64), len(position)


def equal_count_part(values: np.ndarray, parts: int) -> np.ndarray:
    """Part [n] of each value: `parts` parts of (nearly) equal counts in ascending order.

    Equal values go to the part of the first of them, so that the order of ties cannot matter.
    """
    ordered = np.sort(values)
    part = np.repeat(np.arange(parts), [len(piece) for piece in np.array_split(ordered, parts)])
    return part[np.searchsorted(ordered, values, side="left")]


def bin_of(values: Any, bins: int, right_closed: bool) -> np.ndarray:
    """Equal-width bin of each value in [0, 1]: (a, b] with 0 in the first, or [a, b) with 1 in the last.

    A value within four units of rounding of an edge counts as that edge, so that shares computed as
    `1 - 7 / 10`, or in float32, fall where the exact fraction falls.
    """
    if bins < 1:
        raise UserError(f"bins = {bins}; give at least 1")
    array = np.asarray(values)
    eps = np.finfo(array.dtype).eps if array.dtype.kind == "f" else np.finfo(np.float64).eps
    scaled = array.astype(np.float64) * bins
    nearest = np.rint(scaled)
    scaled = np.where(np.abs(scaled - nearest) <= 4.0 * eps * bins, nearest, scaled)
    index = np.ceil(scaled) - 1 if right_closed else np.floor(scaled)
    return np.clip(index, 0, bins - 1).astype(np.int64)
