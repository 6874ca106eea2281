"""Annotated traces to flat arrays, and the numbers that describe a policy on them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.evaluation.confidence_statistics import level_statistics, ranking_statistics, scaled_statistics
from caspo_jax.evaluation.siblings import prefix_digests
from caspo_jax.metrics import Interval, Statistic
from caspo_jax.records import finite
from caspo_jax.types import Trace

# Of a policy's numbers those that share one scale, [0, 1], so that differences of them can stand in one picture.
ON_ONE_SCALE = (
    "step_accuracy",
    "answer_accuracy",
    "flawed_correct_rate",
    "entropy_auroc",
    "within_prefix_logprob_auroc",
    "ece",
    "brier_scaled",
)


@dataclasses.dataclass(frozen=True)
class Tables:
    """Sampled traces of one policy as arrays: S steps with a verdict, N traces."""

    step_question: np.ndarray  # [S] object, question id
    step_prefix: np.ndarray  # [S] int64, group of steps sampled from one prefix
    entropy: np.ndarray  # [S] float64, mean token entropy u of the step, nats
    logprob_confidence: np.ndarray  # [S] float64, exp(mean token log-prob)
    likelihood: np.ndarray  # [S] float64, exp(sum of token log-probs), NaN where it was not given
    right: np.ndarray  # [S] float64, 1 where the step is correct
    question: np.ndarray  # [N] object, question id
    graded: np.ndarray  # [N] float64, 1 where it is known whether the answer is right
    correct: np.ndarray  # [N] float64, 1 where the answer is right
    judged: np.ndarray  # [N] float64, 1 where a step has a verdict
    all_right: np.ndarray  # [N] float64, 1 where steps have verdicts and all are right
    until_error: np.ndarray  # [N] float64, steps up to and including the first wrong one
    right_until_error: np.ndarray  # [N] float64, those of them that are right
    trace_entropy: np.ndarray  # [N] float64, sum of token entropies, nats
    tokens: np.ndarray  # [N] float64

    @property
    def confidence(self) -> np.ndarray:
        """exp(-u), [S]."""
        return np.exp(-self.entropy)


def tabulate(
    traces: Sequence[Trace],
    question_ids: Sequence[str],
    likelihoods: Sequence[Sequence[float | None]] | None = None,
) -> Tables:
    """Flatten annotated traces.

    Args:
      traces: annotated with the `mean_logprob` step confidence, verdicts and answers; per-token entropies present.
      question_ids: the question of each trace.
      likelihoods: of each trace its steps' `sum_logprob` confidence; without them there are no figures of it.

    Steps without a verdict, or with no token that counts, are left out of the step arrays.
    """
    steps: list[tuple[Any, ...]] = []
    rows: list[tuple[Any, ...]] = []
    prefixes: dict[bytes, int] = {}
    unknown: list[Sequence[float | None]] = [[None] * len(trace.steps) for trace in traces]
    for question_id, trace, likely in zip(question_ids, traces, likelihoods or unknown, strict=True):
        judged = []
        digests = prefix_digests(trace, question_id)
        for step, digest, likelihood in zip(trace.steps, digests, likely, strict=True):
            if step.verdict == "unknown" or step.entropy is None:
                continue
            judged.append(step)
            prefix = prefixes.setdefault(digest, len(prefixes))
            right = step.verdict == "correct"
            steps.append((question_id, prefix, step.entropy, step.confidence, likelihood, right))
        right_steps = len(list(itertools.takewhile(lambda s: s.verdict == "correct", judged)))
        entropy = float(np.sum(trace.entropy)) if trace.entropy is not None else np.nan
        rows.append(
            (
                question_id,
                trace.correct is not None,
                bool(trace.correct),
                bool(judged),
                bool(judged) and right_steps == len(judged),
                min(right_steps + 1, len(judged)),
                right_steps,
                entropy,
                len(trace.token_ids),
            )
        )
    return Tables(*_columns(steps, 6), *_columns(rows, 9))


def _columns(rows: list[tuple[Any, ...]], width: int) -> list[np.ndarray]:
    columns = list(zip(*rows, strict=True)) if rows else [()] * width
    return [np.array(columns[0], dtype=object), *(np.array(c, np.float64) for c in columns[1:])]


def statistics(tables: Tables) -> list[tuple[dict[str, Statistic], np.ndarray]]:
    """The metrics of steps, and those of traces, as functions of item weights, each with the items' question ids."""
    t = tables
    entropy, logprob = _ranking(t.confidence, t), _ranking(t.logprob_confidence, t)
    step: dict[str, Statistic] = {
        "step_accuracy": metrics.mean_statistic(t.right),
        "entropy_auroc": entropy["auroc"],
        "logprob_auroc": logprob["auroc"],
        "within_prefix_auroc": entropy["within_prefix"],
        "within_prefix_logprob_auroc": logprob["within_prefix"],
        "within_question_auroc": entropy["within_question"],
        "within_question_logprob_auroc": logprob["within_question"],
        "entropy_gap": metrics.entropy_gap_statistic(t.entropy, t.right),
        **_levels(t.confidence, t),
    }
    if not np.isnan(t.likelihood).any():
        likelihood = _ranking(t.likelihood, t)
        step |= {
            "sum_logprob_auroc": likelihood["auroc"],
            "within_prefix_sum_logprob_auroc": likelihood["within_prefix"],
            "within_question_sum_logprob_auroc": likelihood["within_question"],
            **{f"sum_logprob_{name}": f for name, f in _levels(t.likelihood, t).items()},
        }
    trace: dict[str, Statistic] = {
        "answer_accuracy": metrics.ratio_statistic(t.correct, t.graded),
        "first_error_accuracy": metrics.ratio_statistic(t.right_until_error, t.until_error),
        "flawed_correct_rate": metrics.ratio_statistic(
            t.correct * t.judged * (1 - t.all_right), t.correct * t.judged
        ),
        "all_steps_right": metrics.ratio_statistic(t.all_right, t.judged),
        "mean_entropy": metrics.ratio_statistic(t.trace_entropy, t.tokens),
        "tokens_per_trace": metrics.mean_statistic(t.tokens),
    }
    return [(step, t.step_question), (trace, t.question)]


def _ranking(confidence: np.ndarray, tables: Tables) -> dict[str, Statistic]:
    with np.errstate(divide="ignore"):
        log = np.log(confidence)
    return ranking_statistics(log, tables.right, tables.step_question, tables.step_prefix)


def _levels(confidence: np.ndarray, tables: Tables) -> dict[str, Statistic]:
    sure = np.minimum(confidence, 1.0)  # a sum of log-probs may be a rounding error above 0
    return level_statistics(sure, tables.right) | scaled_statistics(sure, tables.right, tables.step_question)


def group_counts(tables: Tables) -> dict[str, int]:
    """Over how many questions, and prefixes, the AUROCs within them are averaged: those with both verdicts."""
    t = tables
    return {
        "within_question_groups": metrics.within_question_auroc(t.entropy, t.right, t.step_question).groups,
        "within_prefix_groups": metrics.within_prefix_auroc(t.entropy, t.right, t.step_prefix).groups,
    }


def values(tables: Tables) -> dict[str, float]:
    """Every metric on the data."""
    return {
        name: float(f(np.ones(len(groups))))
        for found, groups in statistics(tables)
        for name, f in found.items()
    }


def intervals(tables: Tables, draws: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """95 % bootstrap interval by question of every metric."""
    result: dict[str, Interval] = {}
    for found, groups in statistics(tables):
        resamples = metrics.Resamples.of(groups, draws=draws, seed=seed)
        result |= {name: resamples.interval(f) for name, f in found.items()}
    return result


def paired(
    tables: Tables,
    baseline: Tables,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Differences to a baseline on the same questions, and `flawed_correct_rate_ratio`."""
    result: dict[str, Interval] = {}
    for (ours, groups), (theirs, base_groups) in zip(statistics(tables), statistics(baseline), strict=True):
        resamples = metrics.Resamples.of(groups, base_groups, draws=draws, seed=seed)
        for name, f in ours.items():
            result[name] = resamples.difference(f, theirs[name])
            if name == "flawed_correct_rate":
                result[f"{name}_ratio"] = resamples.ratio(f, theirs[name])
    return result


def difference_record(interval: Interval) -> dict[str, float | None]:
    """{difference, low, high} as JSON, undefined numbers null."""
    return {"difference": finite(interval.value), "low": finite(interval.low), "high": finite(interval.high)}


def records(found: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    """{metric: [low, high]} as JSON."""
    return {name: [finite(i.low), finite(i.high)] for name, i in found.items()}
