"""Preference pairs as records."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.records.values import (
    check_one_of,
    check_schema,
    finite,
    read_identity,
    read_ids,
    read_integer,
    read_number,
    read_text,
    schema,
)
from caspo_jax.types import VERDICTS, Pair, PairKind

_MOST_WEIGHT = float(np.finfo(np.float32).max)  # training computes in float32


def pair_to_record(pair: Pair) -> dict[str, Any]:
    """The JSON form of a pair; `prompt, prefix, chosen, rejected` are the texts that TRL and Step-DPO users expect."""
    record: dict[str, Any] = {"schema": schema("pair")}
    for field in dataclasses.fields(pair):
        value = getattr(pair, field.name)
        record[field.name] = list(value) if isinstance(value, tuple) else value
    for side in ("chosen", "rejected"):
        record[f"{side}_confidence"] = finite(record[f"{side}_confidence"])
    return record


def pair_from_record(record: Mapping[str, Any]) -> Pair:
    """Read a pair that this library wrote (token ids included)."""
    check_schema(record, "pair")
    known = {f.name: f for f in dataclasses.fields(Pair)}
    required = [n for n, f in known.items() if f.default is dataclasses.MISSING]
    missing = [name for name in required if name not in record]
    if missing:
        raise UserError(f"a pair lacks {', '.join(missing)}")
    values = {k: v for k, v in record.items() if k in known}
    for field in ("prompt_ids", "prefix_ids", "chosen_ids", "rejected_ids"):
        values[field] = read_ids(record, field)
    ends = record["ends_trace"]
    both = [ends, ends] if isinstance(ends, bool) else ends
    if not (
        isinstance(both, (list, tuple)) and len(both) == 2 and all(isinstance(end, bool) for end in both)
    ):
        raise UserError("`ends_trace` must be two booleans: does `chosen`, does `rejected` end its output?")
    for field in ("prompt", "prefix", "chosen", "rejected"):
        if read_text(record, field) is None:
            raise UserError(f"`{field}` must be a string, found null")
    check_one_of(record, "kind", typing.get_args(PairKind))
    for side in ("chosen", "rejected"):
        read_number(record, f"{side}_confidence")
        check_one_of(record, f"{side}_verdict", VERDICTS)
    read_text(record, "trace_id")
    read_integer(record, "step_index")
    weight = values.get("weight", 1.0)
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 <= weight <= _MOST_WEIGHT:
        raise UserError(f"`weight` must be a number from 0 to {_MOST_WEIGHT:.1e}, found {weight!r}")
    return Pair(**{**values, "id": read_identity(record), "ends_trace": tuple(both)})
