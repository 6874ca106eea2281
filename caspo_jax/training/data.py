"""Rows of pairs and verified steps on the host, in a seeded order, as micro-batches of few shapes."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.preferences.packing import Row, length_buckets, pair_rows
from caspo_jax.training.config import TrainConfig
from caspo_jax.types import Pair, PairBatch, StepRows


class MaskedRow(NamedTuple):
    """One row without padding."""

    token_ids: np.ndarray  # [T] int32
    step_mask: np.ndarray  # [T] bool


class Micro(NamedTuple):
    """A micro-batch and the rows it was made from (fewer than its rows, where it is filled up)."""

    batch: PairBatch  # NumPy arrays
    pairs: np.ndarray  # indices into RowStore.chosen
    verified: np.ndarray  # indices into RowStore.verified


@dataclasses.dataclass
class RowStore:
    """Everything that a run trains on."""

    chosen: list[MaskedRow]
    rejected: list[MaskedRow]
    weight: np.ndarray  # [n] float32
    reference_chosen: np.ndarray  # [n] float32, NaN where not computed yet
    reference_rejected: np.ndarray  # [n] float32
    pair_ids: list[str]
    verified: list[MaskedRow]

    @classmethod
    def build(cls, data: Sequence[Pair | PairBatch], verified: Sequence[Row | StepRows] = ()) -> RowStore:
        """Rows of pairs or of packed batches (padding rows are left out), and verified steps beside them.

        Raises:
          UserError: a pair without token ids, or a step that starts its row (nothing predicts its first token).
        """
        store = cls([], [], np.zeros(0), np.zeros(0), np.zeros(0), [], [])
        weight, references = [], []
        for number, item in enumerate(data):
            if isinstance(item, Pair):
                if not (item.prompt_ids and item.chosen_ids and item.rejected_ids):
                    raise UserError(
                        f"pair {item.id!r} has no token ids: tokenize_pairs() makes them from its texts"
                    )
                for side, row in zip((store.chosen, store.rejected), pair_rows(item)):
                    side.append(_from_row(row))
                store.pair_ids.append(item.id)
                weight.append(item.weight)
                references.append((np.nan, np.nan))
                continue
            kept = np.flatnonzero(np.asarray(item.weight) > 0)
            store.chosen += _unpadded(item.chosen, kept)
            store.rejected += _unpadded(item.rejected, kept)
            store.pair_ids += [f"batch {number} row {row}" for row in kept]
            weight += np.asarray(item.weight)[kept].tolist()
            references += list(
                zip(np.asarray(item.reference_chosen)[kept], np.asarray(item.reference_rejected)[kept])
            )
            if item.verified is not None:
                store.verified += _unpadded(item.verified)
        for group in verified:
            store.verified += _unpadded(group) if isinstance(group, StepRows) else [_from_row(group)]
        store.weight = np.array(weight, np.float32)
        columns = np.array(references, np.float32).reshape(-1, 2)
        store.reference_chosen, store.reference_rejected = columns[:, 0].copy(), columns[:, 1].copy()
        for name, rows in (
            *zip(store.pair_ids, zip(store.chosen, store.rejected)),
            *((f"verified step {i}", (row,)) for i, row in enumerate(store.verified)),
        ):
            if any(row.step_mask[0] for row in rows):
                raise UserError(f"{name}: its step starts the row, so nothing predicts it: give it a prompt")
        return store

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max((len(row.token_ids) for rows in self._columns() for row in rows), default=1)

    def _columns(self) -> tuple[list[MaskedRow], ...]:
        return self.chosen, self.rejected, self.verified

    def fingerprint(self) -> str:
        """SHA-256 of all rows and weights (not of the reference log-probs)."""
        digest = hashlib.sha256(self.weight.tobytes())
        for rows in self._columns():
            digest.update(f"{len(rows)};".encode())
            for row in rows:
                digest.update(
                    f"{len(row.token_ids)};".encode() + row.token_ids.tobytes() + row.step_mask.tobytes()
                )
        return digest.hexdigest()

    def lengths_of(self, pairs: np.ndarray) -> np.ndarray:
        """Tokens of the longer row of each of the given pairs."""
        return np.array(
            [max(len(self.chosen[i].token_ids), len(self.rejected[i].token_ids)) for i in pairs], int
        )

    def pack(
        self, pairs: np.ndarray, verified: np.ndarray, size: int, verified_size: int, buckets: Sequence[int]
    ) -> PairBatch:
        """The given pairs and verified steps as one batch of NumPy arrays, filled up to the given sizes."""
        groups = (
            ([self.chosen[i] for i in pairs], size),
            ([self.rejected[i] for i in pairs], size),
            ([self.verified[i] for i in verified], verified_size),
        )
        longest = max((len(row.token_ids) for rows, _ in groups for row in rows), default=1)
        width = next(bucket for bucket in buckets if bucket >= longest)
        chosen, rejected, steps = (_pack(rows, count, width) for rows, count in groups)

        def fill(values: np.ndarray) -> Any:
            return np.concatenate([values[pairs], np.zeros(size - len(pairs), np.float32)])

        return PairBatch(
            chosen=chosen,
            rejected=rejected,
            weight=fill(self.weight),
            reference_chosen=fill(self.reference_chosen),
            reference_rejected=fill(self.reference_rejected),
            verified=steps if verified_size else None,
        )


class Plan:
    """Which rows each update reads: a pure function of the seed, iterated (and checkpointed) by grain.

    Pairs are shuffled anew every epoch and cut into batches across epochs' borders, so that only the very last
    batch can be short. Verified steps go round in their own shuffled order beside them, or alone for `rft`.
    """

    def __init__(self, store: RowStore, config: TrainConfig):
        import grain

        self.store = store
        items, noun = len(store.chosen), "pairs"
        if not config.loss.uses_pairs:
            items, noun = len(store.verified), "verified steps"
        if items == 0:
            raise UserError(f"there are no {noun} to train on (loss={config.loss.loss})")
        if config.loss.uses_verified and not store.verified:
            raise UserError(
                f"loss={config.loss.loss} with nll_on={config.loss.nll_on} needs verified steps: there are none"
            )
        batch = min(config.batch_size, items)
        steps = math.ceil(items * config.epochs / batch)
        self.steps = steps if config.max_steps is None else min(steps, config.max_steps)
        self.micro_batches = math.ceil(batch / (config.micro_batch_size or batch))
        rows = math.ceil(batch / self.micro_batches)
        self.pair_rows = rows if config.loss.uses_pairs else 0
        self.verified_rows = rows if not config.loss.uses_pairs else 0
        self.epoch_steps = items / batch
        self.buckets = length_buckets(store.longest, config.min_length)

        def shuffled(count: int, seed: int) -> Any:
            return grain.MapDataset.range(count).seed(seed).shuffle()

        main = shuffled(items, config.seed).repeat(config.epochs).batch(batch)
        beside = None
        if config.loss.uses_pairs and config.loss.uses_verified:
            available = len(store.verified)
            wanted = config.verified_per_batch or math.ceil(available * batch / items)
            self.verified_rows = _round_up(math.ceil(min(wanted, available) / self.micro_batches))
            beside = shuffled(available, config.seed + 1).repeat().batch(min(wanted, available))

        def rows_of(step: int) -> tuple[np.ndarray, np.ndarray]:
            none = np.zeros(0, int)
            first = np.asarray(main[step])
            if not config.loss.uses_pairs:
                return none, first
            return first, none if beside is None else np.asarray(beside[step])

        # One worker and no read-ahead: an iterator's state is then exactly the updates handed out.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._dataset = grain.MapDataset.range(self.steps).map(rows_of).to_iter_dataset(options)

    def iterator(self) -> Any:
        """A grain iterator of (pair indices, verified indices), with `get_state` and `set_state`."""
        return iter(self._dataset)

    def micro(self, pairs: np.ndarray, verified: np.ndarray) -> list[Micro]:
        """The rows of one update as micro-batches: sorted by length when there are several."""
        store, parts = self.store, self.micro_batches
        if parts > 1:
            if len(pairs):
                pairs = pairs[np.argsort(store.lengths_of(pairs), kind="stable")]
            if len(verified):
                sizes = np.array([len(store.verified[i].token_ids) for i in verified])
                verified = verified[np.argsort(sizes, kind="stable")]
        micros = []
        for part in range(parts):
            chosen = pairs[part * self.pair_rows : (part + 1) * self.pair_rows]
            steps = verified[part * self.verified_rows : (part + 1) * self.verified_rows]
            if len(chosen) or len(steps):
                batch = store.pack(chosen, steps, self.pair_rows, self.verified_rows, self.buckets)
                micros.append(Micro(batch, chosen, steps))
        return micros


def reference_batches(store: RowStore, rows: int, buckets: Sequence[int]) -> Iterator[Micro]:
    """All pairs once, sorted by length: the cheapest order for a pass without gradients."""
    order = np.argsort(store.lengths_of(np.arange(len(store.chosen))), kind="stable")
    none = np.zeros(0, int)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        yield Micro(store.pack(part, none, rows, 0, buckets), part, none)


def _round_up(count: int) -> int:
    """Few sizes (at most an eighth of padding), so that another round's count finds the same compiled shape."""
    grain = max(1, (1 << count.bit_length()) // 16)
    return -(-count // grain) * grain


def _from_row(row: Row) -> MaskedRow:
    context, step = row
    mask = np.zeros(len(context) + len(step), bool)
    mask[len(context) :] = True
    return MaskedRow(np.array((*context, *step), np.int32), mask)


def _unpadded(rows: StepRows, kept: np.ndarray | None = None) -> list[MaskedRow]:
    ids, mask, step_mask = (np.asarray(a) for a in (rows.token_ids, rows.mask, rows.step_mask))
    if kept is None:
        kept = np.flatnonzero(step_mask.any(axis=1))
    return [MaskedRow(ids[i][mask[i]].astype(np.int32), step_mask[i][mask[i]]) for i in kept]


def _pack(rows: Sequence[MaskedRow], size: int, width: int) -> StepRows:
    token_ids = np.zeros((size, width), np.int32)
    mask, step_mask = np.zeros((size, width), bool), np.zeros((size, width), bool)
    for i, row in enumerate(rows):
        length = len(row.token_ids)
        token_ids[i, :length], mask[i, :length], step_mask[i, :length] = row.token_ids, True, row.step_mask
    return StepRows(token_ids, mask, step_mask)  # type: ignore[arg-type]  # NumPy, until it is placed
