"""One scorer against one estimator: the metrics, their intervals, and what trivial words would score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.evaluation.faithfulness.pairing import BINS, METRICS, Pairing, Side, pair_up, weighted_metrics
from caspo_jax.evaluation.faithfulness.skill import permuted_means, skill_statistics
from caspo_jax.evaluation.faithfulness.table import Table
from caspo_jax.metrics import Interval
from caspo_jax.metrics.arrays import bin_of
from caspo_jax.records import finite

POSITIONS = 10


def statistics(p: Pairing) -> dict[str, Side]:
    """Every metric as (function of item weights, question of each item): what the bootstrap needs.

    `mfg` is the mean over traces of the mean F of their steps. cMFG and cMFG* are over steps, and with `trace_` in
    front over traces (mean F against the trace's own confidence); `_occupied` leaves empty bins out. `gap` is the mean
    of D - C over steps: positive where the text sounds surer than the model is.

    All but the rank correlations compare levels, and an estimator's level is arbitrary. Where its values lie above the
    words' (the published `token`, often `hidden`), cMFG and cMFG*, which weigh rare confidences as much as common ones,
    can rank words that follow the confidence below random ones; read them beside Spearman and Kendall.
    """
    f = p.f

    def of(metric: metrics.Weighted) -> metrics.Statistic:
        return lambda weights: metric(weights)(f)

    found: dict[str, Side] = {
        name: (of(metric), p.trace_group) for name, metric in weighted_metrics(p).items()
    }
    for prefix, d, c, group in (("", p.d, p.c, p.group), ("trace_", p.trace_d, p.trace_c, p.trace_group)):
        found[f"{prefix}spearman"] = (metrics.spearman_statistic(d, c), group)
        found[f"{prefix}kendall"] = (metrics.kendall_statistic(d, c, group), group)
    found["gap"] = (metrics.mean_statistic(p.d - p.c), p.group)
    return found


def intervals(named: Mapping[str, Side], draws: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Every statistic with its 95 % bootstrap interval by question."""
    return {
        name: metrics.bootstrap_interval(statistic, groups, draws=draws, seed=seed)
        for name, (statistic, groups) in named.items()
    }


def of_steps(p: Pairing) -> dict[str, metrics.Linear]:
    """METRICS as functions of F [n] with C fixed: what baselines and permutations need."""
    alike = np.ones(p.trace_group.size)
    return {name: metric(alike) for name, metric in weighted_metrics(p).items()}


def faithfulness_record(
    table: Table, scorer: str, estimator: str, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """A scorer against an estimator as JSON: metrics, baselines, skill, coverage, trajectory; {"steps": 0} if no step
    has both.
    """
    p = pair_up(table, scorer, estimator)
    if not p.d.size:
        return {"steps": 0}
    found = intervals(statistics(p), draws, seed)
    functions = of_steps(p)
    permuted = permuted_words(p, draws, seed)
    skills = intervals(skill_statistics(p), draws, seed)
    constants = {
        "always_decisive": 1.0,
        "constant": float(p.d.mean()),
        "best_constant": best_constant(p),
    }
    return {
        "steps": int(p.d.size),
        "traces": int(p.trace_d.size),
        "missing": int(table.trace.size - p.d.size),
        "mean_decisiveness": float(p.d.mean()),
        "mean_confidence": float(p.c.mean()),
        "metrics": {name: interval_record(i) for name, i in found.items()},
        "baselines": {
            **{
                name: {"value": value, **{m: functions[m](1.0 - np.abs(value - p.c)) for m in METRICS}}
                for name, value in constants.items()
            },
            "permuted": {
                m: {"mean": r.mean, "low": r.low, "high": r.high, "p": r.share} for m, r in permuted.items()
            },
        },
        "skill": {m: interval_record(skills[m]) for m in METRICS},
        "coverage": _coverage(p),
        "trajectory": trajectory(p),
    }


def best_constant(p: Pairing) -> float:
    """The one D for all steps that scores best on MFG.

    MFG = mean over traces of the mean over the trace's steps of 1 - |D - C|, so a step weighs 1 / (steps of its trace):
    the best D is the median of C with these weights (missing steps are no steps). Where every D between two values of C
    is as good, their middle.
    """
    order = np.argsort(p.c, kind="stable")
    weight = (1.0 / np.bincount(p.trace)[p.trace])[order]
    below, half = np.cumsum(weight), 0.5 * weight.sum()
    # Sums of reciprocals: a half is met but for rounding.
    low, high = np.searchsorted(below, (half * (1.0 - 1e-9), half * (1.0 + 1e-9)))
    return float(0.5 * (p.c[order[low]] + p.c[order[high]]))


def permuted_words(p: Pairing, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """What METRICS would be if the words were permuted across traces, within their place: the mean over all
    permutations; of random ones the interval and the share above.
    """
    groups = metrics.position_groups(p.index)
    drawn = metrics.permutation_baseline(p.d, p.c, groups, of_steps(p), draws=draws, seed=seed)
    means = permuted_means(p)
    return {name: found._replace(mean=means[name]) for name, found in drawn.items()}


def trajectory(p: Pairing) -> dict[str, list[float | None]]:
    """Mean D and C over ten parts of the trace, and how many steps each holds."""
    part = bin_of(p.position, POSITIONS, right_closed=False)
    count = np.bincount(part, minlength=POSITIONS)
    divisor = np.where(count > 0, count, np.nan)
    return {
        "position": [(k + 0.5) / POSITIONS for k in range(POSITIONS)],
        "decisiveness": [finite(v) for v in np.bincount(part, p.d, POSITIONS) / divisor],
        "confidence": [finite(v) for v in np.bincount(part, p.c, POSITIONS) / divisor],
        "steps": [int(n) for n in count],
    }


def _coverage(p: Pairing) -> dict[str, Any]:
    """How many of cMFG's bins hold steps, and how wide those of cMFG* are."""
    count = np.bincount(bin_of(p.c, BINS, right_closed=False), minlength=BINS)
    mass = metrics.mass_bins(p.f, p.c, BINS)
    return {
        "occupied_bins": int((count > 0).sum()),
        "bin_counts": [int(n) for n in count],
        "mass_edges": [float(e) for e in mass.edges],
        "mass_counts": [int(n) for n in mass.counts],
    }


def interval_record(interval: Interval) -> dict[str, float | None]:
    """{value, low, high} as JSON, undefined numbers null."""
    return {"value": finite(interval.value), "low": finite(interval.low), "high": finite(interval.high)}
