"""What every stage of a faithfulness report shares: its traces, its file, and when a file may be reused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.subjects import Subject
from caspo_jax.outputs import ROWS, JsonlOutput, Manifest, manifest_path, read_manifest
from caspo_jax.records import schema
from caspo_jax.store import parse_at, read_jsonl
from caspo_jax.types import Progress


@dataclasses.dataclass(frozen=True)
class Stage:
    """What every stage is given: the traces, where its file goes, and what decides whether a file may be reused."""

    subjects: Sequence[Subject]
    folder: Path
    settings: Mapping[str, Any]  # of the traces and the checkpoint
    overwrite: bool = False
    progress: Progress | None = None

    def open(self, name: str, **settings: Any) -> JsonlOutput:
        """The stage's JSONL with its manifest beside it."""
        path = self.folder / f"{name}.jsonl"
        manifest = Manifest.open(
            manifest_path(path),
            program=f"faithfulness/{name}",
            config={**self.settings, **settings},
            free=ROWS,
            overwrite=self.overwrite,
        )
        return JsonlOutput(path, manifest, schema=schema(f"faithfulness_{name}"))

    def report(self, done: int) -> None:
        """Move the progress bar."""
        if self.progress is not None:
            self.progress(done, len(self.subjects))


def read_stage(path: str | Path) -> dict[str, dict[str, Any]]:
    """The records of a stage's file by trace id; {} where the stage has not been run."""
    path = Path(path)
    if not path.exists():
        return {}
    return dict(parse_at(where, lambda r: (r["id"], r), record) for where, record in read_jsonl(path))


def check_settings(folder: str | Path, names: Sequence[str]) -> None:
    """See that the files of stages are of the traces and the checkpoint of the `traces.jsonl` beside them.

    A file of an earlier run may have been left where only some of the stages were run again. Without manifests nothing
    is known, and nothing is refused.

    Raises:
      UserError: a file of other traces, or by another checkpoint.
    """
    wanted = _settings_of(Path(folder) / "traces.jsonl")
    for name in names:
        path = Path(folder) / f"{name}.jsonl"
        found = _settings_of(path) if path.exists() else {}
        other = [key for key in wanted if key in found and found[key] != wanted[key]]
        if other:
            raise UserError(
                f"{path}: measured with other settings than traces.jsonl ({', '.join(other)}): run the stage `{name}` "
                "again with --overwrite, or delete the file"
            )


def _settings_of(path: Path) -> Mapping[str, Any]:
    return read_manifest(manifest_path(path)).get("config", {})


def finish(written: JsonlOutput, traces: int) -> None:
    """Close a stage's file, if it is not closed yet."""
    if not written.complete:
        written.finish(traces=traces)
