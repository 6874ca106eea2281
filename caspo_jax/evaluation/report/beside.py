"""What stands beside a file of traces: how sure the words of each step sound, and what each estimator makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.records import schema_name
from caspo_jax.records.values import read_number
from caspo_jax.store import load_records
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
      UserError: a malformed record, a decisiveness outside [0, 1]; names file:line.
    """
    steps = file.with_name("steps.jsonl")
    if steps.is_file():
        return _from_steps(steps)
    stated = file.with_name("decisiveness.jsonl")
    if not stated.is_file():
        return {}
    return {name: Beside(values) for name, values in load_records(stated, _stated) if values}


def _stated(record: dict[str, Any]) -> tuple[str, Values]:
    """A trace's id and its steps' decisiveness."""
    scores = record.get("scores") or {}
    if not isinstance(scores, Mapping):
        raise UserError(f"`scores` must be lists by scorer, found {scores!r:.40}")
    return str(record["id"]), [decisiveness_of(value) for value in next(iter(scores.values()), ())]


@dataclasses.dataclass(frozen=True)
class _StepScores:
    """The scores of one step."""

    trace: str
    index: int
    decisiveness: float | None
    estimates: Mapping[str, float | None]
    right: bool | None


def _from_steps(file: Path) -> dict[str, Beside]:
    rows: dict[str, list[_StepScores]] = {}
    for step in load_records(file, _step_scores):
        if step is None:
            return {}
        rows.setdefault(step.trace, []).append(step)
    found = {}
    for name, steps in rows.items():
        steps.sort(key=lambda step: step.index)
        found[name] = Beside(
            decisiveness=[step.decisiveness for step in steps],
            estimates={e: [step.estimates.get(e) for step in steps] for e in steps[0].estimates},
            right=[step.right for step in steps],
        )
    return found


def _step_scores(record: dict[str, Any]) -> _StepScores | None:
    """None for a record of another kind."""
    if schema_name(record) != "faithfulness_step":
        return None
    for field in ("decisiveness", "confidence"):
        if not isinstance(record[field], Mapping):
            raise UserError(f"`{field}` must be numbers by name, found {record[field]!r:.40}")
    return _StepScores(
        trace=str(record["trace_id"]),
        index=int(record["step_index"]),
        decisiveness=decisiveness_of(next(iter(record["decisiveness"].values()), None)),
        estimates={name: read_number(record["confidence"], name) for name in record["confidence"]},
        right=record.get("right"),
    )


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
