"""Packed trees: what the sequences of a question share is read once, and a run's rows have one shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.padding import multiple
from caspo_jax.preferences.packing import length_buckets
from caspo_jax.preferences.token_tree import common_prefix
from caspo_jax.preferences.tree_packing import pack_trees, plan_rows, plan_trees
from caspo_jax.preferences.tree_pieces import Piece, RowShape, Unit, group_trees
from caspo_jax.training.base_plan import Micro, Plan
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.data import RowStore

_SAMPLED = 16  # updates that the shape of rows is chosen by
_GRAIN = 64  # tokens: all lengths are multiples of it
_WORTH = 0.95  # of the cost: what a shorter row, or a smaller pass, must save
_PASS = 256  # tokens whose products take as long as adding up a pass's gradients: 2 x FLOP/s over bytes/s


class _Layout(NamedTuple):
    """One choice of rows, and what it makes of the updates that were looked at."""

    cost: int  # of all of them, in tokens
    length: int
    rows: int  # a pass
    plan: list[list[list[Piece]]]  # of each update, its rows' pieces


def slots_of(length: int, scored: int) -> int:
    """How many slots rows of `length` tokens have, of which at most so many are scored.

    The head takes the slots in equal chunks: where rows never fill theirs, the last chunk is padding.
    """
    return min(length, multiple(scored, _GRAIN))


class TreePlan(Plan):
    """Questions in random order, each with all its pairs and verified steps as one tree: what they share is read once."""

    def __init__(self, store: RowStore, config: TrainConfig, ways: int = 1):
        super().__init__(store, config, ways)
        self._updates = self._schedule(config.seed, config.epochs, self.steps)
        self.shape, self.rows, needed = self._shape_of_rows()
        self.accumulates = needed > self.rows

    def _shape_of_rows(self) -> tuple[RowShape, int, int]:
        """The shape of all rows, how many a pass has and how many an update needs, whatever the seed.

        References stay known to a run with another seed only if both have the same shapes.
        """
        config, loss = self.config, self.config.loss
        kinds = {"pairs": loss.uses_pairs, "verified": loss.uses_verified}
        everything = self._units(*self._everything())
        longest = max(_unit_tokens(unit) for unit in everything)
        epoch = self._schedule(0, 1, math.ceil(self.items / self.batch_size))
        few = np.unique(np.linspace(0, len(epoch) - 1, _SAMPLED).astype(int))
        updates = [group_trees(self._units(*epoch[step])) for step in few]
        most = max(sum(tree.size[0] for tree in trees) for trees in updates)
        limit = length_buckets(max(longest, min(config.pack_length, most)), config.min_length)[-1]
        grain = max(_GRAIN, multiple(limit // 16, _GRAIN))
        lengths = {*range(limit, max(longest, limit // 2) - 1, -grain)}
        if limit // 2 < (shortest := multiple(longest, _GRAIN)) < limit:
            lengths.add(shortest)

        found: _Layout | None = None
        for length in sorted(lengths, reverse=True):
            shape = RowShape.of(length, **kinds)
            plan = [plan_trees(trees, shape) for trees in updates]
            for rows in self._rows_a_pass(length, max(map(len, plan))):
                passes = sum(math.ceil(len(rows_needed) / rows) for rows_needed in plan)
                cost = passes * (rows * length + _PASS)
                # Rows of 512 hold one tree of 448, and passes of 4 rows make 8 of 5: only what saves enough is worth
                # shorter rows or smaller passes.
                if found is None or cost < _WORTH * found.cost:
                    found = _Layout(cost, length, rows, plan)
        assert found is not None
        scored = max(sum(piece.size[1] for piece in row) for rows in found.plan for row in rows)
        slots = slots_of(found.length, max(scored, max(map(_unit_scored, everything))))
        shape = RowShape.of(found.length, slots, **kinds)
        return shape, found.rows, max(map(len, found.plan))

    def _rows_a_pass(self, length: int, needed: int) -> list[int]:
        """Numbers of rows that a pass may have, where updates need up to so many of this length: most first.

        Where the longest pair makes rows longer than was asked for there are fewer, and a pass has as many tokens.
        """
        config, ways = self.config, self.ways
        asked = config.pack_rows * config.pack_length // max(length, config.pack_length)
        most = min(max(ways, asked // ways * ways), multiple(needed, ways))
        return list(range(most, multiple((most + 1) // 2, ways) - 1, -ways))

    @property
    def packing(self) -> dict[str, Any]:
        """See Plan."""
        return {"pack": "trees", "rows": self.rows, "lengths": [self.shape.length], "slots": self.shape.slots}

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

    def _schedule(self, seed: int, epochs: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The pairs and verified steps of the first `count` updates of so many epochs."""
        config, store = self.config, self.store
        pairs, verified = self._everything()
        main_group, beside_group = store.pair_group[pairs], store.verified_group[verified]
        if not config.loss.uses_pairs:
            main_group, beside_group = beside_group, np.zeros(0, int)
        main: list[np.ndarray] = []
        beside: list[list[int]] = [[] for _ in range(count)]
        groups = np.union1d(main_group, beside_group)
        for epoch in range(epochs):
            random = np.random.default_rng([seed, epoch])
            place = np.zeros(int(groups.max()) + 1, int)
            place[random.permutation(groups)] = np.arange(len(groups))
            order = np.argsort(place[main_group], kind="stable")
            main.append(order)
            # A question's verified steps go where its first pair goes, or would go if it had one.
            before = np.searchsorted(place[main_group][order], place[beside_group])
            for i, at in enumerate(before):
                update = (epoch * self.items + min(int(at), self.items - 1)) // self.batch_size
                if update < count:
                    beside[update].append(i)
        everything = np.concatenate(main)
        none = np.zeros(0, int)
        updates = []
        for step in range(count):
            first = everything[step * self.batch_size : (step + 1) * self.batch_size]
            if not config.loss.uses_pairs:
                updates.append((none, first))
                continue
            steps = np.array(beside[step], int)
            most = config.verified_per_batch
            if most is not None and len(steps) > most:
                steps = np.random.default_rng([seed, epochs, step]).permutation(steps)[:most]
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

    def unknown_references(self) -> int:
        """See Plan."""
        read = np.zeros(len(self.store.chosen), bool)
        for pairs, _ in self._updates:
            read[pairs] = True
        return int((read & self._missing()).sum())

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


def _unit_scored(unit: Unit) -> int:
    """Scored tokens of a unit's rows; its own tree has no more."""
    return sum(int(row.step_mask.sum()) for row in unit.rows)
