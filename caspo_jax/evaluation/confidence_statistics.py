"""What every report says of a confidence and its verdicts, as functions of item weights: what the bootstrap needs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from caspo_jax import metrics
from caspo_jax.metrics import Statistic
from caspo_jax.metrics.bootstrap import Groups


def ranking_statistics(
    log_confidence: np.ndarray, right: np.ndarray, question: Groups, prefix: Groups | None = None
) -> dict[str, Statistic]:
    """AUROC, pooled and averaged over questions and over prefixes: `auroc`, `within_question`, `within_prefix`.

    Args:
      log_confidence: [n] nats; ranked by `metrics.rank_scores`.
      right: [n] verdicts, 0 or 1.
      question: [n] id of each item's question.
      prefix: [n] id of what each item was sampled from; without it there is no `within_prefix`.
    """
    score = metrics.rank_scores(log_confidence)
    statistics = {
        "auroc": metrics.auroc_statistic(score, right),
        "within_question": metrics.grouped_auroc_statistic(score, right, question),
    }
    if prefix is not None:
        statistics["within_prefix"] = metrics.grouped_auroc_statistic(score, right, prefix)
    return statistics


def level_statistics(
    confidence: np.ndarray, right: np.ndarray, bins: int = 10, suffix: str = ""
) -> dict[str, Statistic]:
    """`bias`, `ece` (over so many bins) and `brier` of confidences [n] in [0, 1]; the suffix goes behind each name."""
    return {
        f"bias{suffix}": metrics.bias_statistic(confidence, right),
        f"ece{suffix}": metrics.ece_statistic(confidence, right, bins),
        f"brier{suffix}": metrics.brier_statistic(confidence, right),
    }


def scaled_statistics(confidence: np.ndarray, right: np.ndarray, question: Groups) -> dict[str, Statistic]:
    """`level_statistics` after the cross-fitted one-parameter scaling p = c^a, named `_scaled`; {} for one question.

    The fits stay as they are in every resample.
    """
    if len(set(question)) < 2:
        return {}
    return level_statistics(metrics.cross_fitted(confidence, right, question), right, suffix="_scaled")


def interval_fields(
    statistics: Mapping[str, Statistic], question: Groups, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """`NAME`, `NAME_low` and `NAME_high` of each statistic: its value and its 95 % bootstrap interval by question."""
    found: dict[str, float] = {}
    resamples = metrics.Resamples.of(question, draws=draws, seed=seed)
    for name, statistic in statistics.items():
        interval = resamples.interval(statistic)
        found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found
