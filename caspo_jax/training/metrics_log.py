"""Metrics of a run: one JSONL line an update, and TensorBoard events beside them."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caspo_jax.distributed import is_writer, writer_first
from caspo_jax.store import write_text

SCHEMA = {"name": "metrics", "version": 1}


class MetricsWarning(UserWarning):
    """Metrics of a run could not be read and are left out; what is trained does not depend on them."""


class MetricsLog:
    """Appends updates' metrics; opened again, it drops what came after the checkpoint it resumes from."""

    def __init__(self, folder: Path, *, resume_after: int, tensorboard: bool):
        if is_writer():
            folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        with writer_first("metrics"):
            self.history = self._recover(resume_after)
        name = self.path if is_writer() else Path(os.devnull)
        self._file = open(name, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._writer: Any = None
        if tensorboard and is_writer():
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_after + 1)

    def _recover(self, last: int) -> list[dict[str, Any]]:
        """The records up to update `last`, without damaged lines; the file is cut to them."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, start=1):
            record = _record(line)
            if record is None and number < len(lines):  # the last one is what a kill leaves
                warnings.warn(
                    f"{self.path}:{number}: a damaged line: this update's metrics are left out",
                    MetricsWarning,
                    stacklevel=3,
                )
            if record is not None and record["step"] <= last:
                kept.append(record)
        if len(kept) < len(lines):
            write_text(self.path, "".join(_line(record) for record in kept))
        return kept

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one update's record (it has a `step`)."""
        full = {"schema": SCHEMA, **{name: _finite_or_null(value) for name, value in record.items()}}
        self.history.append(full)
        self._file.write(_line(full))
        self._file.flush()
        if self._writer is not None:
            for name, value in full.items():
                if name not in ("schema", "step") and value is not None:
                    self._writer.add_scalar(name, value, full["step"])

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a whole line; None if the line is damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _finite_or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
