"""Sizes rounded up, and rows of tokens padded to one shape."""

import numpy as np
import pytest

from caspo_jax.padding import MOST_TOKENS, groups, multiple, padded_rows, width


@pytest.mark.parametrize(("count", "of", "rounded"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (9, 8, 16), (5, 1, 5)])
def test_multiple_rounds_up(count, of, rounded):
    assert multiple(count, of) == rounded


def test_rows_of_any_length_get_few_widths_and_little_padding():
    widths = {length: width(length, 16) for length in range(1, 8193)}
    assert all(length <= padded for length, padded in widths.items())
    assert all(padded < length + 16 or padded <= 1.125 * length for length, padded in widths.items())
    assert [widths[n] for n in (1, 200, 4100)] == [16, 208, 4608]
    assert len({padded for length, padded in widths.items() if length > 4096}) == 8
    assert len(set(widths.values())) == 8 * 6 + 8
    assert [width(n, 64) for n in (0, 64, 65, 1000, 1025)] == [0, 64, 128, 1024, 1152]


def test_of_long_rows_fewer_go_together():
    lengths = [100, 30_000, 700, 100, 5000, 700, 20_000, 5000, 100, 70_000]
    found = groups(lengths, 64, 4)
    assert sorted(row for _, _, rows in found for row in rows) == list(range(len(lengths)))
    assert [rows for _, _, rows in found] == [[9], [1], [6], [4, 7, 2, 5], [0, 3, 8]]
    for columns, most, rows in found:
        assert len(rows) <= most <= 4
        assert most * columns <= MOST_TOKENS or most == 1
        assert all(lengths[row] <= columns for row in rows)
        assert columns == width(max(lengths[row] for row in rows), 64)
    # A mesh reads as many on each of its parts; equal widths have one number of rows.
    assert [(most, rows) for _, most, rows in groups([20_000] * 5, 64, 64, ways=4)] == [
        (4, [0, 1, 2, 3]),
        (4, [4]),
    ]
    assert groups([], 64, 4) == []


def test_rows_are_padded_on_the_right_and_those_that_fill_up_have_one_token():
    token_ids, mask = padded_rows([(5, 6), [7, 8, 9]], 4, rows=3)
    np.testing.assert_array_equal(token_ids, [[5, 6, 0, 0], [7, 8, 9, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
    assert (token_ids.dtype, mask.dtype) == (np.int32, bool)
    assert len(padded_rows([(5, 6)], 4)[0]) == 1
