"""Everything that a run trains on, as rows on the host."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.preferences.packing import MaskedRow, Row, pair_rows
from caspo_jax.types import Pair, PairBatch, StepRows

_NAMED_PAIRS = 16  # pair ids in an error message


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
    pair_group: np.ndarray  # [n] int, equal for pairs of one question
    verified_group: np.ndarray  # [m] int

    @classmethod
    def build(cls, data: Sequence[Pair | PairBatch], verified: Sequence[Row | StepRows] = ()) -> RowStore:
        """Rows of pairs or of packed batches (padding rows are left out), and verified steps beside them.

        Raises:
          UserError: a pair without token ids or with a weight below 0, a step without tokens, or one that starts its row
            (nothing predicts its first token).
        """
        none = np.zeros(0)
        store = cls([], [], none, none, none, [], [], none, none)
        weight, references = [], []
        prompts: list[bytes | None] = []
        for number, item in enumerate(data):
            if isinstance(item, Pair):
                if not (item.prompt_ids and item.chosen_ids and item.rejected_ids):
                    raise UserError(
                        f"pair {item.id!r} has no token ids: tokenize_pairs() makes them from its texts"
                    )
                for side, row in zip((store.chosen, store.rejected), pair_rows(item)):
                    side.append(_from_row(row))
                store.pair_ids.append(item.id)
                prompts.append(np.array(item.prompt_ids, np.int32).tobytes())
                weight.append(item.weight)
                references.append((np.nan, np.nan))
                continue
            kept = np.flatnonzero(np.asarray(item.weight) > 0)
            store.chosen += _unpadded(item.chosen, kept)
            store.rejected += _unpadded(item.rejected, kept)
            store.pair_ids += [f"batch {number} row {row}" for row in kept]
            prompts += [None] * len(kept)
            weight += np.asarray(item.weight)[kept].tolist()
            references += list(
                zip(np.asarray(item.reference_chosen)[kept], np.asarray(item.reference_rejected)[kept])
            )
            if item.verified is not None:
                store.verified += _unpadded(item.verified)
        for group in verified:
            store.verified += _unpadded(group) if isinstance(group, StepRows) else [_from_row(group)]
        store.weight = np.array(weight, np.float32)
        if len(bad := np.flatnonzero(~(np.isfinite(store.weight) & (store.weight >= 0)))):
            raise UserError(f"pair {store.pair_ids[bad[0]]}: its weight must be a finite number, 0 or more")
        columns = np.array(references, np.float32).reshape(-1, 2)
        store.reference_chosen, store.reference_rejected = columns[:, 0].copy(), columns[:, 1].copy()
        store.pair_group, store.verified_group = _groups(store, prompts)
        for name, rows in (
            *zip(store.pair_ids, zip(store.chosen, store.rejected)),
            *((f"verified step {i}", (row,)) for i, row in enumerate(store.verified)),
        ):
            if not all(row.step_mask.any() for row in rows):
                raise UserError(
                    f"{name}: its step has no tokens, so nothing of it can be learned: leave it out"
                )
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
        return _digest(self.weight.tobytes(), self._columns())

    def pairs_fingerprint(self) -> str:
        """SHA-256 of the pairs' rows: all that their reference log-probs depend on."""
        return _digest(b"", (self.chosen, self.rejected))

    def names(self, pairs: np.ndarray) -> str:
        """Ids of the given pairs for an error message, cut off where they are many."""
        named = ", ".join(self.pair_ids[i] for i in pairs[:_NAMED_PAIRS])
        more = len(pairs) - _NAMED_PAIRS
        return f"{named} and {more} more" if more > 0 else named

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


def _digest(start: bytes, columns: Sequence[Sequence[MaskedRow]]) -> str:
    digest = hashlib.sha256(start)
    for rows in columns:
        digest.update(f"{len(rows)};".encode())
        for row in rows:
            digest.update(
                f"{len(row.token_ids)};".encode() + row.token_ids.tobytes() + row.step_mask.tobytes()
            )
    return digest.hexdigest()


def _groups(store: RowStore, prompts: Sequence[bytes | None]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers for the questions of pairs and verified steps; where the prompt is unknown, the context stands for it."""
    known = {prompt for prompt in prompts if prompt is not None}
    lengths = sorted({len(prompt) for prompt in known}, reverse=True)
    numbers: dict[bytes, int] = {}

    def number(row: MaskedRow, prompt: bytes | None) -> int:
        if prompt is None:
            scored = np.flatnonzero(row.step_mask)
            context = row.token_ids[: scored[0] if len(scored) else None].tobytes()
            prompt = next((context[:n] for n in lengths if context[:n] in known), context)
        return numbers.setdefault(prompt, len(numbers))

    pairs = [number(row, prompt) for row, prompt in zip(store.chosen, prompts, strict=True)]
    return np.array(pairs, int), np.array([number(row, None) for row in store.verified], int)


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
