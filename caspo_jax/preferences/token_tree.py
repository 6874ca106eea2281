"""Token sequences that share beginnings, laid out as one tree: every distinct token once.

Columns stand in depth-first preorder, so that the descendants of a column are the columns right after it. One number
a column, where its subtree ends, then says all that attention needs: key k is an ancestor of query q (or q itself)
exactly if k <= q < subtree_end[k]. Trees laid side by side cannot see each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class TokenTree:
    """The tree of N sequences, with T distinct tokens."""

    token_ids: np.ndarray  # [T] int32, preorder
    depth: np.ndarray  # [T] int32, tokens before it on its path: its position
    subtree_end: np.ndarray  # [T] int32, one past the last descendant's column
    columns: tuple[np.ndarray, ...]  # of each sequence, the columns of its tokens

    def __len__(self) -> int:
        return len(self.token_ids)


def build_tree(sequences: Sequence[np.ndarray]) -> TokenTree:
    """The tree of the given sequences ([n] integers each, in any order, repeats allowed)."""
    # Big-endian bytes sort as the sequences do, and a sequence comes before those that continue it.
    order = sorted(range(len(sequences)), key=lambda i: np.asarray(sequences[i], ">u4").tobytes())
    longest = max(map(len, sequences), default=0)
    path = np.zeros(longest, np.int64)  # the columns of the last sequence
    total = sum(map(len, sequences))
    token_ids, depth, subtree_end = (np.zeros(total, np.int32) for _ in range(3))
    columns: list[np.ndarray] = [path[:0]] * len(sequences)
    last, size = np.zeros(0, np.int32), 0
    for i in order:
        ids = np.asarray(sequences[i], np.int32)
        shared = common_prefix(last, ids)
        subtree_end[path[shared : len(last)]] = size
        new = slice(size, size + len(ids) - shared)
        token_ids[new] = ids[shared:]
        depth[new] = np.arange(shared, len(ids))
        path[shared : len(ids)] = np.arange(new.start, new.stop)
        columns[i] = path[: len(ids)].copy()
        last, size = ids, new.stop
    subtree_end[path[: len(last)]] = size
    return TokenTree(token_ids[:size], depth[:size], subtree_end[:size], tuple(columns))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading entries are equal."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if len(differing) else length
