"""One scorer against one estimator: the metrics, their intervals, and what trivial words would score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.evaluation.faithfulness.pairing import BINS, METRICS, Pairing, Side, pair_up
from caspo_jax.evaluation.faithfulness.skill import permuted_means, skill_statistics
from caspo_jax.evaluation.faithfulness.table import Table
from caspo_jax.evaluation.tables import finite
from caspo_jax.metrics import Interval
from caspo_jax.metrics.arrays import bin_of

POSITIONS = 10
RANKS = ("spearman", "kendall", "trace_spearman", "trace_kendall")


def statistics(p: Pairing) -> dict[str, Side]:
    """Every metric as (function of item weights, question of each item): what the bootstrap needs.

    `mfg` is the mean over traces of the mean F of their steps. cMFG and cMFG* are over steps, and with `trace_` in
    front over traces (mean F against the trace's own confidence); `_occupied` leaves empty bins out. `gap` is the mean
    of D - C over steps: positive where the text sounds surer than the model is.

    All but the rank correlations compare levels, and an estimator's level is arbitrary. Where its values lie above the
    words' (the published `token`, often `hidden`), cMFG and cMFG*, which weigh rare confidences as much as common ones,
    can rank words that follow the confidence below random ones; read them beside Spearman and Kendall.
    """
    found: dict[str, Side] = {}
    f = p.f
    trace_f = p.trace_mean(f)
    found["mfg"] = (metrics.mean_statistic(trace_f), p.trace_group)
    for prefix, values, confidence, group in (
        ("", f, p.c, p.group),
        ("trace_", trace_f, p.trace_c, p.trace_group),
    ):
        found[f"{prefix}cmfg"] = (metrics.cmfg_statistic(values, confidence, BINS), group)
        found[f"{prefix}cmfg_occupied"] = (metrics.cmfg_statistic(values, confidence, BINS, None), group)
        found[f"{prefix}cmfg_star"] = (metrics.cmfg_star_statistic(values, confidence, BINS), group)
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


def of_steps(p: Pairing) -> dict[str, Callable[[np.ndarray], float]]:
    """METRICS as functions of F [n] with C fixed: what baselines and permutations need."""
    fixed_steps, fixed_traces = _Fixed(p.c), _Fixed(p.trace_c)
    found: dict[str, Callable[[np.ndarray], float]] = {"mfg": lambda f: float(p.trace_mean(f).mean())}

    def over_traces(metric: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
        return lambda f: metric(p.trace_mean(f))

    for name in ("cmfg", "cmfg_occupied", "cmfg_star"):
        found[name] = getattr(fixed_steps, name)
        found[f"trace_{name}"] = over_traces(getattr(fixed_traces, name))
    return {name: found[name] for name in METRICS}


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


class _Fixed:
    """cMFG and cMFG* of changing F with C fixed: bins, ties and widths are found once."""

    def __init__(self, c: np.ndarray):
        self.index = bin_of(c, BINS, right_closed=False)
        self.count = np.bincount(self.index, minlength=BINS)
        self.order = np.argsort(c, kind="stable")
        _, self.tie, copies = np.unique(c, return_inverse=True, return_counts=True)
        self.copies = copies
        bins = metrics.mass_bins(np.zeros(c.size), c, BINS)
        self.sizes, self.widths = bins.counts, np.diff(bins.edges)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def cmfg(self, f: np.ndarray) -> float:
        means = self._means(f)
        return float((means.sum() + 0.5 * (BINS - means.size)) / BINS)

    def cmfg_occupied(self, f: np.ndarray) -> float:
        return float(self._means(f).mean())

    def cmfg_star(self, f: np.ndarray) -> float:
        averaged = (np.bincount(self.tie, f) / self.copies)[self.tie]
        if self.widths.sum() <= 0.0:
            return float(f.mean())
        means = np.add.reduceat(averaged[self.order], self.starts) / self.sizes
        return float(self.widths @ means / self.widths.sum())

    def _means(self, f: np.ndarray) -> np.ndarray:
        occupied = self.count > 0
        return np.bincount(self.index, f, BINS)[occupied] / self.count[occupied]


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
