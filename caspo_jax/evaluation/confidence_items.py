"""Traces with verdicts -> steps and paths under every named confidence, on a log scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax.confidence import (
    PATH_CONFIDENCES,
    STEP_CONFIDENCES,
    TokenStats,
    needed_fields,
    path_confidence,
    step_confidence,
)
from caspo_jax.errors import UserError
from caspo_jax.evaluation.siblings import prefix_digests
from caspo_jax.metrics.arrays import group_index
from caspo_jax.steps import segment
from caspo_jax.steps.annotate import step_rows
from caspo_jax.types import DEFAULT_DELIMITER, Trace


@dataclasses.dataclass(frozen=True)
class Items:
    """Steps or paths with a verdict, and what each confidence says of them."""

    # Name -> [n] log confidence, float64: products of long paths do not underflow.
    scores: Mapping[str, np.ndarray]
    right: np.ndarray  # [n] float64
    question: np.ndarray  # [n] int64
    prefix: np.ndarray  # [n] int64, items sampled from one prefix
    length: np.ndarray  # [n] float64, tokens that count
    entropy: np.ndarray  # [n] float64, mean token entropy, nats


def _question_key(trace: Trace) -> Hashable:
    """What makes two traces answers to one question: its text, else its prompt, else its ids."""
    return trace.question or trace.prompt or trace.prompt_ids or trace.id


def confidence_items(
    traces: Sequence[Trace],
    token_bytes: Sequence[bytes],
    stats: Sequence[TokenStats] | None = None,
    delimiter: str = DEFAULT_DELIMITER,
) -> tuple[Items, Items]:
    """Steps with a verdict, and traces with a known correctness, under every confidence that can be computed.

    Args:
      traces: annotated, with the token statistics `entropy` and `logprob`.
      token_bytes: for each id of the vocabulary the bytes it spells.
      stats: TokenStats [T] of each trace (`rescoring.token_statistics`); without them only the confidences that need
        no more than entropy and log-prob are there.
      delimiter: what ends a step.

    Returns:
      (steps, paths). A path's confidences are named `rule(step confidence)`.

    Raises:
      UserError: a trace without statistics, or whose steps were cut by another delimiter; a negative confidence.
    """
    names = [
        n for n in STEP_CONFIDENCES if stats is not None or set(needed_fields(n)) <= {"entropy", "logprob"}
    ]
    steps: list[tuple[Any, ...]] = []
    paths: list[tuple[Any, ...]] = []
    for i, trace in enumerate(traces):
        if not trace.token_ids:
            continue
        fields = stats[i] if stats is not None else _recorded(trace)
        logs, counted = _step_logs(trace, names, fields, token_bytes, delimiter)
        question = _question_key(trace)
        entropy = np.asarray(fields.entropy)
        prefixes = prefix_digests(trace, question)
        known = np.isfinite(logs).any(axis=0) if names else np.zeros(0, bool)
        for j in np.flatnonzero(known):
            step = trace.steps[j]
            if step.verdict != "unknown":
                right = step.verdict == "correct"
                steps.append(
                    (logs[:, j], right, question, prefixes[j], len(counted[j]), entropy[counted[j]].mean())
                )
        if trace.correct is not None and known.any():
            inside = _path_logs(logs[:, known]).reshape(-1)
            paths.append((inside, trace.correct, question, question, len(trace.token_ids), entropy.mean()))
    path_names = [f"{rule}({name})" for rule in PATH_CONFIDENCES for name in names]
    return _items(steps, names), _items(paths, path_names)


def _recorded(trace: Trace) -> TokenStats:
    if trace.entropy is None or trace.logprob is None:
        raise UserError(
            f"trace {trace.id!r} has no per-token entropy and logprob: give the model that wrote it"
        )
    return TokenStats(entropy=np.asarray(trace.entropy), logprob=np.asarray(trace.logprob))  # type: ignore[arg-type]


def _step_logs(
    trace: Trace, names: Sequence[str], fields: TokenStats, token_bytes: Sequence[bytes], delimiter: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Log confidences [names, S], NaN for a step without counted tokens, and the counted tokens (columns) of each step."""
    _, steps, counted = segment(trace.token_ids, token_bytes, delimiter)
    if [s.token_end for s in steps] != [s.token_end for s in trace.steps]:
        raise UserError(
            f"trace {trace.id!r}: its steps were not cut by {delimiter!r} with this tokenizer; annotate it again"
        )
    if not steps:
        return np.empty((len(names), 0)), []
    columns, masks = step_rows(steps, counted)
    rows: dict[str, Any] = {f: np.asarray(v)[columns] for f, v in vars(fields).items() if v is not None}
    logs = np.empty((len(names), len(steps)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, name in enumerate(names):
            values = step_confidence(name, TokenStats(**rows), masks, len(token_bytes))
            if (values < 0.0).any():
                raise UserError(
                    f"step confidence {name!r} is {np.nanmin(values):.4g} on a step: it must be 0 or more"
                )
            logs[k] = np.log(values)
            if name == "sum_logprob":  # its exponential underflows on long steps
                logs[k] = np.where(
                    np.isnan(values), np.nan, np.where(masks, rows["logprob"], 0.0).sum(axis=-1)
                )
    return logs, [row[mask] for row, mask in zip(columns, masks)]


def _path_logs(logs: np.ndarray) -> np.ndarray:
    """[rules, names] log path confidences of step log confidences [names, S].

    The rules of this library stay in the log domain, where products of long paths do not underflow; a registered one is
    given the confidences themselves.
    """
    found = {
        "geometric": logs.mean(axis=1),
        "product": logs.sum(axis=1),
        "min": logs.min(axis=1),
        "last": logs[:, -1],
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        for rule in PATH_CONFIDENCES:
            if rule not in found:
                found[rule] = np.log(path_confidence(rule, np.exp(logs)))
    return np.stack([found[rule] for rule in PATH_CONFIDENCES])


def _items(rows: list[tuple[Any, ...]], names: Sequence[str]) -> Items:
    scores = np.array([row[0] for row in rows]).reshape(len(rows), len(names))
    right, question, prefix, length, entropy = zip(*(row[1:] for row in rows)) if rows else ((),) * 5
    return Items(
        scores=dict(zip(names, scores.T)),
        right=np.array(right, np.float64),
        question=group_index(list(map(repr, question)))[0],
        prefix=group_index(list(map(repr, prefix)))[0],
        length=np.array(length, np.float64),
        entropy=np.array(entropy, np.float64),
    )
