"""The values of a record: each is read, or refused by its field's name."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from caspo_jax.errors import UserError

VERSION = 1


def schema(name: str) -> dict[str, Any]:
    """What every record says of itself: its kind and the version of its form."""
    return {"name": name, "version": VERSION}


def schema_name(record: Mapping[str, Any]) -> str | None:
    """The kind of record that a record says it is; None where it does not say."""
    found = record.get("schema")
    name = found.get("name") if isinstance(found, Mapping) else None
    return name if isinstance(name, str) else None


def check_schema(record: Mapping[str, Any], name: str) -> None:
    """Refuse a record that says it is something else, or newer than this library."""
    found = record.get("schema")
    if found is None:
        return
    if not isinstance(found, Mapping) or found.get("name") != name:
        raise UserError(f"expected a {name} record, found schema {found!r}")
    if not isinstance(found.get("version"), int) or found["version"] > VERSION:
        raise UserError(f"schema version {found.get('version')!r} is newer than {VERSION}: update caspo_jax")


def finite(value: float | None) -> float | None:
    """The value as a JSON number: null for NaN, infinities and None."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def finite_list(values: Iterable[float | None]) -> list[float | None]:
    """`finite` of each."""
    values = list(values)
    if {*map(type, values)} <= {float} and all(map(math.isfinite, values)):  # type: ignore[arg-type]
        return values  # nearly always, and many times as fast
    return [finite(value) for value in values]


def read_identity(record: Mapping[str, Any]) -> str:
    """The `id`, an integer too, as text."""
    if type(record["id"]) not in (str, int):
        raise UserError(f"`id` must be a string or an integer, found {record['id']!r}")
    return str(record["id"])


def read_ids(record: Mapping[str, Any], field: str) -> tuple[int, ...]:
    """A field that must be there, of token ids."""
    return as_ids(record[field], field)


def as_ids(ids: Any, field: str) -> tuple[int, ...]:
    """Token ids: a list, tuple or array of integers, 0 or more."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids  # an array's own integers
    if type(ids) in (list, tuple) and {*map(type, ids)} == {int} and min(ids) >= 0:
        return tuple(ids)  # what JSON and records have, a few times as fast
    if not isinstance(ids, list | tuple) or any(
        isinstance(i, bool) or not isinstance(i, numbers.Integral) or i < 0 for i in ids
    ):
        raise UserError(f"`{field}` must be a list of token ids (integers, 0 or more)")
    return tuple(map(int, ids))


def read_text(record: Mapping[str, Any], field: str, what: str = "") -> str | None:
    """A string, or None where the field is absent or null; an error begins with `what`."""
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{what}`{field}` must be a string, found {type(value).__name__}")
    return value


def read_number(record: Mapping[str, Any], field: str, what: str = "") -> float | None:
    """A number, or None where the field is absent or null; an error begins with `what`."""
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise UserError(f"{what}`{field}` must be a number or null, found {value!r}")
    if isinstance(value, int) and abs(value) > sys.float_info.max:  # JSON's integers have no end
        raise UserError(
            f"{what}`{field}` must be a number that a float can hold: at most {sys.float_info.max:.1e}"
        )
    return value


def read_integer(record: Mapping[str, Any], field: str) -> int | None:
    """An integer, or None where the field is absent or null."""
    value = record.get(field)
    if value is not None and type(value) is not int:
        raise UserError(f"`{field}` must be an integer or null, found {value!r}")
    return value


def as_numbers(values: Any, field: str) -> tuple[float, ...]:
    """A list of numbers; null, which JSON has for NaN, is NaN again."""
    if not isinstance(values, list):
        raise UserError(f"`{field}` must be a list of numbers, found {type(values).__name__}")
    if {*map(type, values)} <= {int, float}:  # nearly always, and many times as fast
        return tuple(map(float, values))
    found = (read_number({field: value}, field, "an entry of ") for value in values)
    return tuple(math.nan if value is None else float(value) for value in found)


def check_one_of(record: Mapping[str, Any], field: str, names: Sequence[str]) -> None:
    """Refuse a value that is not one of these names; a field that is absent or null passes."""
    if record.get(field) not in (None, *names):
        raise UserError(f"`{field}` must be one of {', '.join(names)}, found {record[field]!r}")
