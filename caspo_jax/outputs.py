"""Outputs that survive a kill: manifests that decide what a restart may reuse, and JSONL that grows by whole lines."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.distributed import barrier, is_writer, writer_first
from caspo_jax.errors import UserError
from caspo_jax.locks import hold, release
from caspo_jax.store import hash_path, read_json, read_jsonl, to_line, write_json

# Settings that say how many rows go together: another number changes the last bits of what is computed, and no more.
ROWS = ("batch_size", "verifier_settings.decoding.batch_size")
_VERSIONED = ("caspo_jax", "jax", "flax", "optax", "transformers", "numpy")


class Manifest:
    """What made an output: config, seed, input hashes, versions; beside counts and seconds once it is complete."""

    def __init__(self, path: Path, contents: dict[str, Any]):
        self.path = path
        self.contents = contents
        self.overwrite = False  # whatever stands in the output's place may go
        self._started = time.monotonic()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        program: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str | Path | None] | None = None,
        free: Collection[str] = (),
        overwrite: bool = False,
    ) -> Manifest:
        """Start a manifest, or take up the one that is there; no other process may until it is finished.

        Args:
          path: the manifest's own path.
          program: the program's name.
          config: every setting that shapes the output, as plain JSON values. Hashes among them stand with the inputs too.
          inputs: name -> file or folder whose contents shape the output; hashed.
          free: dotted names of settings in which a restart may differ; the manifest keeps what the run was begun with.
          overwrite: forget an earlier run with other settings; one with the same settings is taken up all the same.

        Raises:
          UserError: an earlier run had other settings and `overwrite` is off (names the keys that differ), another process
            is writing the output, or a setting is infinite or no number.
        """
        path = Path(path)
        with writer_first(f"manifest {path.name}"), contextlib.ExitStack() as unless_begun:
            settings = json.loads(json.dumps(dict(config)))
            _check_finite(settings)
            hashes = {k: v for k, v in settings.items() if re.fullmatch("[0-9a-f]{64}", str(v))}
            hashes |= {name: hash_path(p) for name, p in (inputs or {}).items() if p is not None}
            wanted = {"program": program, "config": settings, "inputs": hashes}
            if hold(path):
                unless_begun.callback(release, path)
            manifest = cls._open(path, wanted, free, overwrite)
            if not manifest.complete:
                unless_begun.pop_all()
            return manifest

    @classmethod
    def _open(cls, path: Path, wanted: dict[str, Any], free: Collection[str], overwrite: bool) -> Manifest:
        if path.exists():
            try:
                found = read_manifest(path)
            except UserError:
                if not overwrite:
                    raise
                found = {}
            other = found.get("program", wanted["program"])
            if other != wanted["program"] and not overwrite:
                raise UserError(
                    f"{path} is of {other!r}, and {wanted['program']!r} would write here: use another output or --overwrite"
                )
            differing = _differences(_compared(wanted), _compared(found), free)
            if differing and not overwrite:
                raise UserError(
                    f"{path} was written with other settings ({'; '.join(differing)}): "
                    "use another output or --overwrite"
                )
            if not differing:  # taken up also to overwrite: the same command again must go on, not start anew
                manifest = cls(path, found)
                manifest.overwrite = overwrite
                return manifest
        versions = {name: importlib.metadata.version(name) for name in _VERSIONED}
        begun = {"versions": versions, "complete": False, "counts": {}, "seconds": 0.0}
        manifest = cls(path, wanted | begun)
        manifest.overwrite = overwrite
        manifest.save()
        return manifest

    @property
    def complete(self) -> bool:
        """Did the run that wrote this finish?"""
        return bool(self.contents.get("complete"))

    def save(self) -> None:
        """Write the manifest."""
        write_json(self.path, self.contents)

    def finish(self, **counts: Any) -> None:
        """Mark the output complete, with what was counted and the seconds of the process that completed it, and release it.

        Where it is complete with these counts already, the seconds of that run stay.
        """
        if self.complete and self.contents["counts"] == counts:
            return
        self.contents["counts"] = counts
        self.contents["seconds"] = round(time.monotonic() - self._started, 3)
        self.contents["complete"] = True
        self.save()
        release(self.path)
        barrier(f"{self.path.name} complete")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What a manifest holds; {} where there is none.

    Raises:
      UserError: it cannot be read, or is no manifest.
    """
    if not Path(path).exists():
        return {}
    try:
        contents = read_json(path)
    except UserError as error:
        raise UserError(f"{error}: remove this manifest or use --overwrite") from error
    if not isinstance(contents.get("config", {}), dict):
        raise UserError(f"{path}: not a manifest: remove it or use --overwrite")
    return contents


def _compared(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same to go on: of the inputs those that are not among the settings already."""
    config, inputs = (manifest.get(name) or {} for name in ("config", "inputs"))
    own = {name: value for name, value in inputs.items() if config.get(name) != value}
    return {"program": manifest.get("program"), "config": config, "inputs": own}


def _check_finite(value: Any, name: str = "") -> None:
    """Refuses numbers that JSON does not hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_finite(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            _check_finite(inner, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value}: give a finite number")


def _differences(wanted: Any, found: Any, free: Collection[str], prefix: str = "") -> list[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [
            line
            for key in sorted(wanted.keys() | found.keys())
            for line in _differences(wanted.get(key), found.get(key), free, f"{prefix}{key}.")
        ]
    name = prefix.rstrip(".").removeprefix("config.")
    if wanted == found or name in free:
        return []
    if name.startswith("inputs."):
        return [f"{name}: the contents changed"]
    return [f"{name}: {found!r} then, {wanted!r} now"]


class JsonlOutput:
    """A JSONL file under construction: `FILE.partial` grows by whole lines and becomes `FILE` at the end.

    Opening it again after a kill drops a torn last line and knows which ids are done. `schema` goes in front of every
    record that has none of its own.

    Raises:
      UserError: a file is there that no manifest knows, or beside what an unfinished run wrote: somebody's own, left as
        it is unless overwriting is asked for.
    """

    def __init__(
        self,
        path: str | Path,
        manifest: Manifest,
        *,
        key: str = "id",
        schema: Mapping[str, Any] | None = None,
    ):
        self.path = Path(path)
        self.manifest = manifest
        self.done: set[str] = set()
        self._partial = _partial_of(self.path)
        self._key = key
        self._front = {} if schema is None else {"schema": dict(schema)}
        with writer_first(f"output {self.path.name}"):
            self._open()

    def _open(self) -> None:
        if self.complete:
            return
        hold(self.manifest.path)  # again, where the manifest is complete but the file is gone
        if is_writer():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.manifest.contents.get("started"):
                if self.path.exists() and not self.manifest.overwrite:
                    self.manifest.path.unlink(missing_ok=True)
                    release(self.manifest.path)
                    raise _not_ours(self.path)
                self._partial.unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)
                self.manifest.contents["started"] = True
                self.manifest.save()
            if self.path.exists():
                self._begin_from_whole()
        self._recover()

    def _begin_from_whole(self) -> None:
        """Takes up a run that was killed between the rename and the manifest's last save: it left no partial file."""
        if not self._partial.exists():
            os.replace(self.path, self._partial)
        elif self.manifest.overwrite:
            self.path.unlink()
        else:
            release(self.manifest.path)
            raise UserError(
                f"{self.path} is there, though the run that writes it is at {self._partial} still: move it away, "
                "or use --overwrite, which removes it and goes on"
            )

    @property
    def complete(self) -> bool:
        """Is there nothing left to do?"""
        return self.manifest.complete and self.path.exists()

    def _recover(self) -> None:
        if not self._partial.exists():
            return
        whole, torn = 0, False
        with open(self._partial, "rb") as file:
            for number, line in enumerate(file, start=1):
                if torn := not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    self.done.add(str(json.loads(line)[self._key]))
                except (ValueError, TypeError, KeyError) as error:
                    raise UserError(
                        f"{self._partial}:{number}: a damaged line in an output that was begun: "
                        "remove this line and what comes after it, or use --overwrite"
                    ) from error
        if torn and is_writer():
            with open(self._partial, "r+b") as file:
                file.truncate(whole)

    def records(self) -> list[dict[str, Any]]:
        """Everything that is in the file so far, the same in every process."""
        barrier(f"{self.path.name} appended")
        file = self.path if self.complete else self._partial
        found = [record for _, record in read_jsonl(file)] if file.exists() else []
        barrier(f"{self.path.name} read")  # before anything is added, or the file renamed
        return found

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records that are not there yet, the first of each id, as whole lines, flushed to the disk."""
        lines: dict[str, str] = {}
        for record in records:
            name = str(record[self._key])
            if name not in self.done and name not in lines:
                lines[name] = to_line({**self._front, **record})
        if is_writer():
            with open(self._partial, "ab") as file:
                file.write("".join(lines.values()).encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        self.done.update(lines)

    def finish(self, **counts: Any) -> None:
        """Give the file its name and complete the manifest."""
        if is_writer():
            self._partial.touch()
            os.replace(self._partial, self.path)
        self.manifest.finish(**counts)


def discard_unfinished(path: str | Path) -> None:
    """Deletes the partial file and the manifest of a `JsonlOutput` of `path` that was only scratch space."""
    path = Path(path)
    barrier(f"{path.name} used")
    if is_writer():
        _partial_of(path).unlink(missing_ok=True)
        manifest_path(path).unlink(missing_ok=True)
        release(manifest_path(path))


def _partial_of(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def check_own(path: str | Path, overwrite: bool = False, manifest: Path | None = None) -> None:
    """Refuses a file that is there without a manifest: for outputs that are written whole, before the work.

    Args:
      path: the file.
      overwrite: whether it may go all the same.
      manifest: the one that would know it; default: its own, beside it.

    Raises:
      UserError: it is somebody's own, and overwriting was not asked for.
    """
    known = (manifest or manifest_path(path)).exists()
    if Path(path).exists() and not known and not overwrite:
        raise _not_ours(Path(path))


def _not_ours(path: Path) -> UserError:
    known = "no manifest beside it says that this program wrote it"
    return UserError(f"{path} is there, and {known}: use another output or --overwrite")


def manifest_path(output: str | Path, *, folder: bool = False) -> Path:
    """`FILE.manifest.json` beside a file, whatever suffix it has or lacks; `DIR/manifest.json` in a folder."""
    output = Path(output)
    if not folder and (output.name in ("", "..") or output.is_dir()):
        raise UserError(f"the output {str(output)!r} is a folder: give the name of a file")
    return output / "manifest.json" if folder else output.with_name(output.name + ".manifest.json")
