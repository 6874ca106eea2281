"""The near end of a benchmark: workers in processes of their own, run in turns (A B B A), and what their times say."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from experiments.common import MALLOC

# On a GPU both sides are alive at once: JAX must not take most of the memory beforehand.
_NO_POOL = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# A peer's glibc keeps what is freed, too: worth a half to PyTorch on a CPU, to caspo_jax nothing.
KEEPING = {
    **MALLOC,
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}


class Worker:
    """A module that serves (`bench_worker.serve`) in an interpreter of its own.

    Args:
      python: the interpreter.
      module: its name.
      arguments: of its command line.
      folder: the checkout whose module it is; default: this one.
      malloc: settings of the allocator, by default those that the training programs give themselves.
    """

    def __init__(
        self,
        python: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        folder: Path | None = None,
        malloc: Mapping[str, str] = MALLOC,
    ):
        found = shutil.which(python)
        if found is None:
            raise UserError(f"{python}: no such interpreter")
        self.name = module
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        environment = {**os.environ, **_NO_POOL, **malloc, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            # Absolute, as the folder may be another one; not resolved, as a link's own environment is meant.
            [os.path.abspath(found), "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=folder or Path(__file__).parent.parent,
            env=environment,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
          UserError: the worker died; gives the end of what it wrote to stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._log.seek(0)
            said = [text.strip() for text in self._log.read().splitlines() if text.strip()]
            raise UserError(f"{self.name} ended with {self._process.returncode}: {' | '.join(said[-3:])}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_turns(
    sides: Mapping[str, Callable[[], dict[str, Any]]],
    cycles: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Run every side 2 x `cycles` times in the order A B B A, so that a drift of the machine meets both alike.

    Args:
      sides: name -> what runs it once.
      cycles: how many times A B B A.
      progress: called after each run.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(cycles):
        for name in (*sides, *reversed(list(sides))):
            results[name].append(sides[name]())
            progress()
    return results


def median_of(runs: Sequence[Mapping[str, Any]], field: str) -> float:
    """The median of one field."""
    return statistics.median(float(run[field]) for run in runs)


def ratio_of(
    ours: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]], field: str
) -> dict[str, float]:
    """Peer's over ours, run by run in the order they were made: median, smallest, largest."""
    ratios = [float(b[field]) / float(a[field]) for a, b in zip(ours, peer, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    widths = [max(len(str(line[i])) for line in (columns, *rows)) for i in range(len(columns))]

    def text(cells: Sequence[str]) -> str:
        return "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths)) + " |"

    return "\n".join([text(columns), text(["-" * width for width in widths]), *map(text, rows)])


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was."""
    return {"cores": os.cpu_count(), "python": sys.version.split()[0], "load": list(os.getloadavg())}
