"""Every sequence as a row of its own: micro-batches of few lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from caspo_jax.padding import multiple
from caspo_jax.preferences.packing import length_buckets
from caspo_jax.training.base_plan import Micro, Plan
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import RowStore


class RowPlan(Plan):
    """Every sequence is a row of its own, padded; pairs in random order, micro-batches sorted by length."""

    def __init__(self, store: RowStore, config: TrainConfig, ways: int = 1):
        import grain

        super().__init__(store, config, ways)
        batch = self.batch_size
        self.micro_batches = math.ceil(batch / (config.micro_batch_size or batch))
        self.accumulates = self.micro_batches > 1
        rows = multiple(math.ceil(batch / self.micro_batches), ways)
        self.pair_rows = rows if config.loss.uses_pairs else 0
        self.verified_rows = rows if not config.loss.uses_pairs else 0
        self.buckets = length_buckets(store.longest, config.min_length)

        def shuffled(count: int, seed: int) -> Any:
            return grain.MapDataset.range(count).seed(seed).shuffle()

        self._main = shuffled(self.items, config.seed).repeat(config.epochs).batch(batch)
        self._beside = None
        if config.loss.uses_pairs and config.loss.uses_verified:
            self._beside = shuffled(len(store.verified), config.seed + 1).repeat(config.epochs)
            most = max(len(self._beside_of(step)) for step in range(self.steps))
            self.verified_rows = multiple(_round_up(math.ceil(max(most, 1) / self.micro_batches)), ways)

    @property
    def packing(self) -> dict[str, Any]:
        """See Plan."""
        return {"pack": "rows", "rows": self.pair_rows, "lengths": list(self.buckets)}

    def rows_of(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """See Plan."""
        none = np.zeros(0, int)
        first = np.asarray(self._main[step])
        if not self.config.loss.uses_pairs:
            return none, first
        if self._beside is None:
            return first, none
        return first, np.array([self._beside[i] for i in self._beside_of(step)], int)

    def _beside_of(self, step: int) -> range:
        """Places of the verified steps of an update in the order of all epochs: with their pairs' share of an epoch."""
        every = len(self.store.verified)
        start, end = (at * self.batch_size * every // self.items for at in (step, step + 1))
        end = min(end, every * self.config.epochs)
        most = self.config.verified_per_batch
        return range(start, end if most is None else min(end, start + most))

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

    def unknown_references(self) -> int:
        """See Plan."""
        return int(self._missing().sum())

    def reference_micros(self) -> Iterator[Micro]:
        """All pairs that lack a reference, sorted by length: the cheapest order for a pass without gradients."""
        pairs = np.flatnonzero(self._missing())
        pairs = pairs[np.argsort(self.store.lengths_of(pairs), kind="stable")]
        none = np.zeros(0, int)
        for start in range(0, len(pairs), self.pair_rows):
            part = pairs[start : start + self.pair_rows]
            yield Micro(self.store.pack(part, none, self.pair_rows, 0, self.buckets), part, none)


def _round_up(count: int) -> int:
    """Few sizes (at most an eighth of padding), so that another round's count finds the same compiled shape."""
    grain = max(1, (1 << count.bit_length()) // 16)
    return multiple(count, grain)
