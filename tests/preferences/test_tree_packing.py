"""Which units share a row where a question's tree exceeds one."""

import numpy as np

from caspo_jax.preferences.packing import MaskedRow
from caspo_jax.preferences.tree_packing import RowShape, Unit, pack_trees, plan_rows


def sequence(context, step):
    ids = np.array([*context, *step], np.int32)
    return MaskedRow(ids, np.arange(len(ids)) >= len(context))


def test_a_tree_that_exceeds_a_row_is_halved_where_it_branches():
    """Eight samples, a long prefix each with four pairs below it: a half computes a prefix that the other has not."""
    rng = np.random.default_rng(0)
    prompt, samples = rng.integers(0, 400, 10), rng.integers(0, 400, (8, 40))
    units = []
    for sample in samples:
        for _ in range(4):
            sides = rng.integers(0, 400, (2, 5))
            rows = tuple(sequence([*prompt, *sample], side) for side in sides)
            units.append(Unit(rows, len(units), 0, True))
    shuffled = [units[i] for i in rng.permutation(len(units))]
    rows = plan_rows(shuffled, RowShape.of(256, pairs=True, verified=False))
    pieces = [piece for row in rows for piece in row]
    assert sum(len(piece.units) for piece in pieces) == len(units)
    prefixes = len(samples) * (40 + 4 * 2 * 5)  # every sample's, once
    assert sum(len(piece.tree) for piece in pieces) == len(pieces) * len(prompt) + prefixes


def test_a_row_holds_no_more_members_than_it_has_room_for():
    """Eight pairs that share their chosen step: few tokens, and each of them in many sums."""
    chosen = sequence([1], range(2, 42))
    units = [Unit((chosen, sequence([1], (100 + i, 200 + i))), i, 0, True) for i in range(8)]
    shape = RowShape.of(64, pairs=True, verified=False)
    rows = plan_rows(units, shape)
    assert 8 * 42 > shape.members == 256
    assert sorted(unit.index for row in rows for piece in row for unit in piece.units) == list(range(8))
    assert all(sum(piece.size[4] for piece in row) <= shape.members for row in rows)
    n = np.zeros(8, np.float32)
    packed = pack_trees(rows, len(rows), shape, n + 1, n, n)
    owners = packed.batch.member_item[packed.batch.member_item < 2 * shape.pairs]
    assert len(owners) == 8 * 42


def test_large_trees_are_placed_before_small_ones_fill_their_rows():
    """Two of 44 tokens and two of 20 fit into two rows of 64, in whatever order they come."""
    units = [
        Unit((sequence(range(100 * i, 100 * i + n - 1), [1]),), i, i, False)
        for i, n in enumerate((20, 20, 44, 44))
    ]
    shape = RowShape.of(64, pairs=False, verified=True)
    for order in ([0, 1, 2, 3], [2, 3, 0, 1], [0, 2, 1, 3]):
        rows = plan_rows([units[i] for i in order], shape)
        assert [sum(len(piece.tree) for piece in row) for row in rows] == [64, 64]
