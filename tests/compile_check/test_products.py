"""Products of a convolution, which is how the TPU compiler writes matrix products."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.compile_check.products import _valid_pairs


@given(
    size=st.integers(1, 7),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 3),
    pad=st.integers(0, 3),
    lhs=st.integers(1, 3),
    rhs=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_convolution_windows_count_what_a_convolution_of_ones_sums(size, kernel, stride, pad, lhs, rhs):
    dilated = np.zeros((size - 1) * lhs + 1)
    dilated[::lhs] = 1
    padded = np.pad(dilated, pad)
    reach = (kernel - 1) * rhs + 1
    output = (len(padded) - reach) // stride + 1
    if output < 1:
        return
    total = sum(padded[o * stride : o * stride + reach : rhs].sum() for o in range(output))
    options = {"stride": stride, "pad": pad, "lhs_dilate": lhs, "rhs_dilate": rhs}
    assert _valid_pairs(size, kernel, output, options) == total
