"""Traces from elsewhere: raw text, vLLM and OpenAI-style outputs, lm-eval samples, inspect-ai logs, and our own."""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.formats import Record, Source, read_record
from caspo_jax.store import parse_at, read_jsonl, read_value

_LARGEST_MEMBER = 1 << 30  # bytes of one sample in an inspect log


def read_sources(path: str | Path) -> list[Source]:
    """Every output of a file (or of a folder of .txt files), whatever wrote it.

    Told by the record's fields, line by line: our traces; vLLM `RequestOutput` (`outputs`); completions and chat
    completions, batch results too (`choices`); lm-eval samples (`resps`); inspect-ai samples (`output.choices`), whole
    logs as .json or .eval; any object with a text field (`text`, `generated_text`, `output`, `response`, `completion`, `generation`).
    A .txt file is one output without prompt. Reasoning that a server split off is put back between <think> tags.

    Args:
      path: .jsonl, .json, .eval, .txt, or a folder of .txt files.

    Returns:
      The outputs in order; several samples of a record get ids with `/index`.

    Raises:
      UserError: naming file:line; nothing readable, a record of no known kind, an id used twice.
    """
    path = Path(path)
    found: list[Source] = []
    seen: dict[str, tuple[str, Source]] = {}
    for where, record in _records(path):
        for source in parse_at(where, functools.partial(_outputs, str(len(found))), dict(record)):
            if source.id in seen:
                if source.format == "lm-eval" and _ungraded(source) == _ungraded(seen[source.id][1]):
                    continue  # lm-eval writes a line a filter
                raise UserError(
                    f"{where}: id {source.id!r} was used before, at {seen[source.id][0]}: give every output an `id` of its "
                    "own, and samples of one question the same `question_id`"
                )
            seen[source.id] = (where, source)
            found.append(source)
    if not found:
        raise UserError(f"{path}: no traces in it")
    return found


def _ungraded(source: Source) -> Source:
    """What is the same under each filter of lm-eval: one document's output, and not another's of the same number."""
    return dataclasses.replace(source, correct=None)


def _outputs(default_id: str, record: dict[str, Any]) -> list[Source]:
    """The outputs of a record; a list or a text where a tool writes an object reads as a malformed record."""
    try:
        return read_record(record, default_id)
    except (AttributeError, IndexError) as error:
        raise UserError(f"malformed record ({type(error).__name__}: {error})") from error


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise UserError(f"{path}: no .txt files in it")
        for file in files:
            yield str(file), _text_file(file)
    elif path.suffix == ".txt":
        yield str(path), _text_file(path)
    elif path.suffix == ".eval":
        yield from _inspect_archive(path)
    elif path.suffix == ".json":
        yield from _json_file(path)
    else:
        yield from read_jsonl(path)


def _text_file(path: Path) -> Record:
    try:
        return {"id": path.stem, "text": path.read_text(encoding="utf-8-sig")}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from error


def _json_file(path: Path) -> Iterator[tuple[str, Record]]:
    whole = read_value(path)
    items = whole.get("samples", [whole]) if isinstance(whole, dict) else whole
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{path}: expected an object, a list of objects, or a log with `samples`")
    for index, item in enumerate(items):
        yield f"{path}[{index}]", item


def _inspect_archive(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(
                (
                    m
                    for m in archive.infolist()
                    if m.filename.startswith("samples/") and m.filename.endswith(".json")
                ),
                key=lambda m: m.filename,
            )
            for member in members:
                where = f"{path}:{member.filename}"
                if member.file_size > _LARGEST_MEMBER:
                    raise UserError(f"{where}: {member.file_size:,} bytes is too large for one sample")
                try:
                    sample = json.loads(archive.read(member))
                except (UnicodeDecodeError, json.JSONDecodeError) as error:
                    raise UserError(f"{where}: not valid JSON ({error})") from error
                if not isinstance(sample, dict):
                    raise UserError(f"{where}: expected a JSON object")
                yield where, sample
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(
            f"{path}: not a readable .eval archive ({error}); export it with `inspect log dump`"
        ) from error
