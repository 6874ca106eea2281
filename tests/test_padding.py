"""Sizes rounded up, and rows of tokens padded to one shape."""

import numpy as np
import pytest

from caspo_jax.padding import multiple, padded_rows


@pytest.mark.parametrize(("count", "of", "rounded"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (9, 8, 16), (5, 1, 5)])
def test_multiple_rounds_up(count, of, rounded):
    assert multiple(count, of) == rounded


def test_rows_are_padded_on_the_right_and_those_that_fill_up_have_one_token():
    token_ids, mask = padded_rows([(5, 6), [7, 8, 9]], 4, rows=3)
    np.testing.assert_array_equal(token_ids, [[5, 6, 0, 0], [7, 8, 9, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
    assert (token_ids.dtype, mask.dtype) == (np.int32, bool)
    assert len(padded_rows([(5, 6)], 4)[0]) == 1
