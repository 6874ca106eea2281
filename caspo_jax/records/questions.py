"""Questions as records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.records.values import read_ids, read_text, schema
from caspo_jax.types import Question

_QUESTION_FIELDS = ("question", "problem", "instruction")
_GOLD_FIELDS = ("gold", "answer")
_ID_FIELDS = ("id", "unique_id", "idx")


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
        question = read_text(record, question_field)
        if question is None:
            raise UserError(f"`{question_field}` must be a string, found null")
    else:
        prompt_ids = read_ids(record, "prompt_ids") if record.get("prompt_ids") is not None else None
        prompt = read_text(record, "prompt")
        found = [f for f in _QUESTION_FIELDS if record.get(f) is not None]
        question = read_text(record, found[0]) if found else None
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
    missing = value is None or value != value  # a table's empty cell may be written as NaN
    return None if missing or not str(value).strip() else str(value)


def question_to_record(question: Question) -> dict[str, Any]:
    """The JSON form of a question; absent fields are left out."""
    record: dict[str, Any] = {"schema": schema("question"), "id": question.id}
    for field in ("question", "prompt", "gold"):
        if getattr(question, field) is not None:
            record[field] = getattr(question, field)
    if question.prompt_ids is not None:
        record["prompt_ids"] = list(question.prompt_ids)
    return record | dict(question.extra)
