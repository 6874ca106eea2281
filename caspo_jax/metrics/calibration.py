"""Does a confidence of 0.8 mean right 8 times in 10? ECE, Brier, bias, reliability."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, bin_of, equal_count_part, forecasts, weight_of
from caspo_jax.metrics.ranking import mean_statistic
from caspo_jax.metrics.resampled import SumStatistic, Term, quotient

Binning = Literal["width", "mass"]


class Reliability(NamedTuple):
    """A reliability diagram's bins; empty bins hold NaN."""

    confidence: np.ndarray  # [bins] mean confidence
    accuracy: np.ndarray  # [bins] share right
    counts: np.ndarray  # [bins] items
    edges: np.ndarray  # [bins + 1]


def expected_calibration_error(confidence: Any, correct: Any, bins: int = 10, weights: Any = None) -> float:
    """Mean distance between confidence and accuracy over equal-width bins.

    ECE = sum_b (n_b / n) |mean confidence_b - accuracy_b| over right-closed bins (a, b], 0 in the first.

    Args:
      confidence: [n] in [0, 1].
      correct: [n] 0/1.
      bins: number of bins.
      weights: [n] non-negative, default ones.

    Returns:
      A float in [0, 1]; NaN for no items.

    Raises:
      UserError: a confidence outside [0, 1] (never dropped silently), NaN, lengths that differ.

    Source: Guo et al. 2017.

    >>> round(expected_calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 0, 1]), 3)  # half of .1 and half of .1
    0.1
    """
    return ece_statistic(confidence, correct, bins)(weight_of(weights, np.size(correct)))


def ece_statistic(confidence: Any, correct: Any, bins: int = 10) -> Statistic:
    """`expected_calibration_error` as a function of the weights."""
    index = _checked_bins(confidence, correct, bins)
    return _binned_gap(confidence, correct, index, bins)


def equal_mass_calibration_error(confidence: Any, correct: Any, bins: int = 10, weights: Any = None) -> float:
    """ECE over bins of (nearly) equal counts: np.array_split of the stable sort, ties kept in one bin.

    Tied confidences go to the bin of the first of them, so that the order of ties cannot matter.
    Arguments, result and errors as `expected_calibration_error`; with weights the bins stay those of the
    unweighted items.
    """
    return equal_mass_ece_statistic(confidence, correct, bins)(weight_of(weights, np.size(correct)))


def equal_mass_ece_statistic(confidence: Any, correct: Any, bins: int = 10) -> Statistic:
    """`equal_mass_calibration_error` as a function of the weights."""
    return _binned_gap(confidence, correct, _mass_bins(confidence, correct, bins), bins)


def debiased_calibration_error(
    confidence: Any, correct: Any, bins: int = 10, binning: Binning = "width"
) -> float:
    """ECE less an estimate of what noise adds: 2 ECE - E[ECE of data drawn anew from the bins].

    It takes off some two fifths of the noise of a calibrated confidence; `debiased_squared_error` takes off all.

    With gap g_b = mean confidence - accuracy a_b and s_b^2 = a_b (1 - a_b) / n_b, a new draw's gap is taken as
    N(g_b, s_b^2), whose mean absolute value is s sqrt(2 / pi) exp(-g^2 / 2 s^2) + g erf(g / (s sqrt 2)).
    The plug-in ECE of n items in B bins is about sqrt(2 B / (pi n)) times the mean of sqrt(p (1 - p)) too high where the
    confidence p is calibrated.

    Args:
      confidence: [n] in [0, 1].
      correct: [n] 0/1.
      bins: number of bins.
      binning: `width` (right-closed bins of equal width) or `mass` (of equal counts, ties together).

    Returns:
      A float; it may be negative, and is NaN for no items.

    Source: Kumar, Liang and Ma 2019 (their resampling in closed form).
    """
    gap, accuracy, count = _bin_means(confidence, correct, bins, binning)
    if not count.size:
        return float("nan")
    spread = np.sqrt(accuracy * (1.0 - accuracy) / count)
    safe = np.where(spread > 0, spread, 1.0)
    folded = safe * math.sqrt(2 / math.pi) * np.exp(-0.5 * (gap / safe) ** 2)
    folded += gap * np.vectorize(math.erf)(gap / (safe * math.sqrt(2)))
    expected = np.where(spread > 0, folded, np.abs(gap))
    return float(count @ (2.0 * np.abs(gap) - expected) / count.sum())


def debiased_squared_error(confidence: Any, correct: Any, bins: int = 10, binning: Binning = "mass") -> float:
    """Squared calibration error over bins without bias: sum_b (n_b / n) (g_b^2 - a_b (1 - a_b) / (n_b - 1)).

    Bins of one item, whose variance cannot be estimated, are left out. Zero in expectation where the confidence is
    calibrated, so it may be negative. Arguments as `debiased_calibration_error`.

    Source: Kumar, Liang and Ma 2019.
    """
    gap, accuracy, count = _bin_means(confidence, correct, bins, binning)
    kept = count > 1
    if not kept.any():
        return float("nan")
    gap, accuracy, count = gap[kept], accuracy[kept], count[kept]
    return float(count @ (gap**2 - accuracy * (1.0 - accuracy) / (count - 1.0)) / count.sum())


def brier(confidence: Any, correct: Any, weights: Any = None) -> float:
    """Mean squared error of the confidence, mean (c - y)^2; NaN for no items."""
    return brier_statistic(confidence, correct)(weight_of(weights, np.size(correct)))


def brier_statistic(confidence: Any, correct: Any) -> Statistic:
    """`brier` as a function of the weights."""
    score, verdict = forecasts(confidence, correct)
    return mean_statistic((score - verdict) ** 2)


def bias(confidence: Any, correct: Any, weights: Any = None) -> float:
    """Mean confidence minus accuracy: positive is overconfident; NaN for no items."""
    return bias_statistic(confidence, correct)(weight_of(weights, np.size(correct)))


def bias_statistic(confidence: Any, correct: Any) -> Statistic:
    """`bias` as a function of the weights."""
    score, verdict = forecasts(confidence, correct)
    return mean_statistic(score - verdict)


def reliability(confidence: Any, correct: Any, bins: int = 10) -> Reliability:
    """The bins behind `expected_calibration_error`, for a diagram."""
    index = _checked_bins(confidence, correct, bins)
    score, verdict = forecasts(confidence, correct)
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    return Reliability(
        confidence=np.bincount(index, score, bins) / divisor,
        accuracy=np.bincount(index, verdict, bins) / divisor,
        counts=count,
        edges=np.arange(bins + 1) / bins,
    )


def _checked_bins(confidence, correct, bins: int) -> np.ndarray:
    forecasts(confidence, correct)
    return bin_of(confidence, bins, right_closed=True)


def _mass_bins(confidence, correct, bins: int) -> np.ndarray:
    if bins < 1:
        raise UserError(f"bins = {bins}; give at least 1")
    score, _ = forecasts(confidence, correct)
    return equal_count_part(score, bins)


def _bin_means(confidence, correct, bins: int, binning: Binning) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gap, accuracy and count of the bins that hold something."""
    if binning not in ("width", "mass"):
        raise UserError(f"binning={binning!r}: choose from width, mass")
    index = (_checked_bins if binning == "width" else _mass_bins)(confidence, correct, bins)
    score, verdict = forecasts(confidence, correct)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    accuracy = np.bincount(index, verdict, bins)[filled] / count[filled]
    mean = np.bincount(index, score, bins)[filled] / count[filled]
    return mean - accuracy, accuracy, count[filled].astype(np.float64)


def _binned_gap(confidence, correct, index: np.ndarray, bins: int) -> Statistic:
    score, verdict = forecasts(confidence, correct)
    terms = [
        Term(index, score - verdict),
        Term(bins, np.ones(score.size)),
    ]  # a sum for each bin, and how many items
    return SumStatistic(
        terms, bins + 1, lambda sums: quotient(np.abs(sums[..., :bins]).sum(-1), sums[..., bins])
    )
