"""The steps and traces that one scorer and one estimator both speak of."""

from __future__ import annotations

import dataclasses

import numpy as np

from caspo_jax import metrics
from caspo_jax.evaluation.faithfulness.table import Table, trace_means

BINS = 10
# A function of item weights, and the question of each item: what a bootstrap needs.
Side = tuple[metrics.Statistic, np.ndarray]
METRICS = (
    "mfg",
    "cmfg",
    "cmfg_occupied",
    "cmfg_star",
    "trace_cmfg",
    "trace_cmfg_occupied",
    "trace_cmfg_star",
)


@dataclasses.dataclass(frozen=True)
class Pairing:
    """The steps and traces that have both a decisiveness D and a confidence C."""

    d: np.ndarray  # [n]
    c: np.ndarray  # [n]
    trace: np.ndarray  # [n] int64, 0 .. m - 1
    group: np.ndarray  # [n] question
    index: np.ndarray  # [n] place in its trace
    position: np.ndarray  # [n] the same in [0, 1]
    trace_d: np.ndarray  # [m] mean D of its steps
    trace_c: np.ndarray  # [m] the estimator's own trace score
    trace_group: np.ndarray  # [m]

    @property
    def f(self) -> np.ndarray:
        """F = 1 - |D - C|, [n]."""
        return 1.0 - np.abs(self.d - self.c)


def pair_up(table: Table, scorer: str, estimator: str) -> Pairing:
    """The valid steps of a scorer and an estimator, and their traces."""
    d, c = table.decisiveness[scorer], table.confidence[estimator]
    valid = ~(np.isnan(d) | np.isnan(c))
    kept, trace = np.unique(table.trace[valid], return_inverse=True)
    return Pairing(
        d=d[valid],
        c=c[valid],
        trace=trace.astype(np.int64),
        group=table.group[valid],
        index=table.index[valid],
        position=table.position[valid],
        trace_d=trace_means(np.where(valid, d, np.nan), table)[kept],
        trace_c=table.trace_confidence[estimator][kept],
        trace_group=table.trace_group[kept],
    )


def weighted_metrics(p: Pairing) -> dict[str, metrics.Weighted]:
    """METRICS with C fixed, as functions of the weights of the traces [m] and then of F [n]."""
    steps = np.bincount(p.trace)

    def of_steps(metric: metrics.Weighted) -> metrics.Weighted:
        return lambda weights: metric(weights[p.trace])

    def of_traces(metric: metrics.Weighted) -> metrics.Weighted:
        def of_their_mean(weights: np.ndarray) -> metrics.Linear:
            of_means = metric(weights)
            return metrics.Linear((of_means.slope / steps)[p.trace], of_means.intercept)

        return of_their_mean

    found = {"mfg": of_traces(lambda weights: metrics.Linear(weights / weights.sum(), 0.0))}
    for prefix, c, of in (("", p.c, of_steps), ("trace_", p.trace_c, of_traces)):
        found[f"{prefix}cmfg"] = of(metrics.weighted_cmfg(c, BINS))
        found[f"{prefix}cmfg_occupied"] = of(metrics.weighted_cmfg(c, BINS, None))
        found[f"{prefix}cmfg_star"] = of(metrics.weighted_cmfg_star(c, BINS))
    return {name: found[name] for name in METRICS}
