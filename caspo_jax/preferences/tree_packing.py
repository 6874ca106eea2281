"""Pairs and verified steps to `TreeBatch` rows: shared beginnings once, trees side by side, nothing truncated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from caspo_jax.preferences.packing import MaskedRow
from caspo_jax.preferences.token_tree import TokenTree, build_tree
from caspo_jax.types import TreeBatch


@dataclasses.dataclass(frozen=True)
class Unit:
    """What must share a row: the chosen and the rejected sequence of a pair, or one verified sequence."""

    rows: tuple[MaskedRow, ...]  # of a pair: chosen, rejected, or chosen alone
    index: int  # of the pair or the verified step, in the caller's order
    group: int  # units of one group (of one question) go into one tree
    is_pair: bool


@dataclasses.dataclass(frozen=True)
class RowShape:
    """What fits into a row. Equal lengths and slots share their compiled programs: all else follows from the length."""

    length: int  # T tokens
    slots: int  # S of them scored
    pairs: int  # P
    verified: int  # V
    members: int  # M

    @classmethod
    def of(cls, length: int, slots: int | None = None, *, pairs: bool, verified: bool) -> RowShape:
        """The shape of rows of `length` tokens, `slots` of them scored (default: all), with pairs, verified steps or both."""
        count = max(8, length // 16)
        slots = length if slots is None else slots
        return cls(length, slots, count if pairs else 0, count if verified else 0, 4 * length)

    def holds(self, tokens: int, scored: int, pairs: int, verified: int, members: int) -> bool:
        """Whether so much fits."""
        return (
            tokens <= self.length
            and scored <= self.slots
            and pairs <= self.pairs
            and verified <= self.verified
            and members <= self.members
        )


@dataclasses.dataclass(frozen=True)
class Piece:
    """Units in one tree."""

    units: tuple[Unit, ...]
    tree: TokenTree

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Piece:
        """The tree of the units' sequences."""
        return cls(tuple(units), build_tree([row.token_ids for unit in units for row in unit.rows]))

    @functools.cached_property
    def size(self) -> tuple[int, int, int, int, int]:
        """Tokens, how many of them are scored, pairs, verified sequences and members."""
        pairs = sum(unit.is_pair for unit in self.units)
        masks = [row.step_mask for unit in self.units for row in unit.rows]
        scored = np.zeros(len(self.tree), bool)
        for mask, path in zip(masks, self.tree.columns, strict=True):
            scored[path[mask]] = True
        members = sum(int(mask.sum()) for mask in masks)
        return len(self.tree), int(scored.sum()), pairs, len(self.units) - pairs, members


@dataclasses.dataclass(frozen=True)
class PackedTrees:
    """A batch and the units that its items are."""

    batch: TreeBatch  # NumPy arrays
    pairs: np.ndarray  # [R * P] Unit.index, -1 in padding
    verified: np.ndarray  # [R * V]


def plan_rows(units: Sequence[Unit], shape: RowShape) -> list[list[Piece]]:
    """Which trees share a row: groups too large for one are halved, then the largest trees are placed first.

    Raises:
      ValueError: a unit that does not fit into a row alone.
    """
    groups: dict[int, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    pieces = [piece for group in groups.values() for piece in _split(group, shape)]
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


def _split(units: Sequence[Unit], shape: RowShape) -> list[Piece]:
    piece = Piece.of(units)
    if shape.holds(*piece.size):
        return [piece]
    if len(units) == 1:
        tokens, scored, *_ = piece.size
        raise ValueError(
            f"{tokens} tokens, {scored} of them scored, do not fit into a row of {shape.length} with {shape.slots} scored"
        )
    # In the tree's order, so that each half keeps what its own sequences share.
    paths = iter(piece.tree.columns)
    ends = [[int(next(paths)[-1]) for _ in unit.rows] for unit in units]  # of all: a pair has two paths
    ordered = [units[i] for i in sorted(range(len(units)), key=lambda i: ends[i][0])]
    middle = len(ordered) // 2
    return _split(ordered[:middle], shape) + _split(ordered[middle:], shape)


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
        paths = iter(piece.tree.columns)
        for unit in piece.units:
            if unit.is_pair:
                items = [len(self.pairs), shape.pairs + len(self.pairs)]
                self.pairs.append(unit.index)
            else:
                items = [2 * shape.pairs + len(self.verified)]
                self.verified.append(unit.index)
            for row, item in zip(unit.rows, items):
                path = next(paths) + self.size
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
