"""Traces and their steps as records."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.records.values import (
    as_numbers,
    check_one_of,
    check_schema,
    finite,
    finite_list,
    read_identity,
    read_ids,
    read_integer,
    read_number,
    read_text,
    schema,
)
from caspo_jax.types import VERDICTS, FinishReason, Step, Trace


def trace_to_record(trace: Trace, *, token_stats: bool = True) -> dict[str, Any]:
    """The JSON form of a trace; `token_stats=False` leaves the per-token lists out."""
    record: dict[str, Any] = {"schema": schema("trace")}
    for field in dataclasses.fields(trace):
        value = getattr(trace, field.name)
        if field.name == "steps":
            value = [_step_to_record(step) for step in value]
        elif field.name in ("logprob", "entropy"):
            if not token_stats or value is None:
                continue
            value = finite_list(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, float):
            value = finite(value)
        record[field.name] = value
    return record


def _step_to_record(step: Step) -> dict[str, Any]:
    record = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
    return record | {"confidence": finite(step.confidence), "entropy": finite(step.entropy)}


def trace_features() -> Any:
    """The columns of trace records for `datasets`, which guesses them file by file otherwise, and fails where one file's guess
    (a field that is always null) does not fit the next: raw beside annotated traces, or one long file.

    >>> files = ["traces.jsonl", "annotated.jsonl"]
    >>> datasets.load_dataset("json", data_files=files, features=trace_features())  # doctest: +SKIP
    """
    import datasets

    names = {"name": datasets.Value("string"), "version": datasets.Value("int64")}
    return datasets.Features({"schema": names, **_features(Trace)})


def _features(record: type) -> dict[str, Any]:
    hints = typing.get_type_hints(record)
    return {field.name: _feature(hints[field.name]) for field in dataclasses.fields(record)}


def _feature(hint: Any) -> Any:
    """The column of a field with this type; every column of `datasets` may hold null."""
    import datasets

    (hint,) = [h for h in typing.get_args(hint) if h is not type(None)] if _optional(hint) else [hint]
    if typing.get_origin(hint) is tuple:
        return [_feature(typing.get_args(hint)[0])]
    if dataclasses.is_dataclass(hint):
        return _features(typing.cast(type, hint))
    kinds = {bool: "bool", int: "int64", float: "float64"}
    return datasets.Value(kinds.get(hint, "string"))


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def trace_from_record(record: Mapping[str, Any]) -> Trace:
    """Read a trace; what it lacks beside ids, text and token ids takes the record's defaults."""
    check_schema(record, "trace")
    for field in ("id", "token_ids", "text"):
        if field not in record:
            raise UserError(
                f"a trace needs `{field}`: outputs of other tools become traces by experiments.faithfulness (docs/formats.md)"
            )
    known = {f.name for f in dataclasses.fields(Trace)}
    values = {k: v for k, v in record.items() if k in known}
    values["id"] = read_identity(record)
    values["text"] = read_text(record, "text")
    if values["text"] is None:
        raise UserError("a trace needs `text`")
    values["token_ids"] = read_ids(record, "token_ids")
    values["prompt_ids"] = read_ids(record, "prompt_ids") if "prompt_ids" in record else ()
    for field in ("question", "gold", "prompt", "answer", "policy", "strategy"):
        values[field] = read_text(record, field)
    read_number(record, "path_confidence")
    read_integer(record, "seed")
    if not isinstance(record.get("correct"), (bool, type(None))):
        raise UserError(f"`correct` must be true, false or null, found {record['correct']!r}")
    check_one_of(record, "finish_reason", typing.get_args(FinishReason))
    values["finish_reason"] = values.get("finish_reason") or "eos"
    steps = record.get("steps") or []
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise UserError("`steps` must be a list of steps")
    values["steps"] = tuple(_step_from_record(step) for step in steps)
    length = len(values["token_ids"])
    if length and any(step.token_end > length for step in values["steps"]):
        raise UserError(f"a step ends after the trace's {length} token ids")
    for field in ("logprob", "entropy"):
        if values.get(field) is not None:
            values[field] = as_numbers(values[field], field)
            if len(values[field]) != len(values["token_ids"]):
                raise UserError(
                    f"`{field}` has {len(values[field])} entries for {len(values['token_ids'])} token ids"
                )
    return Trace(**values)


def _step_from_record(record: Mapping[str, Any]) -> Step:
    known = {f.name for f in dataclasses.fields(Step)}
    missing = {"start", "end", "token_start", "token_end", "text"} - set(record)
    if missing:
        raise UserError(f"a step lacks {', '.join(sorted(missing))}")
    for first, last in (("start", "end"), ("token_start", "token_end")):
        if not (type(record[first]) is type(record[last]) is int and 0 <= record[first] <= record[last]):
            raise UserError(f"a step's `{first}` and `{last}` must be integers in order, 0 or more")
    if not isinstance(record["text"], str):
        raise UserError(f"a step's `text` must be a string, found {type(record['text']).__name__}")
    for field in ("confidence", "entropy"):
        read_number(record, field, "a step's ")
    read_text(record, "verifier", "a step's ")
    if record.get("verdict", "unknown") not in VERDICTS:
        raise UserError(f"a verdict is one of {', '.join(VERDICTS)}, found {record['verdict']!r}")
    return Step(**{k: v for k, v in record.items() if k in known})
