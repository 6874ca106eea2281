"""Files: atomic writes, JSON lines with errors that name file and line, content hashes."""

from __future__ import annotations

import contextlib
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

S = TypeVar("S")
T = TypeVar("T")

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 cannot


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file to write, which takes the name `path` when the body ends, so that a reader never sees half of it.

    It is on the disk by then; on an exception it is removed, and what was there stays. The caller sees to it that one
    process writes (`is_writer`).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Atomic write (`replacing`); of several processes of a run (`caspo_jax.distributed`) the first writes."""
    if is_writer():
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Atomic `write_bytes` of text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Atomic `write_text` of indented JSON; NaN is refused rather than written as invalid JSON."""
    write_text(path, _json(value, indent=2) + "\n")


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Atomic `write_bytes` of a small safetensors file.

    For large models see `models.safetensors_io`, which never holds all tensors at once.
    """
    from safetensors.numpy import save

    # Not `save_file`, which keeps its files from everybody but the user, whatever the umask says.
    write_bytes(path, save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata))


def to_line(record: Mapping[str, Any]) -> str:
    """One JSONL line."""
    return _json(record, separators=(",", ":")) + "\n"


def _json(value: Any, **layout: Any) -> str:
    """JSON whose characters stand unescaped, except lone surrogates, which UTF-8 cannot encode."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    return LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):x}", text)


def writable(text: str) -> str:
    """The text with U+FFFD for every lone surrogate, which JSON can spell and no other file can hold."""
    return LONE_SURROGATE.sub("\ufffd", text)


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Atomic write of a whole JSONL file, a record at a time; of several processes of a run the first writes."""
    if is_writer():
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.writelines(to_line(record).encode("utf-8") for record in records)


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


def read_value(path: str | Path) -> Any:
    """The JSON value that a file holds; a byte-order mark is no part of it.

    Raises:
      UserError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UserError as `read_value` does, and for any other value."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def load_records(path: str | Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """Read a JSONL file through `parse`; its errors gain the file:line."""
    return list(each_record(path, parse))


def each_record(path: str | Path, parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """What `load_records` reads, one after the other: a run's traces take a few gigabytes where all are kept."""
    return (parse_at(where, parse, record) for where, record in read_jsonl(path))


def parse_at(where: str, parse: Callable[[S], T], record: S) -> T:
    """`parse(record)`, with `where` in front of what it complains about."""
    try:
        return parse(record)
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{where}: malformed record ({type(error).__name__}: {error})") from error


def short_hash(text: str) -> str:
    """The first 16 hex digits of a text's SHA-256: a name that is the same on every machine and in every process."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def hash_path(path: str | Path, only: re.Pattern[str] | None = None) -> str:
    """SHA-256 of a file, or of a folder's files (names and contents, hidden files and manifests left out).

    Args:
      path: the file or folder.
      only: which of the files in a folder, by their path below it; default: all.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_file():
        _update_from_file(digest, path)
    elif path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if any(part.startswith(".") for part in name.split("/")) or name.endswith("manifest.json"):
                continue
            if only is not None and not only.fullmatch(name):
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
