"""Rows of a benchmark: from the hub at a pinned revision, or from a copy on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError, first_line
from caspo_jax.store import read_jsonl


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset on the Hugging Face hub.

    Attributes:
      dataset: its id.
      split: of the dataset.
      revision: commit that is read; None is the newest.
      licence: of the questions, as the dataset's card or its authors state it.
      config: configuration, where it has several.
      files: JSONL files of the repository that are read as they stand, where its own loading needs a script.
    """

    dataset: str
    split: str
    revision: str | None
    licence: str
    config: str | None = None
    files: tuple[str, ...] = ()


def rows(source: Source, path: str | Path | None, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where it stands, row).

    Args:
      source: the dataset.
      path: None reads from the hub. Else a JSONL or parquet file; a folder that holds `NAME.jsonl`, `NAME_SPLIT.jsonl` or
        the dataset's own name with `.jsonl`; what `save_to_disk` wrote; or a clone of the hub repository.
      name: of the benchmark.

    Raises:
      UserError: it cannot be read; names what and why.
    """
    if path is None:
        yield from _from_hub(source, name)
        return
    path = Path(path)
    file = _file(path, name, source)
    if file is not None:
        yield from read_jsonl(file)
    elif path.is_dir() or path.suffix == ".parquet":
        yield from _from_disk(path, source)
    elif path.exists():
        raise UserError(f"{path}: a benchmark is a .jsonl or .parquet file, or a folder")
    else:
        raise UserError(f"no such file or folder: {path}")


def _file(path: Path, name: str, source: Source) -> Path | None:
    if path.is_file():
        return path if path.suffix in (".jsonl", ".json") else None
    names = (name, f"{name}_{source.split}", source.dataset.split("/")[-1])
    return next((file for n in names if (file := path / f"{n}.jsonl").is_file()), None)


def _from_hub(source: Source, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    where = f"{source.dataset}[{source.split}]"
    try:
        if source.files:
            base = f"hf://datasets/{source.dataset}@{source.revision or 'main'}"
            files = [f"{base}/{file}" for file in source.files]
            found = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
        else:
            found = datasets.load_dataset(
                source.dataset, source.config, split=source.split, revision=source.revision, streaming=True
            )
        for number, row in enumerate(found):
            yield f"{where} row {number}", row
    except UserError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{name}: cannot read {where} from the hub ({first_line(error)}): give a local copy, --data={name}=PATH"
        ) from error


def _from_disk(path: Path, source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    try:
        if path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        elif (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(path))[source.split]
        elif (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
        elif source.files and (path / source.files[0]).is_file():
            for file in source.files:
                yield from read_jsonl(path / file)
            return
        else:
            found = datasets.load_dataset(str(path), source.config, split=source.split, streaming=True)
        for number, row in enumerate(found):
            yield f"{path} row {number}", row
    except UserError:
        raise
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{path}: cannot be read as a dataset ({first_line(error)})") from error
