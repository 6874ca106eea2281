"""The table of named confidences: how well each ranks steps or paths by their verdicts, and how far its level is off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.confidence import BOUNDED_PATHS, BOUNDED_STEPS
from caspo_jax.errors import UserError
from caspo_jax.evaluation.confidence_items import Items
from caspo_jax.evaluation.confidence_statistics import interval_fields, level_statistics, ranking_statistics
from caspo_jax.evaluation.formats import Columns, Field, with_intervals
from caspo_jax.metrics import Statistic

RANKING: dict[Field, str] = {
    "confidence": "confidence",
    **with_intervals({"auroc": "AUROC", "within_question": "in question"}),
    "within_question_groups": "questions",
    **with_intervals({"within_prefix": "in prefix"}),
    "within_prefix_groups": "prefixes",
}
OTHER_RANKING: Columns = {
    "confidence": "confidence",
    "length_controlled": "length controlled",
    "length_controlled_null": "97.5 % of null",
    "length_controlled_p": "p",
    **with_intervals(
        {"auprc_errors": "AUPRC errors", "auprc_correct": "AUPRC right", "aurc": "AURC", "augrc": "AUGRC"}
    ),
}
_LEVELS = {"bias": "bias", "ece": "ECE", "brier": "Brier"}
_PARTS = {
    "ece_mass": "ECE mass",
    "ece_debiased": "ECE debiased",
    "reliability": "reliability",
    "resolution": "resolution",
    "within_bins": "in bins",
}


def _level_columns(title: str, suffix: str) -> Columns:
    """The columns of calibration; the suffix goes behind each field."""
    columns: dict[Field, str] = {"confidence": title}
    columns |= with_intervals({f"{field}{suffix}": head for field, head in _LEVELS.items()})
    for field, head in _PARTS.items():
        columns[f"{field}{suffix}"] = head
    return columns


# Brier = reliability - resolution + uncertainty + what is inside the bins
COLUMNS = (
    RANKING,
    OTHER_RANKING,
    _level_columns("as it is", ""),
    _level_columns("scaled, p = c^a", "_scaled"),
)


def confidence_table(
    items: Items,
    draws: int = 1000,
    seed: int = 0,
    bins: int = 10,
    progress: Callable[[int, int], Any] | None = None,
) -> list[dict[str, Any]]:
    """One row a confidence, and one for the length alone (shorter is surer), the best AUROC first.

    Ranking figures, of `metrics.rank_scores`: AUROC pooled, within question, within prefix (each with the number of
    groups that have both verdicts), among items of like length with the 97.5 % point of its permutation null and the
    p-value; AUPRC of finding errors, and of finding right ones; AURC, AUGRC. Calibration figures for confidences
    known to lie in [0, 1] (a registered one is not): bias, ECE of equal width, of equal mass and debiased, Brier and its
    parts; and all of these again, `_scaled`, after the cross-fitted one-parameter scaling p = c^a, which any other
    confidence enters as c / (1 + c). The 95 % interval by question of AUROCs, areas, bias, ECE and Brier score is in
    `_low` and `_high`.

    Args:
      items: from `confidence_items`.
      draws: of the bootstrap and of the permutations.
      seed: of both.
      bins: of the calibration errors.
      progress: called with (rows done, rows in all).
    """
    if not items.right.size:
        raise UserError("no step or path has a verdict: annotate the traces first")
    ranks = dict(items.scores) | {"length": -items.length}
    rows = []
    for name, rank in ranks.items():
        rows.append(_row(name, items, rank, draws, seed, bins))
        if progress is not None:
            progress(len(rows), len(ranks))
    return sorted(rows, key=lambda row: -np.nan_to_num(row["auroc"], nan=-1.0))


def overview(items: Items, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """What stands over the table: items, questions, accuracy, entropy gap, Brier score of the bare accuracy."""
    gap = metrics.bootstrap_interval(
        metrics.entropy_gap_statistic(items.entropy, items.right), items.question, draws, seed
    )
    base = float(items.right.mean())
    return {
        "items": items.right.size,
        "questions": len(set(items.question.tolist())),
        "accuracy": base,
        "entropy_gap": gap.value,
        "entropy_gap_low": gap.low,
        "entropy_gap_high": gap.high,
        "brier_of_the_base_rate": base * (1.0 - base),  # the uncertainty of the Brier score's parts
    }


def _row(name: str, items: Items, log: np.ndarray, draws: int, seed: int, bins: int) -> dict[str, Any]:
    kept = ~np.isnan(log)
    log, right, question, prefix = log[kept], items.right[kept], items.question[kept], items.prefix[kept]
    rank = metrics.rank_scores(log)
    by_length = metrics.length_controlled_auroc(rank, right, items.length[kept], draws=draws, seed=seed)

    def measured(statistics: Mapping[str, Statistic]) -> dict[str, float]:
        return interval_fields(statistics, question, draws, seed)

    row: dict[str, Any] = {
        "confidence": name,
        "items": int(right.size),
        **measured(ranking_statistics(log, right, question, prefix)),
        "within_question_groups": metrics.within_question_auroc(rank, right, question).groups,
        "within_prefix_groups": metrics.within_prefix_auroc(rank, right, prefix).groups,
        "length_controlled": by_length.value,
        "length_controlled_p": by_length.p_value,
        "length_controlled_null": by_length.null_high,
        **measured(
            {
                "auprc_errors": metrics.average_precision_statistic(-rank, 1.0 - right),
                "auprc_correct": metrics.average_precision_statistic(rank, right),
                "aurc": metrics.aurc_statistic(rank, right),
                "augrc": metrics.augrc_statistic(rank, right),
            }
        ),
    }
    if name == "length":
        return row
    bounded = _bounded(name)
    raw = np.exp(np.minimum(log, 0.0)) if bounded else np.exp(-np.logaddexp(0.0, -log))
    if bounded:
        row |= measured(level_statistics(raw, right, bins)) | _parts(raw, right, bins)
    if len(set(question.tolist())) >= 2:
        scaled = metrics.cross_fitted(raw, right, question)
        row |= measured(level_statistics(scaled, right, bins, "_scaled"))
        row |= {f"{field}_scaled": value for field, value in _parts(scaled, right, bins).items()}
    return row


def _bounded(name: str) -> bool:
    """Is the confidence `step confidence` or `rule(step confidence)` known to lie in [0, 1]?"""
    rule, _, step = name.removesuffix(")").rpartition("(")
    return step in BOUNDED_STEPS and (not rule or rule in BOUNDED_PATHS)


def _parts(confidence: np.ndarray, right: np.ndarray, bins: int) -> dict[str, float]:
    """Other calibration errors, and the parts of the Brier score, of confidences [n] in [0, 1]."""
    parts = metrics.brier_decomposition(confidence, right, bins)
    return {
        "ece_mass": metrics.equal_mass_calibration_error(confidence, right, bins),
        "ece_debiased": metrics.debiased_calibration_error(confidence, right, bins),
        "squared_error_debiased": metrics.debiased_squared_error(confidence, right, bins),
        "reliability": parts.reliability,
        "resolution": parts.resolution,
        "uncertainty": parts.uncertainty,
        "within_bins": parts.within,
    }
