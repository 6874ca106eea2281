"""Values of a parsed config.json by type: what is of another type is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from caspo_jax.errors import UserError


def integer(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """An integer; where the key is missing or null, `default`, or a refusal if there is none."""
    value = _given(config, key, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where}: {key} must be an integer, not {value!r}")
    return value


def number(config: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    """A finite number; where the key is missing or null, `default`, or a refusal if there is none."""
    value = _given(config, key, default)
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond every float
        value = f"{str(value)[:20]}..."
    raise UserError(f"{where}: {key} must be a finite number, not {value!r}")


def flag(config: Mapping[str, Any], key: str, where: str) -> bool:
    """True or false; false where the key is missing or null."""
    value = _given(config, key, False)
    if value not in (True, False):
        raise UserError(f"{where}: {key} must be true or false, not {value!r}")
    return bool(value)


def section(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """An object; empty where the key is missing or null."""
    value = _given(config, key, {})
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {key} must be an object, not {value!r}")
    return value


def token_id(config: Mapping[str, Any], key: str, where: str) -> int | None:
    """A token id, or None."""
    return None if config.get(key) is None else integer(config, key, where)


def token_ids(config: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    """Token ids that are given as one id, a list of them, or not at all."""
    value = config.get(key)
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(integer({key: id}, key, where) for id in listed if id is not None)


def _given(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value
