"""What a one- or two-parameter fix of the confidence already buys, cross-fitted by question."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import forecasts, group_index
from caspo_jax.metrics.calibration import brier, expected_calibration_error

Method = Literal["power", "platt"]

_SMALLEST = 1e-12  # confidences are clipped to [_SMALLEST, 1 - _NEAREST] before any logarithm
_NEAREST = 1e-6  # c = 1 on a wrong item would otherwise cost infinite log-loss under every power
_LOG_POWER = (-12.0, 12.0)  # search range of ln a; its ends stand for "all right" and "all wrong"


def fit_power(confidence: Any, correct: Any) -> float:
    """The exponent a > 0 for which p = c^a has the smallest log-loss.

    With u = -ln c the calibrated probability is exp(-a u): the one parameter rescales the uncertainty.
    The log-loss is convex in a; its derivative sum_right u - sum_wrong u / (e^{a u} - 1) is bisected.

    Args:
      confidence: [n] in [0, 1].
      correct: [n] 0/1.
    """
    score, verdict = forecasts(confidence, correct)
    u = -np.log(np.clip(score, _SMALLEST, 1.0 - _NEAREST))
    right, wrong = u[verdict == 1.0].sum(), u[verdict == 0.0]
    low, high = _LOG_POWER
    for _ in range(60):
        middle = 0.5 * (low + high)
        exponent = np.minimum(np.exp(middle) * wrong, 700.0)
        if right - (wrong / np.expm1(exponent)).sum() < 0.0:
            low = middle
        else:
            high = middle
    return float(np.exp(0.5 * (low + high)))


def apply_power(confidence: Any, power: float) -> np.ndarray:
    """c^a, elementwise [n]."""
    return np.clip(np.asarray(confidence, np.float64), _SMALLEST, 1.0 - _NEAREST) ** power


def fit_platt(confidence: Any, correct: Any) -> tuple[float, float]:
    """Slope and offset (a, b) for which p = sigmoid(a logit(c) + b) has the smallest log-loss.

    Damped Newton on the convex log-loss with a ridge of 1e-6 n, so that separable data stay finite.

    Args:
      confidence: [n] in [0, 1].
      correct: [n] 0/1.

    Source: Platt 1999.
    """
    score, verdict = forecasts(confidence, correct)
    features = np.stack([_logit(score), np.ones(score.size)], axis=1)
    ridge = 1e-6 * max(score.size, 1)
    theta = np.zeros(2)

    def loss(parameters: np.ndarray) -> float:
        margin = features @ parameters
        return float(
            np.sum(np.logaddexp(0.0, margin) - verdict * margin) + 0.5 * ridge * parameters @ parameters
        )

    current = loss(theta)
    for _ in range(100):
        p = _sigmoid(features @ theta)
        gradient = features.T @ (p - verdict) + ridge * theta
        hessian = (features * (p * (1.0 - p))[:, None]).T @ features + ridge * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while scale > 1e-8 and loss(theta - scale * step) > current:
            scale *= 0.5
        theta = theta - scale * step
        previous, current = current, loss(theta)
        if previous - current <= 1e-12 * max(abs(current), 1.0):
            break
    return float(theta[0]), float(theta[1])


def apply_platt(confidence: Any, parameters: tuple[float, float]) -> np.ndarray:
    """sigmoid(a logit(c) + b), elementwise [n]."""
    return _sigmoid(parameters[0] * _logit(np.asarray(confidence, np.float64)) + parameters[1])


_METHODS: dict[str, tuple[Callable, Callable]] = {
    "power": (fit_power, apply_power),
    "platt": (fit_platt, apply_platt),
}


def cross_fitted(
    confidence: Any,
    correct: Any,
    groups: Sequence[Hashable] | np.ndarray,
    folds: int = 5,
    method: Method = "power",
    seed: int = 0,
) -> np.ndarray:
    """Scaled confidences [n], each from a fit on the other folds; folds hold whole questions.

    Args:
      confidence: [n] in [0, 1].
      correct: [n] 0/1.
      groups: [n] question ids. Folds depend on the set of questions and the seed alone, so that two
        policies on the same questions are cut alike.
      folds: number of folds, at most the number of questions is used.
      method: `power` (p = c^a, one parameter) or `platt` (two).
      seed: of the assignment of questions to folds.

    Raises:
      UserError: fewer than two questions or folds, an unknown method, a confidence outside [0, 1].
    """
    if method not in _METHODS:
        raise UserError(f"unknown scaling method {method!r}; choose from {', '.join(_METHODS)}")
    score, verdict = forecasts(confidence, correct)
    index, count = group_index(groups, score.size)
    if count < 2 or folds < 2:
        raise UserError(f"cross-fitting needs at least 2 questions and 2 folds, got {count} and {folds}")
    fit, apply = _METHODS[method]
    fold = (np.random.default_rng(seed).permutation(count) % min(folds, count))[index]
    scaled = np.empty(score.size)
    for k in range(min(folds, count)):
        held_out = fold == k
        scaled[held_out] = apply(score[held_out], fit(score[~held_out], verdict[~held_out]))
    return scaled


def brier_scaled(
    confidence: Any,
    correct: Any,
    groups: Sequence[Hashable] | np.ndarray,
    folds: int = 5,
    method: Method = "power",
) -> float:
    """Brier score after the cross-fitted scaling; see `cross_fitted`.

    For an interval, bootstrap `brier_statistic(cross_fitted(...), correct)`: the fits stay fixed.
    """
    return brier(cross_fitted(confidence, correct, groups, folds, method), correct)


def ece_scaled(
    confidence: Any,
    correct: Any,
    groups: Sequence[Hashable] | np.ndarray,
    folds: int = 5,
    method: Method = "power",
    bins: int = 10,
) -> float:
    """Expected calibration error after the cross-fitted scaling; see `cross_fitted`."""
    return expected_calibration_error(cross_fitted(confidence, correct, groups, folds, method), correct, bins)


def _logit(p: np.ndarray) -> np.ndarray:
    clipped = np.clip(p, _SMALLEST, 1.0 - _NEAREST)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))
