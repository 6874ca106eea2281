"""Pairs and verified steps to device batches of a few fixed shapes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.preferences.candidates import Candidate, filter_candidates
from caspo_jax.types import Pair, PairBatch, StepRows

TooLong = Literal["drop", "error"]
Row = tuple[tuple[int, ...], tuple[int, ...]]  # context ids (prompt + prefix), step ids


class MaskedRow(NamedTuple):
    """One row without padding."""

    token_ids: np.ndarray  # [T] int32
    step_mask: np.ndarray  # [T] bool, what is scored


def length_buckets(longest: int, smallest: int = 64) -> tuple[int, ...]:
    """Powers of two and the halves between them (64, 96, 128, ...) up to the first that holds `longest`."""
    if smallest < 1:
        raise UserError(f"the smallest length bucket must be at least 1, got {smallest}")
    buckets = [smallest]
    while buckets[-1] < longest:
        last = buckets[-1]
        grown = last * 3 // 2 if last & (last - 1) == 0 else last * 4 // 3
        buckets.append(max(last + 1, grown))  # 1 has no half to grow by
    return tuple(buckets)


def pack_rows(rows: Sequence[Row], length: int, pad_id: int, batch_size: int | None = None) -> StepRows:
    """Context + step, padded on the right; rows beyond `len(rows)` are padding with empty masks.

    Args:
      rows: at most B rows of (context ids, step ids).
      length: T; every row must fit.
      pad_id: fills what is left; masks say what is real, so it may be any id.
      batch_size: B; default `len(rows)`.

    Returns:
      NumPy-backed StepRows [B, T].
    """
    size = len(rows) if batch_size is None else batch_size
    token_ids = np.full((size, length), pad_id, np.int32)
    mask = np.zeros((size, length), bool)
    step_mask = np.zeros((size, length), bool)
    for i, (context, step) in enumerate(rows):
        total = len(context) + len(step)
        if total > length:
            raise ValueError(f"a row of {total} tokens does not fit into {length}")
        token_ids[i, :total] = (*context, *step)
        mask[i, :total] = True
        step_mask[i, len(context) : total] = True
    return StepRows(token_ids=token_ids, mask=mask, step_mask=step_mask)  # type: ignore[arg-type]


def pair_rows(pair: Pair) -> tuple[Row, Row]:
    """The chosen and the rejected row of a pair."""
    context = pair.prompt_ids + pair.prefix_ids
    return (context, pair.chosen_ids), (context, pair.rejected_ids)


def pack_pairs(pairs: Sequence[Pair], length: int, pad_id: int, batch_size: int | None = None) -> PairBatch:
    """Pairs as one batch; reference log-probs are NaN until they are computed, 0 in padding rows.

    Args:
      pairs: at most B.
      length: T; both rows of every pair must fit.
      pad_id: fills the rest of a row.
      batch_size: B; rows beyond the pairs have weight 0 and empty step masks.

    Returns:
      NumPy-backed PairBatch [B, T].
    """
    size = len(pairs) if batch_size is None else batch_size
    both = [pair_rows(pair) for pair in pairs]
    weight = np.zeros(size, np.float32)
    weight[: len(pairs)] = [pair.weight for pair in pairs]
    reference = np.zeros(size, np.float32)
    reference[: len(pairs)] = np.nan
    return PairBatch(
        chosen=pack_rows([chosen for chosen, _ in both], length, pad_id, size),
        rejected=pack_rows([rejected for _, rejected in both], length, pad_id, size),
        weight=weight,  # type: ignore[arg-type]
        reference_chosen=reference,  # type: ignore[arg-type]
        reference_rejected=reference.copy(),  # type: ignore[arg-type]
    )


def plan_batches(
    lengths: Sequence[int],
    buckets: Sequence[int],
    batch_size: int,
    *,
    too_long: TooLong = "drop",
    seed: int | None = None,
    names: Sequence[str] | None = None,
) -> tuple[list[tuple[int, list[int]]], dict[str, int]]:
    """Which items go together: batches of items that share a length bucket.

    Args:
      lengths: tokens of each item.
      buckets: the lengths T that batches may have.
      batch_size: items a batch; each bucket's last batch may have fewer.
      too_long: drop (and count) items beyond the largest bucket, or raise.
      seed: shuffles items within their bucket, and the batches; None keeps the order.
      names: of the items, for the message.

    Returns:
      `(T, item indices)` for each batch, and counts: `too_long`, `batches`, `items`.

    Raises:
      UserError: no bucket, a batch size below 1, or an item that is too long with `too_long="error"`.
    """
    if not buckets or min(buckets) < 1 or batch_size < 1:
        raise UserError(
            f"length_buckets={tuple(buckets)} and batch_size={batch_size}: both need positive numbers"
        )
    ordered = sorted(set(buckets))
    by_bucket: dict[int, list[int]] = {bucket: [] for bucket in ordered}
    dropped = 0
    for i, length in enumerate(lengths):
        fit = next((bucket for bucket in ordered if length <= bucket), None)
        if fit is not None:
            by_bucket[fit].append(i)
        elif too_long == "drop":
            dropped += 1
        else:
            name = f"pair {names[i]!r}" if names is not None else f"row {i}"
            raise UserError(
                f"{name} has {length} tokens, the largest of length_buckets is {ordered[-1]}: "
                "add a longer one, or set too_long='drop'"
            )
    random = None if seed is None else np.random.default_rng(seed)
    batches = []
    for bucket, items in by_bucket.items():
        if random is not None:
            items = [items[i] for i in random.permutation(len(items))]
        batches += [(bucket, items[at : at + batch_size]) for at in range(0, len(items), batch_size)]
    if random is not None:
        batches = [batches[i] for i in random.permutation(len(batches))]
    return batches, {"too_long": dropped, "batches": len(batches), "items": len(lengths) - dropped}


def batch_pairs(
    pairs: Sequence[Pair],
    length_buckets: Sequence[int],
    batch_size: int,
    pad_id: int,
    *,
    too_long: TooLong = "drop",
    seed: int | None = None,
    verified: Sequence[Row] | None = None,
    verified_per_batch: int | None = None,
) -> tuple[list[PairBatch], dict[str, Any]]:
    """Pairs as batches of shape [batch_size, T], T one of `length_buckets`; nothing is ever truncated.

    Args:
      pairs: with token ids.
      length_buckets: the lengths T that batches may have.
      batch_size: B; the last batch of a bucket is filled up with rows of weight 0.
      pad_id: fills the rest of a row.
      too_long: what to do with pairs that fit no bucket: `drop` (counted) or `error`.
      seed: shuffles; None keeps the order within each bucket.
      verified: rows (from `verified_rows`) that ride along for the NLL term, each in turn.
      verified_per_batch: M; default `batch_size`.

    Returns:
      NumPy-backed batches, and counts: `items`, `batches`, `too_long`, `verified_too_long`.

    Raises:
      UserError: a pair without token ids; too long a pair with `too_long="error"`.
    """
    for pair in pairs:
        if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):
            raise UserError(f"pair {pair.id!r} has no token ids: tokenize_pairs() makes them from its texts")
    lengths = [max(len(context) + len(step) for context, step in pair_rows(pair)) for pair in pairs]
    plan, counts = plan_batches(
        lengths, length_buckets, batch_size, too_long=too_long, seed=seed, names=[pair.id for pair in pairs]
    )
    batches = [pack_pairs([pairs[i] for i in items], length, pad_id, batch_size) for length, items in plan]
    if verified is not None:
        size = batch_size if verified_per_batch is None else verified_per_batch
        longest = max(length_buckets)
        usable = [row for row in verified if len(row[0]) + len(row[1]) <= longest]
        if too_long == "error" and len(usable) < len(verified):
            raise UserError(
                f"{len(verified) - len(usable)} verified steps exceed the length bucket {longest}"
            )
        counts["verified_too_long"] = len(verified) - len(usable)
        if batches and not usable:
            raise UserError(
                "no verified-correct step fits the length buckets: the NLL term has nothing to read"
            )
        if seed is not None:
            usable = [usable[i] for i in np.random.default_rng([seed, 1]).permutation(len(usable))]
        batches = [
            dataclasses.replace(batch, verified=_ride(usable, nth * size, size, length_buckets, pad_id))
            for nth, batch in enumerate(batches)
        ]
    return batches, counts


def _ride(rows: Sequence[Row], start: int, size: int, buckets: Sequence[int], pad_id: int) -> StepRows:
    """`size` rows from `start` on, going round."""
    drawn = [rows[(start + i) % len(rows)] for i in range(min(size, len(rows)))]
    longest = max(len(context) + len(step) for context, step in drawn)
    return pack_rows(drawn, min(b for b in buckets if b >= longest), pad_id, size)


def verified_rows(
    candidates: Sequence[Candidate], *, allow_flawed_prefix: bool = False
) -> tuple[list[Row], dict[str, int]]:
    """The distinct verified-correct steps, for the NLL term and the `rft` control.

    Args:
      candidates: from `build_candidates`.
      allow_flawed_prefix: also steps after one that is not verified correct.

    Returns:
      Rows of (prompt + prefix ids, step ids), and counts as `filter_candidates` gives them, with `wrong` and
      `verified`.
    """
    # What has no confidence is as good to imitate as what has one.
    sure = [
        dataclasses.replace(c, confidence=1.0 if c.confidence is None else c.confidence) for c in candidates
    ]
    groups, counts = filter_candidates(sure, allow_flawed_prefix=allow_flawed_prefix)
    kept = [c for group in groups for c in group]
    rows = list(
        dict.fromkeys((c.prompt_ids + c.prefix_ids, c.token_ids) for c in kept if c.verdict == "correct")
    )
    return rows, {**counts, "wrong": sum(c.verdict == "wrong" for c in kept), "verified": len(rows)}


def batch_rows(
    rows: Sequence[Row],
    length_buckets: Sequence[int],
    batch_size: int,
    pad_id: int,
    *,
    too_long: TooLong = "drop",
    seed: int | None = None,
) -> tuple[list[StepRows], dict[str, int]]:
    """Rows as StepRows batches, for `rft` without pairs; arguments as of `batch_pairs`."""
    plan, counts = plan_batches(
        [len(context) + len(step) for context, step in rows],
        length_buckets,
        batch_size,
        too_long=too_long,
        seed=seed,
    )
    return [pack_rows([rows[i] for i in items], length, pad_id, batch_size) for length, items in plan], counts


def count_tokens(batches: Sequence[PairBatch]) -> Mapping[str, int]:
    """Real tokens, step tokens and positions of batches: how much of them is padding."""
    total: collections.Counter[str] = collections.Counter()
    for batch in batches:
        for rows in (batch.chosen, batch.rejected):
            total["tokens"] += int(np.sum(rows.mask))
            total["step_tokens"] += int(np.sum(rows.step_mask))
            total["positions"] += int(np.size(rows.mask))
    return dict(total)
