"""Which units share a row where a question's tree exceeds one."""

import numpy as np

from caspo_jax.preferences.packing import MaskedRow
from caspo_jax.preferences.tree_packing import pack_trees, plan_rows
from caspo_jax.preferences.tree_pieces import Piece, RowShape, Unit, cut_tree, group_trees


def sequence(context, step):
    ids = np.array([*context, *step], np.int32)
    return MaskedRow(ids, np.arange(len(ids)) >= len(context))


def question(rng, samples, prefix, pairs, prompt=10, step=5):
    """Pairs below each sample's prefix, in any order."""
    start, units = rng.integers(0, 400, prompt), []
    for sample in rng.integers(0, 400, (samples, prefix)):
        for _ in range(pairs):
            rows = tuple(sequence([*start, *sample], side) for side in rng.integers(0, 400, (2, step)))
            units.append(Unit(rows, len(units), 0, True))
    return [units[i] for i in rng.permutation(len(units))]


def pieces_of(units, length):
    rows = plan_rows(units, RowShape.of(length, pairs=True, verified=False))
    pieces = [piece for row in rows for piece in row]
    assert sorted(unit.index for piece in pieces for unit in piece.units) == list(range(len(units)))
    for piece in pieces:
        assert piece.size == Piece(piece.units).size  # counted within the whole tree, and in its own
    return rows, pieces


def test_a_tree_that_exceeds_a_row_is_cut_where_it_branches():
    """Eight samples, a long prefix each with four pairs below it: a piece computes a prefix that no other has."""
    prompt, samples = range(10), range(8)
    units = question(np.random.default_rng(0), len(samples), 40, 4)
    _, pieces = pieces_of(units, 256)
    assert sum(len(piece.units) for piece in pieces) == len(units)
    prefixes = len(samples) * (40 + 4 * 2 * 5)  # every sample's, once
    assert sum(len(piece.tree) for piece in pieces) == len(pieces) * len(prompt) + prefixes


def test_a_piece_fills_its_row_and_leaves_a_remainder():
    """Twelve samples of 60 tokens: four a row. Halves of halves would be three, in four rows."""
    rows, pieces = pieces_of(question(np.random.default_rng(1), 12, 50, 1), 256)
    assert [len(piece.tree) for piece in pieces] == [10 + 4 * 60] * 3
    assert len(rows) == 3


def test_a_row_is_left_unfilled_where_the_next_piece_would_compute_more_again():
    """Three of the second sample's four pairs would fit beside the first's, and the fourth need its prefix once more."""
    _, pieces = pieces_of(question(np.random.default_rng(2), 2, 100, 4), 280)
    assert [len(piece.tree) for piece in pieces] == [10 + 100 + 4 * 10] * 2
    # With little of a prefix to compute again the row is filled.
    _, pieces = pieces_of(question(np.random.default_rng(2), 2, 20, 6, step=10), 280)
    assert sorted(len(piece.tree) for piece in pieces) == [10 + 20 + 20, 10 + 2 * 20 + 11 * 20]


def test_pieces_compute_little_twice():
    """Of eight traces with pairs at all depths, a tenth at most of a row of 512."""
    rng = np.random.default_rng(3)
    units, start = [], rng.integers(0, 400, 20)
    for trunk in rng.integers(0, 400, (8, 150)):
        for depth in rng.integers(0, 140, 6):
            rows = [
                sequence([*start, *trunk[:depth]], step)
                for step in (trunk[depth:][:10], rng.integers(0, 400, 10))
            ]
            units.append(Unit(tuple(rows), len(units), 0, True))
    (whole,) = group_trees(units)
    pieces = cut_tree(whole, RowShape.of(512, pairs=True, verified=False))
    assert len(whole.tree) > 2 * 512
    assert sum(len(piece.tree) for piece in pieces) - len(whole.tree) < 51 * (len(pieces) - 1)


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
