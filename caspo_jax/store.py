"""Files: atomic writes, JSON lines with errors that name file and line, content hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from caspo_jax.distributed import is_writer
from caspo_jax.errors import UserError

T = TypeVar("T")

_SURROGATE = re.compile("[\ud800-\udfff]")


def write_text(path: str | Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that a reader never sees half of it.

    Of several processes of a run (`caspo_jax.distributed`) the first writes.
    """
    if not is_writer():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Atomic `write_text` of indented JSON; NaN is refused rather than written as invalid JSON."""
    write_text(path, _json(value, indent=2) + "\n")


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Atomic write of a small safetensors file, readable by whoever the user's umask lets read.

    For large models see `models.safetensors_io`, which never holds all tensors at once.
    """
    from safetensors.numpy import save_file

    if not is_writer():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = temporary.stat().st_mode  # the user's umask; safetensors makes its files private
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, str(temporary), metadata
    )
    temporary.chmod(mode)
    os.replace(temporary, path)


def to_line(record: Mapping[str, Any]) -> str:
    """One JSONL line."""
    return _json(record, separators=(",", ":")) + "\n"


def _json(value: Any, **layout: Any) -> str:
    """JSON in plain characters, but for half a one: JSON can spell it, and a file cannot hold it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):x}", text)


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Atomic write of a whole JSONL file."""
    write_text(path, "".join(map(to_line, records)))


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file:line`, record) of every line.

    A byte-order mark, as editors on Windows write it, is no part of the first line.

    Raises:
      UserError: the file cannot be read, or a line is not a JSON object; names file:line.
    """
    path = Path(path)
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, opened here so that the error names the file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    with file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not raw.strip():
                continue
            try:
                text = (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).decode("utf-8")
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not valid JSON ({error})") from error
            if not isinstance(record, dict):
                raise UserError(f"{where}: expected a JSON object, found {type(record).__name__}")
            yield where, record


def load_records(path: str | Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """Read a JSONL file through `parse`; its errors gain the file:line."""
    return [parse_at(where, parse, record) for where, record in read_jsonl(path)]


def parse_at(where: str, parse: Callable[[dict[str, Any]], T], record: dict[str, Any]) -> T:
    """`parse(record)`, with `where` in front of what it complains about."""
    try:
        return parse(record)
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{where}: malformed record ({type(error).__name__}: {error})") from error


def hash_path(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's files (names and contents, hidden files and manifests left out)."""
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_file():
        _update_from_file(digest, path)
    elif path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if name.startswith(".") or name.endswith("manifest.json"):
                continue
            digest.update(name.encode() + b"\0")
            _update_from_file(digest, file)
    else:
        raise UserError(f"no such file or folder: {path}")
    return digest.hexdigest()


def _update_from_file(digest: Any, path: Path) -> None:
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
