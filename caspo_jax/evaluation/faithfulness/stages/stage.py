"""What every stage of a faithfulness report shares: its traces, its file, and when a file may be reused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.evaluation.faithfulness.subjects import Subject
from caspo_jax.store import JsonlOutput, Manifest, manifest_path, read_jsonl

Progress = Callable[[int, int], None]  # (done, in all)


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
            overwrite=self.overwrite,
        )
        return JsonlOutput(path, manifest)

    def report(self, done: int) -> None:
        """Move the progress bar."""
        if self.progress is not None:
            self.progress(done, len(self.subjects))


def read_stage(path: str | Path) -> dict[str, dict[str, Any]]:
    """The records of a stage's file by trace id; {} where the stage has not been run."""
    path = Path(path)
    return {record["id"]: record for _, record in read_jsonl(path)} if path.exists() else {}


def finish(written: JsonlOutput, traces: int) -> None:
    """Close a stage's file, if it is not closed yet."""
    if not written.complete:
        written.finish(traces=traces)
