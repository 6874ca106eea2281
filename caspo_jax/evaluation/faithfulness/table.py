"""What the stages found, as flat arrays: one item a step, one a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.stages import check_settings, read_stage
from caspo_jax.evaluation.faithfulness.subjects import Subject
from caspo_jax.evaluation.siblings import prefix_digests
from caspo_jax.records import finite, schema

ESTIMATORS = ("token", "entropy", "hidden", "hidden_running", "prefix", "probe")
# Beside the estimators in the calibration block: exp of the mean and of the sum of the log-probs.
LIKELIHOODS = ("mean_logprob", "sum_logprob")
_STAGES = ("decisiveness", "token", "hidden", "prefix", "probe")
_DIGITS = 12  # decimals of a trace's mean


@dataclasses.dataclass(frozen=True)
class Table:
    """S steps of N traces. A missing value is NaN here and null on disk."""

    trace_ids: tuple[str, ...]  # N
    trace_group: np.ndarray  # [N] object, question
    trace: np.ndarray  # [S] int64, which trace
    group: np.ndarray  # [S] object, question
    # [S] object, digest of question, prompt and the tokens before the step: the same for siblings.
    prefix: np.ndarray
    index: np.ndarray  # [S] int64, place in its trace
    position: np.ndarray  # [S] index / (steps - 1), 0 in a trace of one step
    right: np.ndarray  # [S] verdict: 1, 0, NaN unknown
    texts: tuple[str, ...]  # S
    decisiveness: Mapping[str, np.ndarray]  # scorer -> [S]
    confidence: Mapping[str, np.ndarray]  # estimator -> [S]
    trace_confidence: Mapping[str, np.ndarray]  # estimator -> [N]


def build_table(
    subjects: Sequence[Subject], folder: str | Path, verdicts: Mapping[str, Sequence[bool | None]]
) -> Table:
    """The stages' files of a folder as a table; stages that were not run are left out.

    A trace's confidence is the mean over its steps that have one; for `hidden` and `hidden_running` the last p, as
    published.

    Raises:
      UserError: no decisiveness, a file of other traces or by another checkpoint than `traces.jsonl`.
    """
    folder = Path(folder)
    check_settings(folder, _STAGES)
    files = {name: read_stage(folder / f"{name}.jsonl") for name in _STAGES}
    if not files["decisiveness"]:
        raise UserError(f"{folder}: no decisiveness.jsonl; run the stage `decisiveness` first")
    counts = [len(s.trace.steps) for s in subjects]
    trace = np.repeat(np.arange(len(subjects)), counts)
    index = np.concatenate([np.arange(n) for n in counts] or [np.zeros(0, np.int64)]).astype(np.int64)
    length = np.repeat(counts, counts)
    groups = np.array([s.group for s in subjects], dtype=object)
    scorers = next(iter(files["decisiveness"].values())).get("scores")
    if not isinstance(scorers, Mapping):
        raise UserError(f"{folder / 'decisiveness.jsonl'}: no `scores` in it; run the stage with --overwrite")
    decisiveness = {
        name: _flat(subjects, files["decisiveness"], lambda r, n, name=name: r["scores"][name])
        for name in scorers
    }
    confidence = _confidences(subjects, files)
    last = confidence.get("hidden_running")
    trace_confidence = {
        name: _last(last, trace, len(subjects))
        if name.startswith("hidden") and last is not None
        else _means(values, trace, len(subjects))
        for name, values in confidence.items()
    }
    return Table(
        trace_ids=tuple(s.id for s in subjects),
        trace_group=groups,
        trace=trace,
        group=groups[trace],
        prefix=np.array(
            [d for s in subjects for d in prefix_digests(s.trace, (s.group, s.trace.prompt_ids))],
            dtype=object,
        ),
        index=index,
        position=index / np.maximum(length - 1, 1),
        right=np.array(
            [_number(v) for s in subjects for v in _padded(verdicts.get(s.id), len(s.trace.steps))]
        ),
        texts=tuple(step.text for s in subjects for step in s.trace.steps),
        decisiveness=decisiveness,
        confidence=confidence,
        trace_confidence=trace_confidence,
    )


def step_records(table: Table) -> list[dict[str, Any]]:
    """One record a step: what was said, every score, every estimate, F of each; missing values null."""
    records = []
    for i, text in enumerate(table.texts):
        said = {name: finite(values[i]) for name, values in table.decisiveness.items()}
        sure = {name: finite(values[i]) for name, values in table.confidence.items()}
        records.append(
            {
                "schema": schema("faithfulness_step"),
                "id": f"{table.trace_ids[table.trace[i]]}/{table.index[i]}",
                "trace_id": table.trace_ids[table.trace[i]],
                "question_id": table.group[i],
                "step_index": int(table.index[i]),
                "position": float(table.position[i]),
                "text": text,
                "right": None if np.isnan(table.right[i]) else bool(table.right[i]),
                "decisiveness": said,
                "confidence": sure,
                "faithfulness": {
                    scorer: {
                        name: None if d is None or c is None else 1.0 - abs(d - c) for name, c in sure.items()
                    }
                    for scorer, d in said.items()
                },
            }
        )
    return records


def trace_means(values: np.ndarray, table: Table) -> np.ndarray:
    """Mean over the valid steps of each trace [N], NaN without any."""
    return _means(values, table.trace, len(table.trace_ids))


def _confidences(
    subjects: Sequence[Subject], files: Mapping[str, Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    where = {
        "token": ("token", "token"),
        "entropy": ("token", "entropy"),
        "hidden": ("hidden", "q"),
        "hidden_running": ("hidden", "p"),
        "probe": ("probe", "probe"),
        "mean_logprob": ("token", "mean_logprob"),
        "sum_logprob": ("token", "sum_logprob"),
    }
    for name in (*ESTIMATORS, *LIKELIHOODS):
        if name == "prefix":
            if files["prefix"]:
                found[name] = _flat(subjects, files["prefix"], _scattered)
        elif files[where[name][0]]:
            found[name] = _flat(subjects, files[where[name][0]], lambda r, n, f=where[name][1]: r[f])
    return found


def _scattered(record: Mapping[str, Any], steps: int) -> list[float | None]:
    """The sampled steps' values at their places."""
    values: list[float | None] = [None] * steps
    for step, value in zip(record["steps"], record["confidence"], strict=True):
        values[step] = value
    return values


def _flat(subjects: Sequence[Subject], records: Mapping[str, Any], values: Any) -> np.ndarray:
    found: list[float] = []
    for subject in subjects:
        steps = len(subject.trace.steps)
        record = records.get(subject.id)
        try:
            row = [None] * steps if record is None else list(values(record, steps))
            numbers = [np.nan if v is None else float(v) for v in row]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"trace {subject.id!r}: malformed record of a stage ({type(error).__name__}: {error}); run with --overwrite"
            ) from error
        if len(row) != steps:
            raise UserError(
                f"trace {subject.id!r} has {steps} steps, its record {len(row)}; run with --overwrite"
            )
        found += numbers
    return np.array(found, np.float64)


def _means(values: np.ndarray, trace: np.ndarray, traces: int) -> np.ndarray:
    known = ~np.isnan(values)
    count = np.bincount(trace[known], minlength=traces)
    total = np.bincount(trace[known], values[known], traces)
    # Means of equal steps are equal, however many there are: a rank correlation sees the last bits of a sum.
    return np.where(count > 0, np.round(total / np.maximum(count, 1), _DIGITS), np.nan)


def _last(values: np.ndarray, trace: np.ndarray, traces: int) -> np.ndarray:
    found = np.full(traces, np.nan)
    known = ~np.isnan(values)
    found[trace[known]] = values[known]  # the last assignment stays
    return found


def _padded(values: Sequence[bool | None] | None, steps: int) -> Sequence[bool | None]:
    return values if values is not None and len(values) == steps else [None] * steps


def _number(value: bool | None) -> float:
    return np.nan if value is None else float(value)
