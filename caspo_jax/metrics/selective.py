"""What is gained by answering only where one is sure: risk against coverage, precision against recall."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, check_weights, scored, weight_of
from caspo_jax.metrics.resampled import Resampled, in_blocks, quotient


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
    return _Curve(*scored(confidence, correct), _aurc, whole=True)


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
    return _Curve(*scored(confidence, correct), _augrc)


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
    return _Curve(*scored(confidence, correct), _average_precision)


def risk_coverage(confidence: Any, correct: Any) -> RiskCoverage:
    """The risk-coverage curve at the end of every tie, for a plot."""
    score, verdict = scored(confidence, correct)
    order, ends = _ties(score)
    wrong = np.cumsum(1.0 - verdict[order])[ends]
    return RiskCoverage((ends + 1) / max(score.size, 1), wrong / (ends + 1), score[order][ends])


class _Curve(Resampled):
    """A figure of the curve that passes the end of every tie, the surest first; sorts once.

    `figure` is given the weight of what is answered [draws, m] at these ends, that of the right among it [draws, m],
    and says one value a draw. Where weights must be `whole`, others are refused.
    """

    def __init__(
        self,
        score: np.ndarray,
        verdict: np.ndarray,
        figure: Callable[[np.ndarray, np.ndarray], np.ndarray],
        whole: bool = False,
    ):
        self.size, self._whole = score.size, whole
        self._order, self._ends = _ties(score)
        self._verdict, self._figure = verdict[self._order], figure

    def __call__(self, weights: np.ndarray) -> float:
        check_weights(weights, self.size)
        return float(self._values(np.asarray(weights, np.float64)[None, self._order])[0])

    def resample(self, group: np.ndarray, counts: np.ndarray) -> np.ndarray:
        check_weights(group, self.size)
        members = group[self._order]
        return in_blocks(lambda part: self._values(np.take(part, members, axis=1)), counts, self.size)

    def _values(self, ordered: np.ndarray) -> np.ndarray:
        """The values [draws] of the items' weights in their order [draws, n]."""
        if self._whole and (ordered != np.rint(ordered)).any():
            raise UserError("aurc: weights are multiplicities; give integers")
        if not self.size:
            return np.full(len(ordered), np.nan)
        answered, right = np.cumsum(ordered, axis=1), np.cumsum(ordered * self._verdict, axis=1)
        return self._figure(np.take(answered, self._ends, axis=1), np.take(right, self._ends, axis=1))


def _aurc(answered: np.ndarray, right: np.ndarray) -> np.ndarray:
    total = answered[:, -1]
    size, wrong = _steps(answered), _steps(answered - right)
    starts, before = answered - size, answered - right - wrong
    # sum_j (E + e j / m) / (N + j) over j = 1..m is e + (E - e N / m) (H(N + m) - H(N)), H the harmonic numbers.
    harmonic = _harmonic_numbers(int(total.max()).bit_length())
    span = harmonic[answered.astype(np.int64)] - harmonic[starts.astype(np.int64)]
    share = np.divide(wrong, size, out=np.zeros_like(wrong), where=size > 0)
    return quotient((wrong + (before - share * starts) * span).sum(axis=1), total)


@functools.lru_cache(maxsize=2)
def _harmonic_numbers(bits: int) -> np.ndarray:
    """The first 2^bits of them, from H(0) = 0 on: every draw needs about as many."""
    return np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, 2**bits))))


def _augrc(answered: np.ndarray, right: np.ndarray) -> np.ndarray:
    wrong = answered - right
    return quotient((_steps(answered) * (wrong - 0.5 * _steps(wrong))).sum(axis=1), answered[:, -1] ** 2)


def _average_precision(answered: np.ndarray, right: np.ndarray) -> np.ndarray:
    precision = np.divide(right, answered, out=np.zeros_like(right), where=answered > 0)
    value = quotient((_steps(right) * precision).sum(axis=1), right[:, -1])
    return np.where(right[:, -1] < answered[:, -1], value, np.nan)


def _steps(running: np.ndarray) -> np.ndarray:
    """What was added at each tie."""
    return np.diff(running, axis=1, prepend=0.0)


def _ties(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items in order [n], the surest first, and the position in it of the last item of every tie [m]."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    return order, np.flatnonzero(np.append(ordered[1:] != ordered[:-1], score.size > 0))
