"""How well a verifier finds the first wrong step: ProcessBench's accuracies and their harmonic mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, per_item


@dataclasses.dataclass(frozen=True)
class FirstErrorScore:
    """ProcessBench's numbers; NaN where a kind of solution is missing."""

    f1: float  # harmonic mean of the two accuracies; 0 if both are
    error_accuracy: float  # of the solutions with an error: its index was found exactly
    correct_accuracy: float  # of the solutions without: none was found
    errors: int
    corrects: int


def processbench_f1(found: Any, labels: Any) -> FirstErrorScore:
    """F1 = 2 a b / (a + b), with a the accuracy on solutions with an error and b that on solutions without.

    Not the F1 of precision and recall: a verifier that calls everything right, or everything wrong, scores 0.

    Args:
      found: [n] integers, index of the first step that the verifier calls wrong, -1 for none.
      labels: [n] integers, index of the first wrong step, -1 for none.

    Raises:
      UserError: lengths that differ, or values that are no integers of at least -1.

    Source: ProcessBench (arXiv 2412.06559).
    """
    found, labels = _indices(found, "found"), _indices(labels, "labels")
    _same_length(found, labels)
    hit, wrong = found == labels, labels >= 0
    error = float(hit[wrong].mean()) if wrong.any() else float("nan")
    correct = float(hit[~wrong].mean()) if (~wrong).any() else float("nan")
    return FirstErrorScore(
        _harmonic(error, correct), error, correct, int(wrong.sum()), int(wrong.size - wrong.sum())
    )


def processbench_f1_statistic(found: Any, labels: Any) -> Statistic:
    """`processbench_f1` as a function of the solutions' weights, for a bootstrap by question."""
    found, labels = _indices(found, "found"), _indices(labels, "labels")
    _same_length(found, labels)
    hit, wrong = (found == labels).astype(np.float64), (labels >= 0).astype(np.float64)

    @per_item(found.size)
    def statistic(weights: np.ndarray) -> float:
        sides = []
        for side in (weights * wrong, weights * (1.0 - wrong)):
            total = side.sum()
            sides.append(float(side @ hit / total) if total > 0 else float("nan"))
        return _harmonic(*sides)

    return statistic


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b != 0 else 0.0  # NaN stays NaN


def _indices(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array < -1).any():
        raise UserError(
            f"{name} must be step indices [n], -1 for no error; found {array.dtype} {array.shape}"
        )
    return array.astype(np.int64)


def _same_length(found: np.ndarray, labels: np.ndarray) -> None:
    if found.shape != labels.shape:
        raise UserError(f"found has {found.size} entries, labels {labels.size}: give one each a solution")
