"""Checks of settings: what cannot work is refused by its name, in one wording for all configs."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable
from typing import Any

from caspo_jax.errors import UserError


def check(ok: bool, message: str) -> None:
    """Raises UserError with the message unless `ok`."""
    if not ok:
        raise UserError(message)


def of_kind(value: Any, kinds: type | tuple[type, ...], function: str, argument: str, hint: str = "") -> None:
    """Refuses an argument of another type.

    Args:
      value: what was given.
      kinds: the types that will do.
      function: what it was given to.
      argument: its name there.
      hint: what else the message says.

    Raises:
      UserError: names function, argument and both types.
    """
    wanted = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    given = f"{function} takes a {wanted} as {argument}, not a {type(value).__name__}"
    check(isinstance(value, kinds), given + (f"; {hint}" if hint else ""))


def own_numbers(config: Any) -> None:
    """Makes the numbers in the fields of a frozen dataclass Python's own, which JSON and compiled programs know."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if getattr(value, "shape", None) == ():  # NumPy's numbers, and arrays of one number
            object.__setattr__(config, field.name, value.item())
        elif isinstance(value, numbers.Real) and type(value) not in (int, float, bool):
            own = int(value) if isinstance(value, numbers.Integral) else float(value)
            object.__setattr__(config, field.name, own)


def is_number(value: Any) -> bool:
    """Whether a setting is an integer or a float (True and False are neither)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def at_least(config: Any, least: int, *names: str, optional: bool = False) -> None:
    """Refuses fields that are no integer, or a smaller one.

    Args:
      config: whose fields.
      least: the smallest integer that works.
      names: the fields.
      optional: None works too.

    Raises:
      UserError: names the field and its value.
    """
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        wanted = f"an integer of at least {least}" + (", or None" if optional else "")
        check(whole or (optional and value is None), f"{name}={value!r}: give {wanted}")


def within(config: Any, interval: str, *names: str, optional: bool = False, hint: str = "") -> None:
    """Refuses fields that are no number of an interval; NaN is in none.

    Args:
      config: whose fields.
      interval: as mathematics writes it: "[0, 1)" holds 0 and not 1; "[0, inf)" any finite number from 0 on.
      names: the fields.
      optional: None works too.
      hint: what else the message says.

    Raises:
      UserError: names the field, its value and the interval.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name in names:
        value = getattr(config, name)
        inside = is_number(value) and (
            low < value < high
            or (value == low and interval[0] == "[")
            or (value == high and interval[-1] == "]")
        )
        wanted = f"a number in {interval}" + (", or None" if optional else "") + (f"; {hint}" if hint else "")
        check(inside or (optional and value is None), f"{name}={value!r}: give {wanted}")


def one_of(config: Any, name: str, options: Iterable[str]) -> None:
    """Refuses a field that is none of the options. Raises UserError that names them."""
    value = getattr(config, name)
    options = tuple(options)
    check(isinstance(value, str) and value in options, f"{name}={value!r}: choose from {', '.join(options)}")
