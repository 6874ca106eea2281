"""The stage of one teacher-forced pass: token statistics and RCC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caspo_jax.confidence.forced import Measured, measure, plan_batches, steps_by_width
from caspo_jax.confidence.hidden import check_rcc_settings
from caspo_jax.evaluation.faithfulness.estimators import Values, token_values, unit_values
from caspo_jax.evaluation.faithfulness.stages.stage import Stage, finish
from caspo_jax.evaluation.faithfulness.subjects import Subject


def forced_stage(
    stage: Stage,
    model: Any,
    names: Sequence[str],
    *,
    final_norm: bool = False,
    mu: float = 0.5,
    delta: float = 0.4,
) -> None:
    """One teacher-forced pass for `token.jsonl` and `hidden.jsonl`, as far as `names` asks for them.

    `token`: {"id", "token", "entropy", "mean_logprob", "sum_logprob", "recorded", "logprob_gap"}: the estimates of each
    step, whether recorded log-probs were used, and the largest distance of recorded log-probs from the checkpoint's.
    `hidden`: {"id", "q", "p"}.

    Raises:
      UserError: mu or delta outside [0, 1]; before a manifest is written.
    """
    check_rcc_settings(mu, delta)
    options: dict[str, dict[str, Any]] = {
        "token": {},
        "hidden": {"final_norm": final_norm, "mu": mu, "delta": delta},
    }
    outputs = {name: stage.open(name, **options[name]) for name in names}
    todo = {name: out for name, out in outputs.items() if not out.complete}
    if not todo:
        return
    unread = [s for s in stage.subjects if not s.readable]
    for name, out in todo.items():
        out.append([_forced_record(name, s, None) for s in unread])
    readable = [s for s in stage.subjects if s.readable]
    rows = [s.row() for s in readable]
    room = steps_by_width(rows)
    done = len(unread)
    for batch in plan_batches(rows):
        part = [readable[i] for i in batch]
        if any(not {s.id for s in part} <= out.done for out in todo.values()):
            batch_rows = [rows[i] for i in batch]
            found = measure(
                model, batch_rows, rcc="hidden" in todo, final_norm=final_norm, mu=mu, delta=delta, room=room
            )
            for name, out in todo.items():
                out.append([_forced_record(name, s, m) for s, m in zip(part, found)])
        done += len(part)
        stage.report(done)
    for out in todo.values():
        finish(out, len(stage.subjects))


def _forced_record(name: str, subject: Subject, measured: Measured | None) -> dict[str, Any]:
    if name == "hidden":
        nothing: Values = [None] * len(subject.trace.steps)
        if measured is None:
            return {"id": subject.id, "q": nothing, "p": nothing}
        return {"id": subject.id, "q": unit_values(measured.q), "p": unit_values(measured.p)}
    recorded = subject.trace.logprob
    gap = None
    if measured is not None and recorded is not None:
        distance = np.abs(measured.stats["logprob"] - np.asarray(recorded, np.float64))
        known = distance[np.isfinite(distance)]  # servers write -Infinity and NaN too
        gap = float(known.max()) if known.size else None
    return {
        "id": subject.id,
        **token_values(subject, measured),
        "recorded": subject.mean_top5 is not None,
        "logprob_gap": gap,
    }
