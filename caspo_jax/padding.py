"""Rows of tokens in few shapes: every new shape is compiled anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_TOKENS = 1 << 15  # of given rows that a device reads in one pass, padding included


def multiple(count: int, of: int) -> int:
    """`count`, rounded up to a multiple of `of`."""
    return -(-count // of) * of


def width(length: int, least: int) -> int:
    """`length`, rounded up so that long rows have few widths too: each is compiled by itself.

    To a multiple of `least`, a power of two; from 16 times that on there are eight widths to a doubling, and so at most an
    eighth of padding.
    """
    return multiple(length, max(least, 1 << max(0, (length - 1).bit_length() - 4)))


def groups(lengths: Sequence[int], least: int, most: int, ways: int = 1) -> list[tuple[int, int, list[int]]]:
    """Rows of like length together, the longest first, and of long ones fewer: a layer holds much of every token.

    Args:
      lengths: tokens of each row.
      least: step of the widths (`width`).
      most: rows of a group, however short.
      ways: into how many parts a mesh splits rows.

    Returns:
      (width, rows that it has room for, which rows they are) of each group. Groups of one width have room for as many.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    found, start = [], 0
    while start < len(order):
        columns = width(lengths[order[start]], least)
        rows = min(most, max(1, MOST_TOKENS // max(1, columns)) * ways)
        found.append((columns, rows, order[start : start + rows]))
        start += rows
    return found


def padded_rows(
    sequences: Sequence[Sequence[int]], width: int, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of token ids as one array, padded on the right.

    Args:
      sequences: of at most `width` ids each.
      width: T.
      rows: B, at least as many as there are sequences (default: as many); those beyond them only fill up the batch.

    Returns:
      Token ids [B, T] int32, and mask [B, T] bool of the real tokens, at least one a row, so that no softmax is empty.
    """
    shape = (len(sequences) if rows is None else rows, width)
    token_ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    mask[:, 0] = True
    for row, ids in enumerate(sequences):
        token_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return token_ids, mask
