"""The units of a group as one tree, and a tree that exceeds a row cut into pieces that fit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from caspo_jax.preferences.packing import MaskedRow
from caspo_jax.preferences.token_tree import TokenTree, build_tree

_LEFT = 0.5  # of a token: what one that a row is not filled with costs, as other pieces may still fill it


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


# Tokens, how many of them are scored, pairs, verified sequences and members.
Size = tuple[int, int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Units in one tree."""

    units: tuple[Unit, ...]
    known_size: Size | None = None  # where it was counted within a larger tree

    @functools.cached_property
    def tree(self) -> TokenTree:
        """The tree of the units' sequences."""
        return build_tree([row.token_ids for unit in self.units for row in unit.rows])

    @functools.cached_property
    def paths(self) -> list[list[np.ndarray]]:
        """Of each unit, the columns of its sequences."""
        columns = iter(self.tree.columns)
        return [[next(columns) for _ in unit.rows] for unit in self.units]

    @functools.cached_property
    def size(self) -> Size:
        """What it takes of a row."""
        if self.known_size is not None:
            return self.known_size
        count = _Count(len(self.tree))
        for unit, paths in zip(self.units, self.paths, strict=True):
            count.add(unit, paths)
        return count.size


def group_trees(units: Sequence[Unit]) -> list[Piece]:
    """One tree a group, however large."""
    groups: dict[int, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    return [Piece(tuple(group)) for group in groups.values()]


def cut_tree(whole: Piece, shape: RowShape) -> list[Piece]:
    """The tree in pieces that fit into a row.

    Units stand in the tree's order, and a piece takes as many as fill a row, or some less where the next one then shares
    less with it: what two pieces share, both compute.

    Raises:
      ValueError: a unit that does not fit into a row alone.
    """
    if shape.holds(*whole.size):
        return [whole]
    order = sorted(range(len(whole.units)), key=lambda i: int(whole.paths[i][0][-1]))
    pieces: list[Piece] = []
    start = 0
    while start < len(order):
        stop, size = _first_cut(whole, order[start:], shape)
        pieces.append(Piece(tuple(whole.units[i] for i in order[start : start + stop]), size))
        start += stop
    return pieces


def _first_cut(whole: Piece, order: Sequence[int], shape: RowShape) -> tuple[int, Size]:
    """How many of the units make the first piece, and its size."""
    count = _Count(len(whole.tree))
    best: tuple[float, int, Size] = (np.inf, 0, count.size)
    for place, i in enumerate(order):
        if place > 0:
            wasted = count.shared(whole.paths[i]) + _LEFT * (shape.length - count.size[0])
            best = min(best, (wasted, place, count.size))
        count.add(whole.units[i], whole.paths[i])
        if not shape.holds(*count.size):
            break
    else:
        return len(order), count.size
    if place == 0:
        tokens, scored, *_ = count.size
        raise ValueError(
            f"{tokens} tokens, {scored} of them scored, do not fit into a row of {shape.length} with {shape.slots} scored"
        )
    return best[1:]


class _Count:
    """What units of a tree take of a row, added one by one."""

    def __init__(self, columns: int) -> None:
        self._seen, self._scored = np.zeros(columns, bool), np.zeros(columns, bool)
        self.size: Size = (0, 0, 0, 0, 0)

    def shared(self, paths: Sequence[np.ndarray]) -> int:
        """Tokens of a unit's sequences that are there already."""
        return max(int(np.count_nonzero(self._seen[path])) for path in paths)

    def add(self, unit: Unit, paths: Sequence[np.ndarray]) -> None:
        """Counts a unit, of whose sequences the paths are."""
        tokens, scored, pairs, verified, members = self.size
        for row, path in zip(unit.rows, paths, strict=True):
            steps = path[row.step_mask]
            tokens += len(path) - int(np.count_nonzero(self._seen[path]))
            scored += len(steps) - int(np.count_nonzero(self._scored[steps]))
            members += len(steps)
            self._seen[path] = self._scored[steps] = True
        self.size = (tokens, scored, pairs + unit.is_pair, verified + (not unit.is_pair), members)
