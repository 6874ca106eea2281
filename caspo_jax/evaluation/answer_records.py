"""Answers, and the samples behind votes, as `evaluate` keeps them on disk: one JSON record each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies.base import Answer
from caspo_jax.evaluation.strategies.pool import Sample
from caspo_jax.records import schema
from caspo_jax.store import load_records, short_hash

Key = tuple[str, str, str]  # benchmark, strategy, size


def answer_record(answer: Answer, benchmark: str, golds: Mapping[str, str | None]) -> dict[str, Any]:
    """The JSON form of an answer; `golds`: `gold_hash` of each question's gold answer."""
    fields = dataclasses.asdict(answer)
    name = f"{benchmark}/{answer.strategy}/{answer.size}/{answer.question}/{answer.index}"
    return {
        "schema": schema("answer"),
        "id": name,
        "benchmark": benchmark,
        **fields,
        "gold_hash": golds.get(answer.question),
    }


def gold_hash(gold: str | None) -> str | None:
    """Tells gold answers apart, which may be long or not for everyone; None where a question has none."""
    return None if gold is None else short_hash(gold)


def sample_record(sample: Sample, benchmark: str) -> dict[str, Any]:
    """The JSON form of one sample of a pool."""
    name = f"{benchmark}/{sample.question}/{sample.index}"
    return {
        "schema": schema("sample"),
        "id": name,
        "benchmark": benchmark,
        **dataclasses.asdict(sample),
    }


def sample_from_record(record: Mapping[str, Any]) -> Sample:
    """The sample that `sample_record` wrote."""
    return Sample(**{field.name: record[field.name] for field in dataclasses.fields(Sample)})


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """Answer records of a file, or of `answers.jsonl` in a folder.

    Raises:
      UserError: a record without a field that the table needs; names file:line.
    """
    path = Path(path)
    file = path / "answers.jsonl" if path.is_dir() else path
    if not file.exists() and (unfinished := file.with_name(f"{file.name}.partial")).exists():
        raise UserError(f"{unfinished}: that run has not ended; start it again and it goes on")

    found = load_records(file, _checked)
    if not found:
        raise UserError(f"{file}: no answers in it")
    return found


def by_key(records: Sequence[Mapping[str, Any]]) -> dict[Key, list[Mapping[str, Any]]]:
    """Records of each (benchmark, strategy, size), in the order of the file."""
    found: dict[Key, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault((record["benchmark"], record["strategy"], record["size"]), []).append(record)
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_cost(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < np.inf


_NEEDED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("benchmark", "strategy", "size", "question"), ("text", _is_text)),
    "correct": ("true or false", lambda value: isinstance(value, bool)),
    **dict.fromkeys(("tokens", "calls"), ("a number, 0 or more", _is_cost)),
}


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """The record, which has every field that the tables need."""
    missing = _NEEDED.keys() - record.keys()
    if missing:
        raise UserError(f"an answer lacks {', '.join(sorted(missing))}")
    for field, (wanted, valid) in _NEEDED.items():
        if not valid(record[field]):
            raise UserError(f"`{field}` of an answer must be {wanted}, found {record[field]!r:.40}")
    sure = record.get("path_confidence")
    if sure is not None and not _is_cost(sure):
        raise UserError(f"`path_confidence` of an answer must be a number, 0 or more, found {sure!r:.40}")
    return record
