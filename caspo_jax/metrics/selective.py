"""What is gained by answering only where one is sure: risk against coverage, precision against recall."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, per_item, scored, weight_of


class RiskCoverage(NamedTuple):
    """Selective risk when only the surest items are answered; a tie enters as a whole."""

    coverage: np.ndarray  # [m] share answered, increasing to 1
    risk: np.ndarray  # [m] share wrong among those answered
    confidence: np.ndarray  # [m] smallest confidence among those answered


def aurc(confidence: Any, correct: Any, weights: Any = None) -> float:
    """Area under the risk-coverage curve: the mean selective risk over all coverages.

    AURC = (1 / n) sum_k E[errors among the k surest] / k, the expectation over orders of ties, so that no order of
    ties can matter: the j-th item of a tie of m items with e errors counts e / m of an error.

    Args:
      confidence: [n], any real scores.
      correct: [n] 0/1.
      weights: [n] multiplicities (integers, 0 or more), default ones.

    Returns:
      A float in [0, 1]; NaN for no items.

    Source: Geifman et al. 2019; ties as in Zhou et al. 2024.

    >>> round(aurc([0.9, 0.8, 0.1], [1, 1, 0]), 4)  # (0 + 0 + 1/3) / 3
    0.1111
    """
    return aurc_statistic(confidence, correct)(weight_of(weights, np.size(correct)))


def aurc_statistic(confidence: Any, correct: Any) -> Statistic:
    """`aurc` as a function of integer weights: an item of weight m is a tie of m items."""
    score, verdict = scored(confidence, correct)
    run, runs = _descending_runs(score)

    @per_item(score.size)
    def statistic(weights: np.ndarray) -> float:
        if (weights != np.rint(weights)).any():
            raise UserError("aurc: weights are multiplicities; give integers")
        size = np.bincount(run, weights, runs)
        wrong = np.bincount(run, weights * (1.0 - verdict), runs)
        total = size.sum()
        if total <= 0.0:
            return float("nan")
        ends = np.cumsum(size)
        starts = ends - size
        before = np.cumsum(wrong) - wrong
        # sum_j (E + e j / m) / (N + j) over j = 1..m is e + (E - e N / m) (H(N + m) - H(N)), H the harmonic numbers.
        harmonic = np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, int(total) + 1))))
        span = harmonic[ends.astype(np.int64)] - harmonic[starts.astype(np.int64)]
        share = np.divide(wrong, size, out=np.zeros_like(wrong), where=size > 0)
        return float((wrong + (before - share * starts) * span).sum() / total)

    return statistic


def augrc(confidence: Any, correct: Any, weights: Any = None) -> float:
    """Area under the generalised risk-coverage curve: the mean share of all items that are answered wrongly.

    AUGRC = integral over coverage of (errors answered) / n, by trapezoids, with a straight line across each tie. It is
    (1 - AUROC) a (1 - a) + (1 - a)^2 / 2 with a the accuracy: the ranking and the accuracy in one number.

    Args:
      confidence: [n], any real scores.
      correct: [n] 0/1.
      weights: [n] non-negative, default ones.

    Returns:
      A float in [0, 0.5]; NaN for no items.

    Source: Traub et al. 2024.
    """
    return augrc_statistic(confidence, correct)(weight_of(weights, np.size(correct)))


def augrc_statistic(confidence: Any, correct: Any) -> Statistic:
    """`augrc` as a function of the weights."""
    score, verdict = scored(confidence, correct)
    run, runs = _descending_runs(score)

    @per_item(score.size)
    def statistic(weights: np.ndarray) -> float:
        size = np.bincount(run, weights, runs)
        wrong = np.bincount(run, weights * (1.0 - verdict), runs)
        total = size.sum()
        if total <= 0.0:
            return float("nan")
        return float(size @ (np.cumsum(wrong) - 0.5 * wrong) / total**2)

    return statistic


def average_precision(confidence: Any, correct: Any, weights: Any = None) -> float:
    """Area under the precision-recall curve for finding right items: sum_k (R_k - R_{k-1}) P_k, a tie as a whole.

    For finding wrong items give `-confidence` and `1 - correct`: where errors are rare, that is the telling one.

    Args:
      confidence: [n], any real scores.
      correct: [n] 0/1.
      weights: [n] non-negative, default ones.

    Returns:
      A float in [0, 1], the share right for a confidence that says nothing; NaN if one of the verdicts is missing.
    """
    return average_precision_statistic(confidence, correct)(weight_of(weights, np.size(correct)))


def average_precision_statistic(confidence: Any, correct: Any) -> Statistic:
    """`average_precision` as a function of the weights."""
    score, verdict = scored(confidence, correct)
    run, runs = _descending_runs(score)

    @per_item(score.size)
    def statistic(weights: np.ndarray) -> float:
        size = np.bincount(run, weights, runs)
        right = np.bincount(run, weights * verdict, runs)
        found, answered = np.cumsum(right), np.cumsum(size)
        total = right.sum()
        if total <= 0.0 or total >= size.sum():
            return float("nan")
        precision = np.divide(found, answered, out=np.zeros_like(found), where=answered > 0)
        return float(right @ precision / total)

    return statistic


def risk_coverage(confidence: Any, correct: Any) -> RiskCoverage:
    """The risk-coverage curve at the end of every tie, for a plot."""
    score, verdict = scored(confidence, correct)
    run, runs = _descending_runs(score)
    size = np.bincount(run, minlength=runs)
    wrong = np.bincount(run, 1.0 - verdict, runs)
    ends = np.cumsum(size)
    values = np.zeros(runs)
    values[run] = score
    return RiskCoverage(ends / max(score.size, 1), np.cumsum(wrong) / np.maximum(ends, 1), values)


def _descending_runs(score: np.ndarray) -> tuple[np.ndarray, int]:
    """Rank of each item's tie, the surest first, and the number of ties."""
    values, run = np.unique(-score, return_inverse=True)
    return run.reshape(-1), len(values)
