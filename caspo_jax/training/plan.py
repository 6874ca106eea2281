"""Which rows each update reads, in a seeded order, as micro-batches of few shapes."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.preferences.packing import length_buckets
from caspo_jax.preferences.token_tree import common_prefix
from caspo_jax.preferences.tree_packing import Piece, RowShape, Unit, pack_trees, plan_rows
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import RowStore
from caspo_jax.types import PairBatch, TreeBatch

_SAMPLED = 16  # updates that the shape of rows is chosen by
_GRAIN = 64  # tokens between the lengths that are tried
_WORTH = 0.93  # of the positions: what a shorter row must save


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
                f"loss={config.loss.loss} with nll_on={config.loss.nll_on} needs verified steps: there are none"
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

    def iterator(self) -> Any:
        """A grain iterator of (pair indices, verified indices), with `get_state` and `set_state`."""
        import grain

        # One worker and no read-ahead: an iterator's state is then exactly the updates handed out.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return iter(grain.MapDataset.range(self.steps).map(self.rows_of).to_iter_dataset(options))

    def _missing(self) -> np.ndarray:
        """[n] which pairs lack a reference."""
        return np.isnan(self.store.reference_chosen) | np.isnan(self.store.reference_rejected)


def make_plan(store: RowStore, config: TrainConfig, ways: int = 1) -> Plan:
    """The plan of `config.pack`; a micro-batch's rows are a multiple of `ways`, which the mesh splits them into.

    Raises:
      UserError: nothing to train on.
    """
    return TreePlan(store, config, ways) if config.pack == "trees" else RowPlan(store, config, ways)


class RowPlan(Plan):
    """Every sequence is a row of its own, padded; pairs in random order, micro-batches sorted by length."""

    def __init__(self, store: RowStore, config: TrainConfig, ways: int = 1):
        import grain

        super().__init__(store, config, ways)
        batch = self.batch_size
        self.micro_batches = math.ceil(batch / (config.micro_batch_size or batch))
        self.accumulates = self.micro_batches > 1
        rows = _multiple(math.ceil(batch / self.micro_batches), ways)
        self.pair_rows = rows if config.loss.uses_pairs else 0
        self.verified_rows = rows if not config.loss.uses_pairs else 0
        self.buckets = length_buckets(store.longest, config.min_length)

        def shuffled(count: int, seed: int) -> Any:
            return grain.MapDataset.range(count).seed(seed).shuffle()

        self._main = shuffled(self.items, config.seed).repeat(config.epochs).batch(batch)
        self._beside = None
        if config.loss.uses_pairs and config.loss.uses_verified:
            available = len(store.verified)
            wanted = config.verified_per_batch or math.ceil(available * batch / self.items)
            most = math.ceil(min(wanted, available) / self.micro_batches)
            self.verified_rows = _multiple(_round_up(most), ways)
            beside = shuffled(available, config.seed + 1).repeat()
            self._beside = beside.batch(min(wanted, available))

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
        return first, none if self._beside is None else np.asarray(self._beside[step])

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

    def reference_micros(self) -> Iterator[Micro]:
        """All pairs that lack a reference, sorted by length: the cheapest order for a pass without gradients."""
        pairs = np.flatnonzero(self._missing())
        pairs = pairs[np.argsort(self.store.lengths_of(pairs), kind="stable")]
        none = np.zeros(0, int)
        for start in range(0, len(pairs), self.pair_rows):
            part = pairs[start : start + self.pair_rows]
            yield Micro(self.store.pack(part, none, self.pair_rows, 0, self.buckets), part, none)


class TreePlan(Plan):
    """Questions in random order, each with all its pairs and verified steps as one tree: what they share is read once."""

    def __init__(self, store: RowStore, config: TrainConfig, ways: int = 1):
        super().__init__(store, config, ways)
        self._updates = self._schedule()
        self.shape, rows = self._shape_of_rows()
        self.rows = _multiple(min(config.pack_rows, rows), ways)
        self.accumulates = rows > self.rows

    def _shape_of_rows(self) -> tuple[RowShape, int]:
        """The shape of all rows, and how many an update needs; from a few updates, as they fall."""
        config, loss = self.config, self.config.loss
        longest = max(_unit_tokens(unit) for unit in self._units(*self._everything()))
        few = np.unique(np.linspace(0, self.steps - 1, _SAMPLED).astype(int))
        updates = [self._units(*self._updates[step]) for step in few]
        most = max(_shared_tokens(units) for units in updates)
        limit = length_buckets(max(longest, min(config.pack_length, most)), config.min_length)[-1]

        def planned(length: int) -> tuple[RowShape, list[int]]:
            shape = RowShape.of(length, pairs=loss.uses_pairs, verified=loss.uses_verified)
            return shape, [len(plan_rows(units, shape)) for units in updates]

        shape, rows = planned(limit)
        # Rows of 512 hold one tree of 448: a shorter row is worth another compiled shape where it saves enough.
        for length in range(limit - _GRAIN, max(longest, limit // 2) - 1, -_GRAIN):
            shorter, more = planned(length)
            if sum(more) * length < _WORTH * sum(rows) * shape.length:
                shape, rows = shorter, more
        return shape, max(rows)

    @property
    def packing(self) -> dict[str, Any]:
        """See Plan."""
        return {"pack": "trees", "rows": self.rows, "lengths": [self.shape.length]}

    def _everything(self) -> tuple[np.ndarray, np.ndarray]:
        loss = self.config.loss
        return (
            np.arange(len(self.store.chosen) if loss.uses_pairs else 0),
            np.arange(len(self.store.verified) if loss.uses_verified else 0),
        )

    def _units(self, pairs: Sequence[int] | np.ndarray, verified: Sequence[int] | np.ndarray) -> list[Unit]:
        store, sides = self.store, 2 if self.config.loss.contrastive else 1
        units = []
        for i in pairs:
            both = (store.chosen[i], store.rejected[i])
            units.append(Unit(both[:sides], int(i), int(store.pair_group[i]), True))
        for i in verified:
            units.append(Unit((store.verified[i],), int(i), int(store.verified_group[i]), False))
        return units

    def _schedule(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The pairs and verified steps of every update."""
        config, store = self.config, self.store
        pairs, verified = self._everything()
        main_group, beside_group = store.pair_group[pairs], store.verified_group[verified]
        if not config.loss.uses_pairs:
            main_group, beside_group = beside_group, np.zeros(0, int)
        main: list[np.ndarray] = []
        beside: list[list[int]] = [[] for _ in range(self.steps)]
        groups = np.union1d(main_group, beside_group)
        for epoch in range(config.epochs):
            random = np.random.default_rng([config.seed, epoch])
            place = np.zeros(int(groups.max()) + 1, int)
            place[random.permutation(groups)] = np.arange(len(groups))
            order = np.argsort(place[main_group], kind="stable")
            main.append(order)
            # A question's verified steps go where its first pair goes, or would go if it had one.
            before = np.searchsorted(place[main_group][order], place[beside_group])
            for i, at in enumerate(before):
                update = (epoch * self.items + min(int(at), self.items - 1)) // self.batch_size
                if update < self.steps:
                    beside[update].append(i)
        everything = np.concatenate(main)
        none = np.zeros(0, int)
        updates = []
        for step in range(self.steps):
            first = everything[step * self.batch_size : (step + 1) * self.batch_size]
            if not config.loss.uses_pairs:
                updates.append((none, first))
                continue
            steps = np.array(beside[step], int)
            most = config.verified_per_batch
            if most is not None and len(steps) > most:
                steps = np.random.default_rng([config.seed, config.epochs, step]).permutation(steps)[:most]
            updates.append((first, steps))
        return updates

    def rows_of(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """See Plan."""
        return self._updates[step]

    def micro(self, pairs: np.ndarray, verified: np.ndarray) -> list[Micro]:
        """The trees of one update, `rows` packed rows at a time."""
        store = self.store
        planned = plan_rows(self._units(pairs, verified), self.shape)
        micros = []
        for start in range(0, len(planned), self.rows):
            packed = pack_trees(
                planned[start : start + self.rows],
                self.rows,
                self.shape,
                store.weight,
                store.reference_chosen,
                store.reference_rejected,
            )
            micros.append(Micro(packed.batch, packed.pairs, packed.verified))
        return micros

    def reference_micros(self) -> Iterator[Micro]:
        """The updates' own micro-batches, so that the reference runs the same program over the same rows."""
        wanted = self._missing()
        for pairs, verified in self._updates:
            if wanted[pairs].any():
                for micro in self.micro(pairs, verified):
                    found = micro.pairs[micro.pairs >= 0]
                    if wanted[found].any():
                        wanted[found] = False
                        yield micro


def _unit_tokens(unit: Unit) -> int:
    """Tokens of a unit's own tree."""
    if len(unit.rows) == 1:
        return len(unit.rows[0].token_ids)
    chosen, rejected = (row.token_ids for row in unit.rows)
    return len(chosen) + len(rejected) - common_prefix(chosen, rejected)


def _shared_tokens(units: Sequence[Unit]) -> int:
    """Tokens of the trees of all groups."""
    groups: dict[int, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    return sum(Piece.of(group).size[0] for group in groups.values())


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


def _round_up(count: int) -> int:
    """Few sizes (at most an eighth of padding), so that another round's count finds the same compiled shape."""
    grain = max(1, (1 << count.bit_length()) // 16)
    return -(-count // grain) * grain
