"""Records on disk: one dict a line, with a `schema` field, for questions, traces, pairs and trees (DESIGN section 6)."""

from __future__ import annotations

import dataclasses
import math
import numbers
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.types import (
    VERDICTS,
    CatNode,
    CatResult,
    CatTree,
    FinishReason,
    Pair,
    PairKind,
    Question,
    Step,
    Trace,
)

VERSION = 1
_QUESTION_FIELDS = ("question", "problem", "instruction")
_GOLD_FIELDS = ("gold", "answer")
_ID_FIELDS = ("id", "unique_id", "idx")
_STATUSES = typing.get_args(typing.get_type_hints(CatNode)["status"])


def schema(name: str) -> dict[str, Any]:
    """What every record says of itself: its kind and the version of its form."""
    return {"name": name, "version": VERSION}


def check_schema(record: Mapping[str, Any], name: str) -> None:
    """Refuse a record that says it is something else, or newer than this library."""
    found = record.get("schema")
    if found is None:
        return
    if not isinstance(found, Mapping) or found.get("name") != name:
        raise UserError(f"expected a {name} record, found schema {found!r}")
    if not isinstance(found.get("version"), int) or found["version"] > VERSION:
        raise UserError(f"schema version {found.get('version')!r} is newer than {VERSION}: update caspo_jax")


def _tidy(value: float | None) -> float | None:
    """A float that JSON can hold: NaN and infinities become null."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _identity(record: Mapping[str, Any]) -> str:
    if type(record["id"]) not in (str, int):
        raise UserError(f"`id` must be a string or an integer, found {record['id']!r}")
    return str(record["id"])


def _token_ids(record: Mapping[str, Any], field: str) -> tuple[int, ...]:
    return _ids(record[field], field)


def _ids(ids: Any, field: str) -> tuple[int, ...]:
    ids = ids.tolist() if hasattr(ids, "tolist") else ids  # an array's own integers
    if not isinstance(ids, list | tuple) or any(
        isinstance(i, bool) or not isinstance(i, numbers.Integral) or i < 0 for i in ids
    ):
        raise UserError(f"`{field}` must be a list of token ids (integers, 0 or more)")
    return tuple(map(int, ids))


def _text(record: Mapping[str, Any], field: str) -> str | None:
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"`{field}` must be a string, found {type(value).__name__}")
    return value


def _number(record: Mapping[str, Any], field: str, what: str = "") -> float | None:
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise UserError(f"{what}`{field}` must be a number or null, found {value!r}")
    return value


def _integer(record: Mapping[str, Any], field: str) -> int | None:
    value = record.get(field)
    if value is not None and type(value) is not int:
        raise UserError(f"`{field}` must be an integer or null, found {value!r}")
    return value


def _numbers(values: Any, field: str) -> tuple[float, ...]:
    """A list of numbers; null, which JSON has for NaN, is NaN again."""
    if not isinstance(values, list):
        raise UserError(f"`{field}` must be a list of numbers, found {type(values).__name__}")
    found = (_number({field: value}, field, "an entry of ") for value in values)
    return tuple(math.nan if value is None else float(value) for value in found)


def _one_of(record: Mapping[str, Any], field: str, names: Sequence[str]) -> None:
    if record.get(field) not in (None, *names):
        raise UserError(f"`{field}` must be one of {', '.join(names)}, found {record[field]!r}")


def question_from_record(
    record: Mapping[str, Any],
    *,
    question_field: str | None = None,
    gold_field: str | None = None,
    default_id: str = "",
) -> Question:
    """Read a question: `question` (or `problem`, `instruction`), `prompt` or `prompt_ids`; gold in `gold` or `answer`.

    The gold answer is the first of these that is not blank, and may be a list of one.
    A field that `question_field` names is the question, and a `prompt` or `prompt_ids` beside it is not asked.
    """
    prompt, prompt_ids = None, None
    if question_field is not None:
        if question_field not in record:
            raise UserError(f"no field {question_field!r} (named by --question_field)")
        question = _text(record, question_field)
        if question is None:
            raise UserError(f"`{question_field}` must be a string, found null")
    else:
        prompt_ids = _token_ids(record, "prompt_ids") if record.get("prompt_ids") is not None else None
        prompt = _text(record, "prompt")
        found = [f for f in _QUESTION_FIELDS if record.get(f) is not None]
        question = _text(record, found[0]) if found else None
    if question is None and prompt is None and prompt_ids is None:
        raise UserError(
            "a question needs one of `question`, `problem`, `instruction`, `prompt`, `prompt_ids`"
        )
    if prompt_ids == () or (prompt_ids is None and not (prompt or question or "").strip()):
        raise UserError("the prompt is empty")
    gold_fields = (gold_field,) if gold_field is not None else _GOLD_FIELDS
    gold = next((gold for f in gold_fields if (gold := _gold(record.get(f))) is not None), None)
    identity = next((record[f] for f in _ID_FIELDS if record.get(f) is not None), default_id)
    known = {
        "schema",
        "prompt_ids",
        "prompt",
        *_ID_FIELDS,
        *_GOLD_FIELDS,
        *_QUESTION_FIELDS,
        question_field,
        gold_field,
    }
    return Question(
        id=str(identity),
        question=question,
        prompt=prompt,
        prompt_ids=prompt_ids,
        gold=gold,
        extra={k: v for k, v in record.items() if k not in known},
    )


def _gold(value: Any) -> str | None:
    """A gold answer as text: of a string, a number, or a list of one (GSM8K's); None where it is blank."""
    if isinstance(value, (list, tuple)):
        if len(value) > 1:
            raise UserError(f"the gold answer must be a string or a number, found a list of {len(value)}")
        value = value[0] if value else None
    if isinstance(value, (bool, list, dict)):
        raise UserError(f"the gold answer must be a string or a number, found {type(value).__name__}")
    return None if value is None or not str(value).strip() else str(value)


def question_to_record(question: Question) -> dict[str, Any]:
    """The JSON form of a question; absent fields are left out."""
    record: dict[str, Any] = {"schema": schema("question"), "id": question.id}
    for field in ("question", "prompt", "gold"):
        if getattr(question, field) is not None:
            record[field] = getattr(question, field)
    if question.prompt_ids is not None:
        record["prompt_ids"] = list(question.prompt_ids)
    return record | dict(question.extra)


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
            value = [_tidy(v) for v in value]
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, float):
            value = _tidy(value)
        record[field.name] = value
    return record


def _step_to_record(step: Step) -> dict[str, Any]:
    record = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
    return record | {"confidence": _tidy(step.confidence), "entropy": _tidy(step.entropy)}


def trace_from_record(record: Mapping[str, Any]) -> Trace:
    """Read a trace; what it lacks beside ids, text and token ids takes the record's defaults."""
    check_schema(record, "trace")
    for field in ("id", "token_ids", "text"):
        if field not in record:
            raise UserError(f"a trace needs `{field}`")
    known = {f.name for f in dataclasses.fields(Trace)}
    values = {k: v for k, v in record.items() if k in known}
    values["id"] = _identity(record)
    values["text"] = _text(record, "text")
    if values["text"] is None:
        raise UserError("a trace needs `text`")
    values["token_ids"] = _token_ids(record, "token_ids")
    values["prompt_ids"] = _token_ids(record, "prompt_ids") if "prompt_ids" in record else ()
    for field in ("question", "gold", "prompt", "answer", "policy", "strategy"):
        values[field] = _text(record, field)
    _number(record, "path_confidence")
    _integer(record, "seed")
    if not isinstance(record.get("correct"), (bool, type(None))):
        raise UserError(f"`correct` must be true, false or null, found {record['correct']!r}")
    _one_of(record, "finish_reason", typing.get_args(FinishReason))
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
            values[field] = _numbers(values[field], field)
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
        _number(record, field, "a step's ")
    if record.get("verdict", "unknown") not in VERDICTS:
        raise UserError(f"a verdict is one of {', '.join(VERDICTS)}, found {record['verdict']!r}")
    return Step(**{k: v for k, v in record.items() if k in known})


def pair_to_record(pair: Pair) -> dict[str, Any]:
    """The JSON form of a pair; `prompt, prefix, chosen, rejected` are the texts that TRL and Step-DPO users expect."""
    record: dict[str, Any] = {"schema": schema("pair")}
    for field in dataclasses.fields(pair):
        value = getattr(pair, field.name)
        record[field.name] = list(value) if isinstance(value, tuple) else value
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
        values[field] = _token_ids(record, field)
    ends = record["ends_trace"]
    both = [ends, ends] if isinstance(ends, bool) else ends
    if not (
        isinstance(both, (list, tuple)) and len(both) == 2 and all(isinstance(end, bool) for end in both)
    ):
        raise UserError("`ends_trace` must be two booleans: does `chosen`, does `rejected` end its output?")
    for field in ("prompt", "prefix", "chosen", "rejected"):
        if _text(record, field) is None:
            raise UserError(f"`{field}` must be a string, found null")
    _one_of(record, "kind", typing.get_args(PairKind))
    for side in ("chosen", "rejected"):
        _number(record, f"{side}_confidence")
        _one_of(record, f"{side}_verdict", VERDICTS)
    _text(record, "trace_id")
    _integer(record, "step_index")
    weight = values.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise UserError(f"`weight` must be a number, 0 or more, found {weight!r}")
    return Pair(**{**values, "id": _identity(record), "ends_trace": tuple(both)})


def tree_to_record(tree: CatTree) -> dict[str, Any]:
    """The JSON form of a CaT tree: nodes as parallel lists."""
    record: dict[str, Any] = {
        "schema": schema("tree"),
        "question_id": tree.question_id,
        "prompt_ids": list(tree.prompt_ids),
        "key": list(tree.key),
        "threshold": _tidy(tree.threshold),
    }
    for field in ("parent", "status", "reason"):
        record[field] = [getattr(node, field) for node in tree.nodes]
    for field in ("confidence", "path_confidence"):
        record[field] = [_tidy(getattr(node, field)) for node in tree.nodes]
    for field in ("token_ids", "logprob", "entropy"):
        record[field] = [list(getattr(node, field)) for node in tree.nodes]
    return record


def search_to_record(result: CatResult, vote: str, gamma: float) -> dict[str, Any]:
    """The JSON form of a search: its tree, and beside it how its paths voted and what they elected.

    Args:
      result: of the search.
      vote: the method that `result.answer` and `result.votes` are of.
      gamma: exponent of `confidence`.
    """
    votes = {answer: _tidy(weight) for answer, weight in result.votes.items()}
    return tree_to_record(result.tree) | {
        "vote": vote,
        "gamma": _tidy(gamma),
        "answer": result.answer,
        "votes": votes,
    }


def tree_from_record(record: Mapping[str, Any]) -> CatTree:
    """Read a CaT tree that this library wrote."""
    check_schema(record, "tree")
    fields = (
        "parent",
        "token_ids",
        "logprob",
        "entropy",
        "confidence",
        "path_confidence",
        "status",
        "reason",
    )
    missing = [name for name in ("question_id", *fields) if name not in record]
    if missing:
        raise UserError(f"a tree lacks {', '.join(missing)}")
    columns = [record[name] for name in fields]
    if not all(isinstance(column, list) for column in columns):
        raise UserError(f"a tree's {', '.join(fields)} must be lists, an entry a node")
    if len({len(column) for column in columns}) > 1:
        raise UserError("the lists of a tree's nodes have different lengths")
    nodes = tuple(
        _node_from_record(dict(zip(fields, values, strict=True)), index, len(columns[0]))
        for index, values in enumerate(zip(*columns, strict=True))
    )
    key = record.get("key") or []
    if not isinstance(key, list) or any(type(word) is not int for word in key):
        raise UserError(f"`key` must be a list of integers, found {key!r}")
    return CatTree(
        str(record["question_id"]),
        _ids(record.get("prompt_ids") or [], "prompt_ids"),
        nodes,
        tuple(key),
        _number(record, "threshold"),
    )


def _node_from_record(record: Mapping[str, Any], index: int, count: int) -> CatNode:
    parent = record["parent"]
    if type(parent) is not int or not -1 <= parent < count or parent == index:
        raise UserError(
            f"`parent` of node {index} must be another of the {count} nodes or -1, found {parent!r}"
        )
    for field in ("confidence", "path_confidence"):
        _number(record, field, f"node {index}: ")
    if record["status"] is None:
        raise UserError(f"`status` of node {index} is null")
    _one_of(record, "status", _STATUSES)
    return CatNode(
        parent,
        _token_ids(record, "token_ids"),
        _numbers(record["logprob"], "logprob"),
        _numbers(record["entropy"], "entropy"),
        record["confidence"],
        record["path_confidence"],
        record["status"],
        _text(record, "reason"),
    )
