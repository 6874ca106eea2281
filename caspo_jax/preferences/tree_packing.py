"""Pairs and verified steps to `TreeBatch` rows: shared beginnings once, trees side by side, nothing truncated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from caspo_jax.preferences.token_tree import TokenTree
from caspo_jax.preferences.tree_pieces import Piece, RowShape, Unit, cut_tree, group_trees
from caspo_jax.types import TreeBatch


@dataclasses.dataclass(frozen=True)
class PackedTrees:
    """A batch and the units that its items are."""

    batch: TreeBatch  # NumPy arrays
    pairs: np.ndarray  # [R * P] Unit.index, -1 in padding
    verified: np.ndarray  # [R * V]


def plan_rows(units: Sequence[Unit], shape: RowShape) -> list[list[Piece]]:
    """`plan_trees` of the units' groups."""
    return plan_trees(group_trees(units), shape)


def plan_trees(trees: Sequence[Piece], shape: RowShape) -> list[list[Piece]]:
    """Which trees share a row: those too large for one are cut, then the largest pieces are placed first.

    Raises:
      ValueError: a unit that does not fit into a row alone.
    """
    pieces = [piece for tree in trees for piece in cut_tree(tree, shape)]
    rows: list[list[Piece]] = []
    used: list[np.ndarray] = []
    for i in sorted(range(len(pieces)), key=lambda i: -pieces[i].size[0]):
        size = np.array(pieces[i].size)
        row = next((r for r, so_far in enumerate(used) if shape.holds(*(so_far + size))), None)
        if row is None:
            row = len(rows)
            rows.append([])
            used.append(np.zeros(5, np.int64))
        rows[row].append(pieces[i])
        used[row] += size
    return rows


def pack_trees(
    rows: Sequence[Sequence[Piece]],
    size: int,
    shape: RowShape,
    weight: np.ndarray,
    reference_chosen: np.ndarray,
    reference_rejected: np.ndarray,
) -> PackedTrees:
    """Planned rows as one batch of `size` rows.

    Args:
      rows: from `plan_rows`, at most `size`.
      size: R; the rest are empty rows.
      shape: the shape they were planned for.
      weight: [n] by pair index.
      reference_chosen: [n] by pair index; may be NaN where it is not known yet.
      reference_rejected: [n].
    """
    length, items = shape.length, 2 * shape.pairs + shape.verified
    arrays: dict[str, Any] = {
        name: np.zeros((size, length), np.int32) for name in ("token_ids", "positions", "subtree_end")
    }
    for name in ("target", "predictor"):
        arrays[name] = np.zeros((size, shape.slots), np.int32)
    arrays["target_mask"] = np.zeros((size, shape.slots), bool)
    arrays["member_slot"] = np.zeros((size, shape.members), np.int32)
    arrays["member_item"] = np.full((size, shape.members), items, np.int32)
    arrays["verified"] = np.zeros((size, shape.verified), bool)
    for name in ("weight", "reference_chosen", "reference_rejected"):
        arrays[name] = np.zeros((size, shape.pairs), np.float32)
    pairs = np.full((size, shape.pairs), -1)
    verified = np.full((size, shape.verified), -1)
    for r, pieces in enumerate(rows):
        builder = _RowBuilder(length)
        for piece in pieces:
            builder.add(piece, shape)
        for name, values in builder.arrays().items():
            arrays[name][r, : len(values)] = values
        found = np.array(builder.pairs, int)
        pairs[r, : len(found)] = found
        verified[r, : len(builder.verified)] = builder.verified
        arrays["verified"][r, : len(builder.verified)] = True
        for name, values in (
            ("weight", weight),
            ("reference_chosen", reference_chosen),
            ("reference_rejected", reference_rejected),
        ):
            arrays[name][r, : len(found)] = values[found]
    return PackedTrees(TreeBatch(**arrays), pairs.reshape(-1), verified.reshape(-1))


class _RowBuilder:
    """The trees of one row, side by side."""

    def __init__(self, length: int) -> None:
        self.trees: list[TokenTree] = []
        self.size = 0
        self.predictor_of = np.full(length, -1)  # by column; -1: not scored
        self.members: list[tuple[np.ndarray, int]] = []  # (columns, item)
        self.pairs: list[int] = []
        self.verified: list[int] = []

    def add(self, piece: Piece, shape: RowShape) -> None:
        """Append a tree and its items."""
        for unit, paths in zip(piece.units, piece.paths, strict=True):
            if unit.is_pair:
                items = [len(self.pairs), shape.pairs + len(self.pairs)]
                self.pairs.append(unit.index)
            else:
                items = [2 * shape.pairs + len(self.verified)]
                self.verified.append(unit.index)
            for row, path, item in zip(unit.rows, paths, items):
                path = path + self.size
                scored = np.flatnonzero(row.step_mask)
                self.predictor_of[path[scored]] = path[scored - 1]
                self.members.append((path[scored], item))
        self.trees.append(piece.tree)
        self.size += len(piece.tree)

    def arrays(self) -> dict[str, np.ndarray]:
        """The row's arrays, unpadded."""
        starts = np.cumsum([0, *(len(tree) for tree in self.trees)])
        token_ids = np.concatenate([tree.token_ids for tree in self.trees])
        scored = np.flatnonzero(self.predictor_of >= 0)
        slot_of = np.zeros(len(self.predictor_of), np.int32)
        slot_of[scored] = np.arange(len(scored))
        return {
            "token_ids": token_ids,
            "positions": np.concatenate([tree.depth for tree in self.trees]),
            "subtree_end": np.concatenate(
                [tree.subtree_end + start for tree, start in zip(self.trees, starts)]
            ),
            "target": token_ids[scored],
            "predictor": self.predictor_of[scored],
            "target_mask": np.ones(len(scored), bool),
            "member_slot": np.concatenate([slot_of[columns] for columns, _ in self.members]),
            "member_item": np.concatenate([np.full(len(columns), item) for columns, item in self.members]),
        }
