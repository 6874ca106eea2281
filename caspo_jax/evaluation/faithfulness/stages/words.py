"""The stage of the words: decisiveness of every step by every scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo_jax.evaluation.faithfulness.decisiveness import DecisivenessScorer, score_traces
from caspo_jax.evaluation.faithfulness.stages.stage import Stage, finish

_GROUP = 32  # traces between two writes


def decisiveness_stage(stage: Stage, scorers: Sequence[DecisivenessScorer], **settings: Any) -> None:
    """D_i of every step by every scorer: `decisiveness.jsonl`, {"id", "scores": {scorer: [S]}}."""
    written = stage.open("decisiveness", scorers=[scorer.name for scorer in scorers], **settings)
    if written.complete:
        return
    for start in range(0, len(stage.subjects), _GROUP):
        part = stage.subjects[start : start + _GROUP]
        if not {s.id for s in part} <= written.done:
            traces = [s.trace for s in part]
            scores = {scorer.name: score_traces(scorer, traces) for scorer in scorers}
            written.append(
                [
                    {"id": s.id, "scores": {n: found[i] for n, found in scores.items()}}
                    for i, s in enumerate(part)
                ]
            )
        stage.report(start + len(part))
    finish(written, len(stage.subjects))
