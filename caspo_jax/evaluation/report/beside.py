"""What stands beside a file of traces: how sure the words of each step sound, and what each estimator makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.store import read_jsonl
from caspo_jax.types import Step, Trace

Values = Sequence[float | None]
OWN = ("entropy", "token")  # estimators that stand for a step's confidence where its record has none


@dataclasses.dataclass(frozen=True)
class Beside:
    """The scores of one trace's steps, null where there are none.

    decisiveness: [S] in [0, 1]; estimates: estimator -> [S]; right: [S] verdicts.
    """

    decisiveness: Values = ()
    estimates: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    right: Sequence[bool | None] = ()


def read_beside(file: Path) -> dict[str, Beside]:
    """Trace id -> its scores, from `steps.jsonl` or `decisiveness.jsonl` beside the traces; of several scorers of words
    the first. {} where there is neither.

    Raises:
      UserError: a decisiveness outside [0, 1].
    """
    steps = file.with_name("steps.jsonl")
    if steps.is_file():
        return _from_steps(steps)
    stated = file.with_name("decisiveness.jsonl")
    if not stated.is_file():
        return {}
    found = (
        (str(r["id"]), next(iter(r["scores"].values()))) for _, r in read_jsonl(stated) if r.get("scores")
    )
    return {name: Beside([decisiveness_of(value) for value in values]) for name, values in found}


def _from_steps(file: Path) -> dict[str, Beside]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for _, record in read_jsonl(file):
        if (record.get("schema") or {}).get("name") != "faithfulness_step":
            return {}
        rows.setdefault(str(record["trace_id"]), []).append(record)
    found = {}
    for name, records in rows.items():
        records.sort(key=lambda r: r["step_index"])
        estimators = list(records[0]["confidence"])
        found[name] = Beside(
            decisiveness=[decisiveness_of(next(iter(r["decisiveness"].values()), None)) for r in records],
            estimates={e: [r["confidence"].get(e) for r in records] for e in estimators},
            right=[r.get("right") for r in records],
        )
    return found


def decisiveness_of(value: Any) -> float | None:
    """A recorded decisiveness: a number in [0, 1], or None.

    Raises:
      UserError: it lies outside.
    """
    if value is None:
        return None
    if not 0 <= float(value) <= 1:
        raise UserError(f"`decisiveness` must lie in [0, 1], found {value!r}")
    return float(value)


def completed(trace: Trace, beside: Beside) -> Trace:
    """The trace with the confidences and verdicts that its own steps lack."""
    sure: Values = next((beside.estimates[name] for name in OWN if name in beside.estimates), ())

    def fill(k: int, step: Step) -> Step:
        confidence, verdict = step.confidence, step.verdict
        if confidence is None and len(sure) == len(trace.steps):
            confidence = sure[k]
        if verdict == "unknown" and len(beside.right) == len(trace.steps) and beside.right[k] is not None:
            verdict = "correct" if beside.right[k] else "wrong"
        return dataclasses.replace(step, confidence=confidence, verdict=verdict)

    return dataclasses.replace(trace, steps=tuple(fill(k, step) for k, step in enumerate(trace.steps)))
