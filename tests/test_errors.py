"""What libraries raise, in one line."""

import pytest

from caspo_jax.errors import first_line


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("\n one\ntwo"), "one"),
        (ValueError("x" * 300), "x" * 200),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line
