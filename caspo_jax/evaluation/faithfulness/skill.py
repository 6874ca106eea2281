"""How far a metric is above that of the same words handed to other traces, as a function of the questions drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from caspo_jax import metrics
from caspo_jax.evaluation.faithfulness.pairing import BINS, METRICS, Pairing, Side

_DIGITS = 12  # decimals of D; words that differ in later ones are the same
_Pair = Callable[[np.ndarray], tuple[float, float]]  # item weights -> (M, M_permuted)


def skill_statistics(p: Pairing) -> dict[str, Side]:
    """The skill of METRICS, (M - M_permuted) / (1 - M_permuted), for the bootstrap.

    Both M and M_permuted are of the questions drawn: they rise and fall together with the confidences, so an interval
    with M_permuted held fixed would be several times too wide. Words that never change have none: NaN.
    """
    silent = p.d.size > 0 and np.ptp(np.round(p.d, _DIGITS)) == 0.0
    return {
        name: ((lambda weights: math.nan) if silent else _skill(both), groups)
        for name, (both, groups) in _pairs(p).items()
    }


def permuted_means(p: Pairing) -> dict[str, float]:
    """M_permuted of METRICS: the mean over all permutations of D within a place, across traces."""
    return {name: both(np.ones(groups.size))[1] for name, (both, groups) in _pairs(p).items()}


def _skill(both: _Pair) -> metrics.Statistic:
    return lambda weights: metrics.skill(*both(weights))


def _pairs(p: Pairing) -> dict[str, tuple[_Pair, np.ndarray]]:
    """METRICS of these words and of permuted ones, which are the same metric of E[F] because it is linear in F."""
    expected = metrics.permuted_faithfulness(p.d, p.c, metrics.position_groups(p.index))
    of_steps: dict[str, metrics.Weighted] = {}
    of_traces: dict[str, metrics.Weighted] = {"mfg": lambda f, weights: float(weights @ f / weights.sum())}
    for prefix, c, named in (("", p.c, of_steps), ("trace_", p.trace_c, of_traces)):
        named[f"{prefix}cmfg"] = metrics.weighted_cmfg(c, BINS)
        named[f"{prefix}cmfg_occupied"] = metrics.weighted_cmfg(c, BINS, None)
        named[f"{prefix}cmfg_star"] = metrics.weighted_cmfg_star(c, BINS)
    f, trace_f = p.f, p.trace_mean(p.f)

    def steps(metric: metrics.Weighted) -> _Pair:
        return lambda weights: (metric(f, weights), metric(expected(weights), weights))

    def traces(metric: metrics.Weighted) -> _Pair:
        return lambda weights: (
            metric(trace_f, weights),
            metric(p.trace_mean(expected(weights[p.trace])), weights),
        )

    found = {name: (steps(metric), p.group) for name, metric in of_steps.items()}
    found |= {name: (traces(metric), p.trace_group) for name, metric in of_traces.items()}
    return {name: found[name] for name in METRICS}
