"""Settings are checked by name, whatever config they are of."""

import dataclasses
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.checks import at_least, one_of, own_numbers, within
from caspo_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    value: Any


@pytest.mark.parametrize(
    "given, own",
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.array(2), 2),
        (jnp.float32(0.25), 0.25),
        (Fraction(1, 2), 0.5),
        (False, False),
        ("3", "3"),
        (None, None),
        ((1, 2), (1, 2)),
    ],
)
def test_numbers_become_pythons_own(given, own):
    config = Config(given)
    own_numbers(config)
    assert config.value == own
    assert type(config.value) is type(own)


@pytest.mark.parametrize("value", [0, 2.0, True, "2", None])
def test_what_is_no_integer_or_too_small_is_refused(value):
    with pytest.raises(UserError, match=f"value={value!r}: give an integer of at least 1"):
        at_least(Config(value), 1, "value")
    at_least(Config(1), 1, "value")
    at_least(Config(None), 1, "value", optional=True)


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1)", (0, 0.5), (-0.1, 1, 1.5)),
        ("(0, 1]", (0.1, 1), (0, 2)),
        ("(0, inf)", (1e-9, 1e300), (0, float("inf"))),
        ("(-inf, inf)", (-3, 0), (float("-inf"), float("inf"))),
    ],
)
def test_intervals_hold_the_ends_that_their_brackets_say(interval, inside, outside):
    for value in inside:
        within(Config(value), interval, "value")
    for value in (*outside, float("nan"), True, "0.5", None):
        with pytest.raises(UserError, match=r"value=.*: give a number in"):
            within(Config(value), interval, "value")
    within(Config(None), interval, "value", optional=True)


def test_choices_are_named():
    one_of(Config("a"), "value", ("a", "b"))
    for value in ("c", ["a"], None):
        with pytest.raises(UserError, match="choose from a, b"):
            one_of(Config(value), "value", ("a", "b"))
