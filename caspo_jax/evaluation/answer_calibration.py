"""How far a strategy's confidence in its answers can be believed: the second table of `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.evaluation.answer_records import by_key
from caspo_jax.evaluation.confidence_statistics import (
    interval_fields,
    level_statistics,
    ranking_statistics,
    scaled_statistics,
)
from caspo_jax.evaluation.formats import Field, with_intervals

_ROUNDING = 1e-6  # float32 confidences of 1 may be a little above
_KEY: dict[Field, str] = {"benchmark": "benchmark", "strategy": "strategy", "size": "size"}
# How it ranks, how far its level is off, and how far after a scaling.
COLUMNS: tuple[dict[Field, str], ...] = (
    {
        **_KEY,
        "questions": "questions",
        "answers": "answers",
        "accuracy": "accuracy",
        **with_intervals({"auroc": "AUROC", "within_question": "in question"}),
        "within_question_groups": "of questions",
    },
    {**_KEY, **with_intervals({"bias": "bias", "ece": "ECE", "brier": "Brier"})},
    {
        **_KEY,
        **with_intervals(
            {"bias_scaled": "bias scaled", "ece_scaled": "ECE scaled", "brier_scaled": "Brier scaled"}
        ),
    },
)


def calibration_table(records: Sequence[Mapping[str, Any]], draws: int = 1000) -> list[dict[str, Any]]:
    """One row a strategy and size whose answers carry a path confidence; answers without one are left out.

    AUROC pooled and within question (beside the number of questions that have both verdicts); bias, ECE and Brier score
    of the confidence as it is, where it lies in [0, 1], and after the cross-fitted one-parameter scaling p = c^a, which
    any other confidence enters as c / (1 + c). All with 95 % intervals by question in `_low` and `_high`.

    Args:
      records: of answers.
      draws: of the bootstrap.
    """
    rows = []
    for (benchmark, strategy, size), all_of_them in by_key(records).items():
        mine = [r for r in all_of_them if r.get("path_confidence") is not None]
        if not mine:
            continue
        # So that sums do not depend on the file's order.
        mine.sort(key=lambda r: (r["question"], r.get("index", 0)))
        confidence = np.array([r["path_confidence"] for r in mine], np.float64)
        right = np.array([r["correct"] for r in mine], np.float64)
        question = np.array([r["question"] for r in mine], dtype=object)
        with np.errstate(divide="ignore"):
            log = np.log(confidence)
        ranked = ranking_statistics(log, right, question)
        bounded = confidence.max() <= 1.0 + _ROUNDING
        raw = np.minimum(confidence, 1.0) if bounded else confidence / (1.0 + confidence)
        levels = level_statistics(raw, right) if bounded else {}
        rows.append(
            {
                "benchmark": benchmark,
                "strategy": strategy,
                "size": size,
                "questions": len(set(question.tolist())),
                "answers": len(mine),
                "accuracy": float(right.mean()),
                **interval_fields(ranked | levels | scaled_statistics(raw, right, question), question, draws),
                "within_question_groups": metrics.within_question_auroc(log, right, question).groups,
            }
        )
    return rows
