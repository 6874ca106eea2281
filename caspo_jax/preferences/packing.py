"""Pairs and verified steps to device batches of a few fixed shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

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


def masked_row(row: Row) -> MaskedRow:
    """Context + step, of which the step is scored."""
    context, step = row
    mask = np.zeros(len(context) + len(step), bool)
    mask[len(context) :] = True
    return MaskedRow(np.array((*context, *step), np.int32), mask)


def pack_masked(rows: Sequence[MaskedRow], length: int, pad_id: int, batch_size: int) -> StepRows:
    """Rows padded on the right; arguments as of `pack_rows`."""
    token_ids = np.full((batch_size, length), pad_id, np.int32)
    mask, step_mask = np.zeros((batch_size, length), bool), np.zeros((batch_size, length), bool)
    for i, row in enumerate(rows):
        total = len(row.token_ids)
        if total > length:
            raise ValueError(f"a row of {total} tokens does not fit into {length}")
        token_ids[i, :total], mask[i, :total], step_mask[i, :total] = row.token_ids, True, row.step_mask
    return StepRows(token_ids, mask, step_mask)  # type: ignore[arg-type]  # NumPy, until it is placed


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
    return pack_masked([masked_row(row) for row in rows], length, pad_id, size)


def pair_rows(pair: Pair) -> tuple[Row, Row]:
    """The chosen and the rejected row of a pair."""
    context = pair.prompt_ids + pair.prefix_ids
    return (context, pair.chosen_ids), (context, pair.rejected_ids)


def _check_tokens(pairs: Sequence[Pair]) -> None:
    """Refuses pairs of texts alone, of which a batch would score nothing."""
    for pair in pairs:
        if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):
            raise UserError(f"pair {pair.id!r} has no token ids: tokenize_pairs() makes them from its texts")


def pack_pairs(pairs: Sequence[Pair], length: int, pad_id: int, batch_size: int | None = None) -> PairBatch:
    """Pairs as one batch; reference log-probs are NaN until they are computed, 0 in padding rows.

    Args:
      pairs: at most B.
      length: T; both rows of every pair must fit.
      pad_id: fills the rest of a row.
      batch_size: B; rows beyond the pairs have weight 0 and empty step masks.

    Returns:
      NumPy-backed PairBatch [B, T].

    Raises:
      UserError: a pair without token ids, or one that is longer than T.
    """
    _check_tokens(pairs)
    size = len(pairs) if batch_size is None else batch_size
    both = [pair_rows(pair) for pair in pairs]
    for pair, rows in zip(pairs, both, strict=True):
        longest = max(len(context) + len(step) for context, step in rows)
        if longest > length:
            raise UserError(f"pair {pair.id!r} needs {longest} tokens and does not fit into length={length}")
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
) -> tuple[list[PairBatch], dict[str, int]]:
    """Pairs as batches of shape [batch_size, T], T one of `length_buckets`; nothing is ever truncated.

    For a training loop of one's own around `step_dpo_loss`; `train` packs pairs itself, and tighter.

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
      UserError: a pair without token ids; too long a pair with `too_long="error"`; no bucket, or a batch size below 1.
    """
    if not length_buckets or min(length_buckets) < 1 or batch_size < 1:
        raise UserError(
            f"length_buckets={tuple(length_buckets)} and batch_size={batch_size}: both need positive numbers"
        )
    _check_tokens(pairs)
    plan, dropped = _same_buckets(pairs, length_buckets, batch_size, too_long, seed)
    batches = [pack_pairs(items, length, pad_id, batch_size) for length, items in plan]
    counts = {"too_long": dropped, "batches": len(batches), "items": len(pairs) - dropped}
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


def _same_buckets(
    pairs: Sequence[Pair], buckets: Sequence[int], batch_size: int, too_long: TooLong, seed: int | None
) -> tuple[list[tuple[int, list[Pair]]], int]:
    """Batches of pairs that share a length bucket, each with its length, and how many pairs fit none."""
    by_bucket: dict[int, list[Pair]] = {bucket: [] for bucket in sorted(set(buckets))}
    dropped = 0
    for pair in pairs:
        length = max(len(context) + len(step) for context, step in pair_rows(pair))
        fit = next((bucket for bucket in by_bucket if length <= bucket), None)
        if fit is not None:
            by_bucket[fit].append(pair)
        elif too_long == "drop":
            dropped += 1
        else:
            raise UserError(
                f"pair {pair.id!r} has {length} tokens, the largest of length_buckets is {max(buckets)}: "
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
    return batches, dropped


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
    sure = [dataclasses.replace(c, confidence=1.0) for c in candidates]
    groups, counts = filter_candidates(sure, allow_flawed_prefix=allow_flawed_prefix)
    kept = [c for group in groups for c in group]
    rows = list(
        dict.fromkeys((c.prompt_ids + c.prefix_ids, c.token_ids) for c in kept if c.verdict == "correct")
    )
    return rows, {**counts, "wrong": sum(c.verdict == "wrong" for c in kept), "verified": len(rows)}
