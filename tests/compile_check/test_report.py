"""What the compiler says when a program does not fit."""

import pytest

from caspo_jax.compile_check.chips import CHIPS
from caspo_jax.compile_check.report import GIB, _exhausted

V5E = CHIPS["v5e"]


@pytest.mark.parametrize(
    "message, needed, there",
    [
        ("RESOURCE_EXHAUSTED: ... Used 20.50G of 15.75G hbm. Exceeded ...", 20.5, 15.75),
        ("... Used 512.0M of 15.75G hbm", 0.5, 15.75),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (15.95G) exceeds "
            "available HBM (15.75G).",
            3 + 15.95,  # beside the arguments
            15.75,
        ),
        ("RESOURCE_EXHAUSTED: in words that are new", 16, 16),
    ],
)
def test_sizes_are_read_from_the_compilers_message(message, needed, there):
    assert _exhausted(message, 3 * GIB, V5E) == pytest.approx((needed * GIB, there * GIB))
