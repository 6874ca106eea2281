"""The report: every scorer against every estimator, agreement, factual calibration; and two policies compared."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.evaluation.confidence_statistics import level_statistics, ranking_statistics, scaled_statistics
from caspo_jax.evaluation.faithfulness.agreement import agreement
from caspo_jax.evaluation.faithfulness.faithful import (
    faithfulness_record,
    interval_record,
    statistics,
)
from caspo_jax.evaluation.faithfulness.pairing import METRICS, Pairing, Side, pair_up
from caspo_jax.evaluation.faithfulness.skill import permuted_means, skill_statistics
from caspo_jax.evaluation.faithfulness.table import ESTIMATORS, LIKELIHOODS, Table
from caspo_jax.evaluation.tables import difference_record
from caspo_jax.records import finite

_LEAST = 2  # steps of each verdict that a calibration needs


def report_record(
    table: Table,
    counts: Mapping[str, Any],
    draws: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """The whole report as JSON.

    Args:
      table: from `build_table`.
      counts: of the traces, from `count_subjects`.
      draws: bootstrap resamples and permutations.
      seed: of both.
      progress: called with (confidences done, confidences in all): each under each scorer, and each against the verdicts.
      facts: further entries (settings, why a stage was left out).
    """
    estimators = [name for name in ESTIMATORS if name in table.confidence]
    pairs = len(table.decisiveness) * len(estimators)
    total = pairs + len(_calibrated(table))
    faithfulness: dict[str, dict[str, Any]] = {scorer: {} for scorer in table.decisiveness}
    for done, (scorer, name) in enumerate(itertools.product(table.decisiveness, estimators), start=1):
        faithfulness[scorer][name] = faithfulness_record(table, scorer, name, draws, seed)
        if progress is not None:
            progress(done, total)
    counted = None if progress is None else (lambda done, _: progress(pairs + done, total))
    return {
        "schema": {"name": "faithfulness_report", "version": 1},
        "traces": dict(counts),
        **facts,
        "decisiveness": {name: _summary(values) for name, values in table.decisiveness.items()},
        "confidence": {name: _summary(table.confidence[name]) for name in estimators},
        "scorer_agreement": _agreement(table.decisiveness),
        "estimator_agreement": _agreement({name: table.confidence[name] for name in estimators}),
        "trace_estimator_agreement": _agreement({name: table.trace_confidence[name] for name in estimators}),
        "faithfulness": faithfulness,
        "calibration": calibration_record(table, draws, seed, counted),
    }


def _calibrated(table: Table) -> dict[str, np.ndarray]:
    """What is compared with the verdicts of steps: every estimator, every likelihood, what the words say."""
    named = {name: table.confidence[name] for name in (*ESTIMATORS, *LIKELIHOODS) if name in table.confidence}
    return named | {f"words:{name}": values for name, values in table.decisiveness.items()}


def calibration_record(
    table: Table, draws: int = 1000, seed: int = 0, progress: Callable[[int, int], Any] | None = None
) -> dict[str, Any]:
    """Confidence against correctness of steps, for every estimator, every likelihood, and what the words say.

    Bias (mean confidence - accuracy), ECE and Brier score, raw and after a cross-fitted one-parameter scaling; AUROC
    pooled, within questions and within prefixes, beside the number of questions and of prefixes that have both verdicts.

    Args:
      table: from `build_table`.
      draws: of the bootstrap by question, whose 95 % intervals stand beside every figure.
      seed: of the bootstrap.
      progress: called with (confidences done, confidences in all).

    Returns:
      {name: figures}; what has fewer than two right or two wrong steps is left out.
    """
    named = _calibrated(table)
    found = {}
    for done, (name, values) in enumerate(named.items(), start=1):
        figures = _calibration(table, values, draws, seed)
        if figures is not None:
            found[name] = figures
        if progress is not None:
            progress(done, len(named))
    return found


def _calibration(table: Table, values: np.ndarray, draws: int, seed: int) -> dict[str, Any] | None:
    known = ~(np.isnan(values) | np.isnan(table.right))
    c, right, group, prefix = (a[known] for a in (values, table.right, table.group, table.prefix))
    if min((right == 1).sum(), (right == 0).sum()) < _LEAST:
        return None
    with np.errstate(divide="ignore"):
        ranked = ranking_statistics(np.log(c), right, group, prefix)
    functions = {
        **level_statistics(c, right),
        "auroc": ranked["auroc"],
        "within_question_auroc": ranked["within_question"],
        "within_prefix_auroc": ranked["within_prefix"],
        **scaled_statistics(c, right, group),
    }
    resamples = metrics.Resamples.of(group, draws=draws, seed=seed)
    return {
        "steps": int(c.size),
        "accuracy": float(right.mean()),
        "within_question_groups": metrics.within_question_auroc(c, right, group).groups,
        "within_prefix_groups": metrics.within_prefix_auroc(c, right, prefix).groups,
        **{metric: interval_record(resamples.interval(f)) for metric, f in functions.items()},
    }


def compare_record(first: Table, second: Table, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Two policies on the same questions: metrics of both, and second - first with 95 % intervals paired by question.

    Questions that only one of them answered are left out.

    Raises:
      UserError: no question, or no scorer, in common.
    """
    shared = set(first.trace_group) & set(second.trace_group)
    scorers = [name for name in first.decisiveness if name in second.decisiveness]
    if not shared or not scorers:
        raise UserError(
            "the two reports have no question, or no scorer, in common: run both on the same questions"
        )
    estimators = [n for n in ESTIMATORS if n in first.confidence and n in second.confidence]
    record: dict[str, Any] = {
        "questions": len(shared),
        "left_out": len(set(first.trace_group) ^ set(second.trace_group)),
        "decisiveness": {},
        "confidence": {},
        "faithfulness": {},
    }
    for kind, names in (("decisiveness", scorers), ("confidence", estimators)):
        for name in names:
            sides = [_mean_of(getattr(table, kind)[name], table, shared) for table in (first, second)]
            record[kind][name] = _difference(sides, draws, seed)
    if all(np.isfinite(table.right).any() for table in (first, second)):
        sides = [_mean_of(table.right, table, shared) for table in (first, second)]
        record["step_accuracy"] = _difference(sides, draws, seed)
    for scorer in scorers:
        record["faithfulness"][scorer] = {}
        for name in estimators:
            pairs = [pair_up(only(table, shared), scorer, name) for table in (first, second)]
            if all(p.d.size for p in pairs):
                record["faithfulness"][scorer][name] = _compared(pairs, draws, seed)
    return record


def _compared(pairs: Sequence[Pairing], draws: int, seed: int) -> dict[str, Any]:
    """Every metric of two policies; what permuted words would score in each; the skill beyond these."""
    both = [statistics(p) for p in pairs]
    found = {name: _difference([side[name] for side in both], draws, seed) for name in both[0]}
    permuted = [permuted_means(p) for p in pairs]
    for name in METRICS:
        a, b = (side[name] for side in permuted)
        found[f"permuted_{name}"] = {"first": a, "second": b, "difference": b - a, "low": None, "high": None}
    skills = [skill_statistics(p) for p in pairs]
    for name in METRICS:
        found[f"skill_{name}"] = _difference([side[name] for side in skills], draws, seed)
    return found


def only(table: Table, questions: set[Any]) -> Table:
    """The table with all estimates of other questions' steps missing."""
    kept = np.array([group in questions for group in table.group], bool)
    return dataclasses.replace(
        table,
        decisiveness={name: np.where(kept, values, np.nan) for name, values in table.decisiveness.items()},
    )


def _mean_of(values: np.ndarray, table: Table, questions: set[Any]) -> Side:
    known = ~np.isnan(values) & np.array([group in questions for group in table.group], bool)
    return metrics.mean_statistic(values[known]), table.group[known]


def _difference(sides: Sequence[Side], draws: int, seed: int) -> dict[str, Any]:
    (f, groups), (g, other) = sides
    if not groups.size or not other.size:
        return {"first": None, "second": None, "difference": None, "low": None, "high": None}
    interval = metrics.paired_difference(g, f, other, groups, draws=draws, seed=seed)
    return {
        "first": finite(f(np.ones(groups.size))),
        "second": finite(g(np.ones(other.size))),
        **difference_record(interval),
    }


def _summary(values: np.ndarray) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    if not known.size:
        return {"steps": 0, "missing": int(values.size)}
    return {
        "steps": int(known.size),
        "missing": int(values.size - known.size),
        "mean": float(known.mean()),
        "std": float(known.std()),
        "quantiles": [float(q) for q in np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95])],
    }


def _agreement(named: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    values = {name: [None if np.isnan(v) else float(v) for v in array] for name, array in named.items()}
    return [item.to_record() for item in agreement(values)]
