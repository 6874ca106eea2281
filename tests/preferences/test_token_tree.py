"""Trees of token sequences against sets of prefixes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.preferences.token_tree import build_tree, common_prefix

sequences = st.lists(st.lists(st.integers(0, 2), max_size=7).map(np.asarray), max_size=9)


@settings(max_examples=300, deadline=None)
@given(sequences)
def test_every_distinct_prefix_is_one_column_that_sees_its_own_beginnings(found):
    tree = build_tree(found)
    prefixes = {tuple(s[: n + 1]) for s in found for n in range(len(s))}
    assert len(tree) == len(prefixes)
    spelled = {}
    for ids, columns in zip(found, tree.columns, strict=True):
        np.testing.assert_array_equal(tree.token_ids[columns], ids)
        np.testing.assert_array_equal(tree.depth[columns], np.arange(len(ids)))
        for n, column in enumerate(columns):
            assert spelled.setdefault(int(column), tuple(ids[: n + 1])) == tuple(ids[: n + 1])
    assert set(spelled) == set(range(len(tree)))
    for q, mine in spelled.items():
        seen = {spelled[k] for k in range(len(tree)) if k <= q < tree.subtree_end[k]}
        assert seen == {mine[: n + 1] for n in range(len(mine))}


def test_common_prefix():
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([], int), np.array([1])) == 0


def test_token_ids_beyond_a_byte_keep_their_order():
    tree = build_tree([np.array([300, 1]), np.array([2, 5]), np.array([300, 70000])])
    assert len(tree) == 5
