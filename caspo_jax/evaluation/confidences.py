"""Every named step and path confidence of a file of traces, held against the verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.confidence import (
    PATH_CONFIDENCES,
    STEP_CONFIDENCES,
    TokenStats,
    needed_fields,
    step_confidence,
)
from caspo_jax.errors import UserError
from caspo_jax.evaluation.siblings import prefix_digests
from caspo_jax.metrics.arrays import group_index
from caspo_jax.steps import segment
from caspo_jax.types import Trace

UNBOUNDED = ("deepconf", "self_certainty")  # not in [0, 1]: squashed by c / (1 + c) before they are scaled
RANKING = {
    "confidence": "confidence",
    "auroc": "AUROC",
    "auroc_low": "low",
    "auroc_high": "high",
    "within_question": "in question",
    "within_question_groups": "questions",
    "within_prefix": "in prefix",
    "within_prefix_groups": "prefixes",
    "length_controlled": "length controlled",
    "length_controlled_null": "97.5 % of null",
    "length_controlled_p": "p",
    "auprc_errors": "AUPRC errors",
    "auprc_correct": "AUPRC right",
    "aurc": "AURC",
    "augrc": "AUGRC",
}
_LEVELS = {
    "bias": "bias",
    "ece": "ECE",
    "ece_mass": "ECE mass",
    "ece_debiased": "ECE debiased",
    "brier": "Brier",
    "reliability": "reliability",
    "resolution": "resolution",
    "within_bins": "in bins",
}
RAW = {"confidence": "as it is"} | _LEVELS
SCALED = {"confidence": "scaled, p = c^a"} | {f"{field}_scaled": title for field, title in _LEVELS.items()}
COLUMNS = (RANKING, RAW, SCALED)  # Brier = reliability - resolution + uncertainty + what is inside the bins


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
    delimiter: str = "\n\n",
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
      UserError: a trace without statistics, or whose steps were cut by another delimiter.
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
        logs, masks = _step_logs(trace, names, fields, token_bytes, delimiter)
        question = _question_key(trace)
        entropy = np.asarray(fields.entropy)
        prefixes = prefix_digests(trace, question)
        known = np.isfinite(logs).any(axis=0) if names else np.zeros(0, bool)
        for j in np.flatnonzero(known):
            step = trace.steps[j]
            if step.verdict != "unknown":
                right = step.verdict == "correct"
                steps.append(
                    (logs[:, j], right, question, prefixes[j], masks[j].sum(), entropy[masks[j]].mean())
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
) -> tuple[np.ndarray, np.ndarray]:
    """Log confidences [names, S], NaN for a step without counted tokens, and the counted tokens [S, T]."""
    _, steps, counted = segment(trace.token_ids, token_bytes, delimiter)
    if [s.token_end for s in steps] != [s.token_end for s in trace.steps]:
        raise UserError(
            f"trace {trace.id!r}: its steps were not cut by {delimiter!r} with this tokenizer; annotate it again"
        )
    position = np.arange(len(trace.token_ids))
    masks = np.array([counted & (s.token_start <= position) & (position < s.token_end) for s in steps])
    masks = masks.reshape(len(steps), len(position))
    rows: dict[str, Any] = {
        f: np.broadcast_to(v, masks.shape) for f, v in vars(fields).items() if v is not None
    }
    logs = np.empty((len(names), len(steps)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, name in enumerate(names):
            values = step_confidence(name, TokenStats(**rows), masks, len(token_bytes))
            logs[k] = np.log(values)
            if name == "sum_logprob":  # its exponential underflows on long steps
                logs[k] = np.where(
                    np.isnan(values), np.nan, np.where(masks, rows["logprob"], 0.0).sum(axis=-1)
                )
    return logs, masks


def _path_logs(logs: np.ndarray) -> np.ndarray:
    """[rules, names] log path confidences of step log confidences [names, S]: path_confidence in the log domain."""
    rules = {
        "geometric": logs.mean(axis=1),
        "product": logs.sum(axis=1),
        "min": logs.min(axis=1),
        "last": logs[:, -1],
    }
    return np.stack([rules[rule] for rule in PATH_CONFIDENCES])


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


def confidence_table(
    items: Items,
    draws: int = 1000,
    seed: int = 0,
    bins: int = 10,
    progress: Callable[[int, int], Any] | None = None,
) -> list[dict[str, Any]]:
    """One row a confidence, and one for the length alone (shorter is surer), the best AUROC first.

    Ranking figures: AUROC pooled with its 95 % interval by question, within question, within prefix (each with the
    number of groups that have both verdicts), among items of like length with the 97.5 % point of its permutation null
    and the p-value; AUPRC of finding errors, and of finding right ones; AURC, AUGRC. Calibration figures for confidences in [0, 1]: bias, ECE of equal width, of equal mass
    and debiased, Brier and its parts; and all of these again, `_scaled`, after the cross-fitted one-parameter scaling
    p = c^a, which an unbounded confidence enters as c / (1 + c).

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


def _row(name: str, items: Items, rank: np.ndarray, draws: int, seed: int, bins: int) -> dict[str, Any]:
    kept = ~np.isnan(rank)
    rank, right, question = rank[kept], items.right[kept], items.question[kept]
    pooled = metrics.bootstrap_interval(metrics.auroc_statistic(rank, right), question, draws, seed)
    by_question = metrics.within_question_auroc(rank, right, question)
    by_prefix = metrics.within_prefix_auroc(rank, right, items.prefix[kept])
    by_length = metrics.length_controlled_auroc(rank, right, items.length[kept], draws=draws, seed=seed)
    row: dict[str, Any] = {
        "confidence": name,
        "items": int(right.size),
        "auroc": pooled.value,
        "auroc_low": pooled.low,
        "auroc_high": pooled.high,
        "within_question": by_question.value,
        "within_question_groups": by_question.groups,
        "within_prefix": by_prefix.value,
        "within_prefix_groups": by_prefix.groups,
        "length_controlled": by_length.value,
        "length_controlled_p": by_length.p_value,
        "length_controlled_null": by_length.null_high,
        "auprc_errors": metrics.average_precision(-rank, 1.0 - right),
        "auprc_correct": metrics.average_precision(rank, right),
        "aurc": metrics.aurc(rank, right),
        "augrc": metrics.augrc(rank, right),
    }
    if name == "length":
        return row
    bounded = not any(word in name for word in UNBOUNDED)
    raw = np.exp(np.minimum(rank, 0.0)) if bounded else np.exp(-np.logaddexp(0.0, -rank))
    if bounded:
        row |= calibration(raw, right, bins)
    if len(set(question.tolist())) >= 2:
        scaled = metrics.cross_fitted(raw, right, question)
        row |= {f"{field}_scaled": value for field, value in calibration(scaled, right, bins).items()}
    return row


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> dict[str, float]:
    """Bias, calibration errors, Brier score and its parts of confidences [n] in [0, 1]."""
    parts = metrics.brier_decomposition(confidence, right, bins)
    return {
        "bias": metrics.bias(confidence, right),
        "ece": metrics.expected_calibration_error(confidence, right, bins),
        "ece_mass": metrics.equal_mass_calibration_error(confidence, right, bins),
        "ece_debiased": metrics.debiased_calibration_error(confidence, right, bins),
        "squared_error_debiased": metrics.debiased_squared_error(confidence, right, bins),
        "brier": parts.brier,
        "reliability": parts.reliability,
        "resolution": parts.resolution,
        "uncertainty": parts.uncertainty,
        "within_bins": parts.within,
    }
