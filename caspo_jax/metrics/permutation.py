"""What a faithfulness metric scores when the words have nothing to do with the confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import vector

Metric = Callable[[np.ndarray], float]  # F [n] -> value


class Permuted(NamedTuple):
    """A metric against its permutation distribution."""

    value: float  # on the data
    mean: float  # over the draws: M_permuted
    low: float  # 95 % of the draws lie in [low, high]
    high: float
    share: float  # (1 + draws with at least the value) / (1 + draws): a one-sided p-value

    @property
    def skill(self) -> float:
        """(M - M_permuted) / (1 - M_permuted)."""
        return skill(self.value, self.mean)


def skill(value: float, permuted: float) -> float:
    """(M - M_permuted) / (1 - M_permuted): 0 for words that say nothing of the confidence, 1 for perfect ones."""
    return float((value - permuted) / (1.0 - permuted)) if permuted < 1.0 else float("nan")


def position_groups(index: Any, least: int = 10) -> np.ndarray:
    """Step indices [n], those of fewer than `least` traces joined to the nearest one before that so many have.

    Permuting within a position of one trace would leave that trace as it is. Where no position has `least` traces, the
    most that any has will do; positions before the first such one are joined to it.
    """
    position = np.asarray(index, np.int64)
    if not position.size:
        return position
    reached = np.bincount(position)
    enough = np.flatnonzero(reached >= min(least, reached.max()))
    return enough[np.maximum(np.searchsorted(enough, position, side="right") - 1, 0)]


def permutation_baseline(
    decisiveness: Any,
    confidence: Any,
    position: Any,
    metrics: Mapping[str, Metric],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Permuted]:
    """Metrics of F = 1 - |D - C| with D permuted among the steps of one position.

    Args:
      decisiveness: [n] in [0, 1].
      confidence: [n] in [0, 1].
      position: [n] integers; D is exchanged among equal ones, across traces.
      metrics: name -> function of F [n].
      draws: permutations.
      seed: of the permutations.

    Returns:
      name -> Permuted.

    Raises:
      UserError: lengths that differ, no items, draws < 1.
    """
    d, c = vector(decisiveness, "decisiveness"), vector(confidence, "confidence")
    place = np.asarray(position, np.int64)
    if not d.size == c.size == place.size:
        raise UserError(f"lengths differ: decisiveness {d.size}, confidence {c.size}, position {place.size}")
    if not d.size or draws < 1:
        raise UserError(f"permutation of {d.size} items, {draws} draws: give at least one of each")
    rng = np.random.default_rng(seed)
    home = np.argsort(place, kind="stable")
    found = {name: np.empty(draws) for name in metrics}
    shuffled = np.empty_like(d)
    for k in range(draws):
        shuffled[home] = d[np.lexsort((rng.random(d.size), place))]
        f = 1.0 - np.abs(shuffled - c)
        for name, metric in metrics.items():
            found[name][k] = metric(f)
    own = 1.0 - np.abs(d - c)
    return {name: _permuted(metric(own), found[name]) for name, metric in metrics.items()}


def _permuted(value: float, drawn: np.ndarray) -> Permuted:
    low, high = np.quantile(drawn, [0.025, 0.975])
    share = (1.0 + np.sum(drawn >= value - 1e-12)) / (1.0 + drawn.size)
    return Permuted(float(value), float(drawn.mean()), float(low), float(high), float(share))
