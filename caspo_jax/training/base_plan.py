"""Which rows each update reads, in a seeded order, as micro-batches of few shapes."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import RowStore
from caspo_jax.types import PairBatch, TreeBatch


class Micro(NamedTuple):
    """A micro-batch and what its rows or items are, in the order of its weights; -1 is padding."""

    batch: PairBatch | TreeBatch  # NumPy arrays
    pairs: np.ndarray  # indices into RowStore.chosen; may end before the batch does
    verified: np.ndarray  # indices into RowStore.verified


class Plan(abc.ABC):
    """Which rows each update reads: a pure function of the seed, iterated (and checkpointed) by grain.

    Pairs are shuffled anew every epoch and cut into batches across epochs' borders, so that only the very last
    batch can be short. Verified steps go beside them once an epoch, or alone for `rft`.
    """

    def __init__(self, store: RowStore, config: TrainConfig, ways: int = 1):
        self.store, self.config, self.ways = store, config, ways
        items, noun = len(store.chosen), "pairs"
        if not config.loss.uses_pairs:
            items, noun = len(store.verified), "verified steps"
        if items == 0:
            raise UserError(f"there are no {noun} to train on (loss={config.loss.loss})")
        if config.loss.uses_verified and not store.verified:
            raise UserError(
                f"loss={config.loss.loss} with nll_on={config.loss.nll_on} needs verified steps, and no step is verified "
                "together with all before it: annotate with another verifier, or read the pairs alone by nll_on=chosen"
            )
        self.items = items
        self.batch_size = min(config.batch_size, items)
        steps = math.ceil(items * config.epochs / self.batch_size)
        self.steps = steps if config.max_steps is None else min(steps, config.max_steps)
        self.epoch_steps = items / self.batch_size

    accumulates: bool  # whether updates have several micro-batches, as far as was looked

    @property
    @abc.abstractmethod
    def packing(self) -> dict[str, Any]:
        """The shape of the rows that references are computed in: with it their last bits change."""

    @abc.abstractmethod
    def rows_of(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs and verified steps of an update (0, 1, ...), as indices into the store."""

    @abc.abstractmethod
    def micro(self, pairs: np.ndarray, verified: np.ndarray) -> list[Micro]:
        """The rows of one update as micro-batches."""

    @abc.abstractmethod
    def reference_micros(self) -> Iterator[Micro]:
        """Micro-batches that hold every pair which the run reads and which has no reference log-probs yet."""

    @abc.abstractmethod
    def unknown_references(self) -> int:
        """How many pairs the run reads that have no reference log-probs yet."""

    def iterator(self) -> Any:
        """A grain iterator of (pair indices, verified indices), with `get_state` and `set_state`."""
        import grain

        # One worker and no read-ahead: an iterator's state is then exactly the updates handed out.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return iter(grain.MapDataset.range(self.steps).map(self.rows_of).to_iter_dataset(options))

    def _missing(self) -> np.ndarray:
        """[n] which pairs lack a reference."""
        return np.isnan(self.store.reference_chosen) | np.isnan(self.store.reference_rejected)
