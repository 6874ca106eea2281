"""What a faithfulness metric scores when the words have nothing to do with the confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import vector

Metric = Callable[[np.ndarray], float]  # F [n] -> value
_ROUNDING = 1e-12  # two values that differ by less are one


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
    """(M - M_permuted) / (1 - M_permuted): 0 for words that say nothing of the confidence, 1 for perfect ones.

    A difference of rounding counts as none; NaN where M_permuted is 1.
    """
    if not permuted < 1.0 - _ROUNDING:
        return float("nan")
    gained = value - permuted
    return float(gained / (1.0 - permuted)) if abs(gained) >= _ROUNDING else 0.0


def position_groups(index: Any, least: int = 10) -> np.ndarray:
    """Step indices [n], those of fewer than `least` traces joined to the nearest one before that so many have.

    Permuting within a position of one trace would leave that trace as it is. Where no position has `least` traces, the
    most that any has will do; positions before the first such one are joined to it.

    Raises:
      UserError: a negative index, not 1-D, least < 1.
    """
    position = np.asarray(index, np.int64)
    if not position.size:
        return position
    if position.ndim != 1 or position.min() < 0 or least < 1:
        raise UserError(
            f"positions of shape {position.shape} from {position.min()} on, least = {least}: give places [n] that count "
            "from 0, and at least 1"
        )
    reached = np.bincount(position)
    enough = np.flatnonzero(reached >= min(least, int(reached.max())))
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
    d, c, place = _checked(decisiveness, confidence, position)
    if not d.size or draws < 1:
        raise UserError(f"permutation of {d.size} items, {draws} draws: give at least one of each")
    rng = np.random.default_rng(seed)
    home = np.argsort(place, kind="stable")
    found = {name: np.empty(draws) for name in metrics}
    shuffled = np.empty_like(d)
    for k in range(draws):
        shuffled[home] = d[np.argsort(place + rng.random(d.size))]
        f = 1.0 - np.abs(shuffled - c)
        for name, metric in metrics.items():
            found[name][k] = metric(f)
    own = 1.0 - np.abs(d - c)
    return {name: _permuted(metric(own), found[name]) for name, metric in metrics.items()}


def permuted_faithfulness(
    decisiveness: Any, confidence: Any, position: Any
) -> Callable[[np.ndarray], np.ndarray]:
    """The mean of F over all permutations of D among the steps of one position, as a function of the weights.

    With w copies of each step, E[F_i] = 1 - sum_j w_j |D_j - C_i| / sum_j w_j over the steps j of i's position. A metric
    that is linear in F with C fixed, as MFG, cMFG and cMFG* are, has at E[F] its mean over the permutations. O(n) for
    each vector of weights.

    Args:
      decisiveness: [n] in [0, 1].
      confidence: [n] in [0, 1].
      position: [n] integers; D is exchanged among equal ones, across traces.

    Returns:
      weights [n] -> E[F] [n]; 0 at positions without weight.

    Raises:
      UserError: lengths that differ.

    >>> permuted_faithfulness([0.0, 1.0], [0.2, 0.8], [0, 0])(np.ones(2))
    array([0.5, 0.5])
    """
    d, c, place = _checked(decisiveness, confidence, position)
    order = np.lexsort((d, place))
    ordered = d[order]
    ends = np.cumsum(np.bincount(place))
    starts = ends - np.bincount(place)
    # Where C_i would stand among the D of its position: those before it are below it.
    below = np.empty(d.size, np.int64)
    for begin, end in zip(starts, ends):
        mine = order[begin:end]
        below[mine] = begin + np.searchsorted(ordered[begin:end], c[mine])

    def expected(weights: np.ndarray) -> np.ndarray:
        moved = weights[order]
        mass = np.concatenate([[0.0], np.cumsum(moved)])
        moment = np.concatenate([[0.0], np.cumsum(moved * ordered)])
        total = mass[ends] - mass[starts]
        # Sum of w |D - C|: c (mass below - mass above) - (moment below - moment above).
        apart = c * (2.0 * mass[below] - (mass[starts] + mass[ends])[place])
        apart -= 2.0 * moment[below] - (moment[starts] + moment[ends])[place]
        share = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0.0)[place]
        return (share > 0.0) - apart * share

    return expected


def _checked(decisiveness: Any, confidence: Any, position: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    d, c = vector(decisiveness, "decisiveness"), vector(confidence, "confidence")
    place = np.asarray(position, np.int64)
    if not d.size == c.size == place.size:
        raise UserError(f"lengths differ: decisiveness {d.size}, confidence {c.size}, position {place.size}")
    return d, c, np.unique(place, return_inverse=True)[1]


def _permuted(value: float, drawn: np.ndarray) -> Permuted:
    low, high = np.quantile(drawn, [0.025, 0.975])
    share = (1.0 + np.sum(drawn >= value - 1e-12)) / (1.0 + drawn.size)
    return Permuted(float(value), float(drawn.mean()), float(low), float(high), float(share))
