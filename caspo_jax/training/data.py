"""Everything that a run trains on, as rows on the host."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.checks import of_kind
from caspo_jax.errors import UserError
from caspo_jax.preferences.packing import MaskedRow, Row, masked_row, pack_masked, pair_rows
from caspo_jax.types import Pair, PairBatch, StepRows

_NAMED_PAIRS = 16  # pair ids in an error message


class _PairRows(NamedTuple):
    """A pair before the store is made of all of them."""

    name: str
    chosen: MaskedRow
    rejected: MaskedRow
    weight: float
    reference: tuple[
        float, float
    ]  # log-probs of the chosen and the rejected step, NaN where not computed yet
    prompt: bytes | None  # int32 token ids; None where only the context is known


@dataclasses.dataclass(frozen=True)
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
          UserError: something else than a pair or a batch, a pair without token ids or with a weight below 0, a step
            without tokens, or one that starts its row (nothing predicts its first token).
        """
        pairs: list[_PairRows] = []
        steps: list[MaskedRow] = []
        for number, item in enumerate(data):
            if isinstance(item, Pair):
                pairs.append(_from_pair(item))
                continue
            of_kind(
                item,
                (Pair, PairBatch),
                "train",
                f"data[{number}]",
                "read_trl and load_pairs read files of them",
            )
            pairs += _from_batch(item, f"batch {number}")
            if item.verified is not None:
                steps += _unpadded(item.verified)
        for group in verified:
            steps += _unpadded(group) if isinstance(group, StepRows) else [masked_row(group)]
        weight = np.array([pair.weight for pair in pairs], np.float32)
        _check(pairs, weight, steps)
        references = np.array([pair.reference for pair in pairs], np.float32).reshape(-1, 2)
        pair_group, verified_group = _groups(pairs, steps)
        return cls(
            chosen=[pair.chosen for pair in pairs],
            rejected=[pair.rejected for pair in pairs],
            weight=weight,
            reference_chosen=references[:, 0].copy(),
            reference_rejected=references[:, 1].copy(),
            pair_ids=[pair.name for pair in pairs],
            verified=steps,
            pair_group=pair_group,
            verified_group=verified_group,
        )

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
        chosen, rejected, steps = (pack_masked(rows, width, 0, count) for rows, count in groups)

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


def _from_pair(pair: Pair) -> _PairRows:
    if not (pair.prompt_ids and pair.chosen_ids and pair.rejected_ids):
        raise UserError(f"pair {pair.id!r} has no token ids: tokenize_pairs() makes them from its texts")
    chosen, rejected = map(masked_row, pair_rows(pair))
    prompt = np.array(pair.prompt_ids, np.int32).tobytes()
    return _PairRows(pair.id, chosen, rejected, pair.weight, (np.nan, np.nan), prompt)


def _from_batch(batch: PairBatch, name: str) -> list[_PairRows]:
    """The rows of a packed batch that are no padding."""
    weight, *references = (
        np.asarray(x) for x in (batch.weight, batch.reference_chosen, batch.reference_rejected)
    )
    kept = np.flatnonzero(weight != 0)  # one that is no weight is refused with the pairs'
    rows = zip(kept, _unpadded(batch.chosen, kept), _unpadded(batch.rejected, kept), strict=True)
    return [
        _PairRows(f"{name} row {i}", chosen, rejected, weight[i], (references[0][i], references[1][i]), None)
        for i, chosen, rejected in rows
    ]


def _check(pairs: Sequence[_PairRows], weight: np.ndarray, verified: Sequence[MaskedRow]) -> None:
    """Refuses weights that are no weights, and steps of which nothing can be learned."""
    if len(bad := np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))):
        raise UserError(f"pair {pairs[bad[0]].name}: its weight must be a finite number, 0 or more")
    rows = [(pair.name, row) for pair in pairs for row in (pair.chosen, pair.rejected)]
    rows += [(f"verified step {i}", row) for i, row in enumerate(verified)]
    for name, row in rows:
        if not row.step_mask.any():
            raise UserError(f"{name}: its step has no tokens, so nothing of it can be learned: leave it out")
        if row.step_mask[0]:
            raise UserError(f"{name}: its step starts the row, so nothing predicts it: give it a prompt")


def _groups(pairs: Sequence[_PairRows], verified: Sequence[MaskedRow]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers for the questions of pairs and verified steps; where the prompt is unknown, the context stands for it."""
    known = {pair.prompt for pair in pairs if pair.prompt is not None}
    lengths = sorted({len(prompt) for prompt in known}, reverse=True)
    numbers: dict[bytes, int] = {}

    def number(row: MaskedRow, prompt: bytes | None) -> int:
        if prompt is None:
            context = row.token_ids[: np.argmax(row.step_mask)].tobytes()
            prompt = next((context[:n] for n in lengths if context[:n] in known), context)
        return numbers.setdefault(prompt, len(numbers))

    of_pairs = [number(pair.chosen, pair.prompt) for pair in pairs]
    return np.array(of_pairs, int), np.array([number(row, None) for row in verified], int)


def _unpadded(rows: StepRows, kept: np.ndarray | None = None) -> list[MaskedRow]:
    ids, mask, step_mask = (np.asarray(a) for a in (rows.token_ids, rows.mask, rows.step_mask))
    if kept is None:
        kept = np.flatnonzero(step_mask.any(axis=1))
    return [MaskedRow(ids[i][mask[i]].astype(np.int32), step_mask[i][mask[i]]) for i in kept]
