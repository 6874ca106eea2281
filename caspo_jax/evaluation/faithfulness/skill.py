"""How far a metric is above that of the same words handed to other traces, as a function of the questions drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from caspo_jax import metrics
from caspo_jax.evaluation.faithfulness.pairing import METRICS, Pairing, Side, weighted_metrics

_DIGITS = 12  # decimals of D; words that differ in later ones are the same


def skill_statistics(p: Pairing) -> dict[str, Side]:
    """The skill of METRICS, (M - M_permuted) / (1 - M_permuted), for the bootstrap.

    Both M and M_permuted are of the questions drawn: they rise and fall together with the confidences, so an interval
    with M_permuted held fixed would be several times too wide. Words that never change have none: NaN.
    """
    silent = p.d.size > 0 and np.ptp(np.round(p.d, _DIGITS)) == 0.0
    of_draw = _of_draw(p)

    def skill(name: str) -> metrics.Statistic:
        return lambda weights: math.nan if silent else metrics.skill(*of_draw(weights)[name])

    return {name: (skill(name), p.trace_group) for name in METRICS}


def permuted_means(p: Pairing) -> dict[str, float]:
    """M_permuted of METRICS: the mean over all permutations of D within a place, across traces."""
    found = _of_draw(p)(np.ones(p.trace_group.size))
    return {name: permuted for name, (_, permuted) in found.items()}


def _of_draw(p: Pairing) -> Callable[[np.ndarray], dict[str, tuple[float, float]]]:
    """Weights of the traces [m] -> {metric: (M, M_permuted)}; the same metric of E[F], because it is linear in F.

    A bootstrap asks for one metric after the other, each with the same draws: what a draw gave is remembered.
    """
    expected = metrics.permuted_faithfulness(p.d, p.c, metrics.position_groups(p.index))
    named, f = weighted_metrics(p), p.f
    seen: dict[bytes, dict[str, tuple[float, float]]] = {}

    def of_draw(weights: np.ndarray) -> dict[str, tuple[float, float]]:
        digest = hashlib.sha256(weights.tobytes()).digest()
        if digest not in seen:
            permuted = expected(weights[p.trace])
            metrics_of_draw = {name: metric(weights) for name, metric in named.items()}
            seen[digest] = {name: (metric(f), metric(permuted)) for name, metric in metrics_of_draw.items()}
        return seen[digest]

    return of_draw
