"""The step dataset: one row a step with its confidence, as parquet with a card, for `datasets`."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.distributed import is_writer
from caspo_jax.errors import UserError
from caspo_jax.steps import is_closed, is_flawed_correct
from caspo_jax.store import hash_path, replacing, writable, write_text
from caspo_jax.types import Trace

_CARD = Path(__file__).with_name("dataset_card.md")
_TAG = "step-confidence"  # which its cards have
# Rows written at once, a row group of the file; fewer where the prefixes of long thoughts have that many ids.
_PART, _PART_IDS = 10_000, 1 << 21
# Each prefix begins as the one before it: zstd finds that, if they are written as they are and not by a dictionary's numbers.
_REPEATING = ("prefix", "prefix_ids")

# name -> (type, what it is); a list is one of int32
COLUMNS: dict[str, tuple[str, str]] = {
    "trace_id": ("string", "id of the trace"),
    "question": ("string", "the question"),
    "gold": ("string", "its gold answer"),
    "prompt": ("string", "the rendered prompt, if recorded"),
    "step_index": ("int32", "place of the step in its trace, from 0"),
    "num_steps": ("int32", "steps of the trace"),
    "prefix": ("string", "text of the trace before the step"),
    "step": ("string", "text of the step, without its delimiter"),
    "confidence": ("float64", "the step confidence named above"),
    "entropy": ("float64", "mean token entropy of the step, nats"),
    "verdict": ("string", "correct, wrong or unknown: does the step follow from question and prefix?"),
    "verifier": ("string", "what gave the verdict"),
    "finished": ("bool", "false for a last step that a limit cut"),
    "answer": ("string", "answer of the whole trace"),
    "answer_correct": ("bool", "whether that answer is right"),
    "flawed_correct": ("bool", "right answer on a wrong step; null unless the answer is right"),
    "prompt_ids": ("list", "token ids of the prompt"),
    "prefix_ids": ("list", "token ids of the trace before the step"),
    "step_ids": ("list", "token ids of the step, delimiter included"),
    "policy": ("string", "the policy that wrote the trace"),
    "strategy": ("string", "how it was decoded"),
}


def step_rows(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """One dict of COLUMNS for each step."""
    return [
        {
            "trace_id": trace.id,
            "question": trace.question,
            "gold": trace.gold,
            "prompt": trace.prompt,
            "step_index": index,
            "num_steps": len(trace.steps),
            "prefix": trace.text[: step.start],
            "step": step.text,
            "confidence": step.confidence,
            "entropy": step.entropy,
            "verdict": step.verdict,
            "verifier": step.verifier,
            "finished": is_closed(trace, step),
            "answer": trace.answer,
            "answer_correct": trace.correct,
            "flawed_correct": is_flawed_correct(trace),
            "prompt_ids": list(trace.prompt_ids),
            "prefix_ids": list(trace.token_ids[: step.token_start]),
            "step_ids": list(trace.token_ids[step.token_start : step.token_end]),
            "policy": trace.policy,
            "strategy": trace.strategy,
        }
        for trace in traces
        for index, step in enumerate(trace.steps)
    ]


def check_step_dataset(directory: str | Path, overwrite: bool = False) -> None:
    """Refuses a folder whose README.md is no card of a step dataset: it would be lost.

    Raises:
      UserError: that, or a file where the folder should be.
    """
    card = Path(directory) / "README.md"
    if Path(directory).is_file():
        raise UserError(f"{directory} is a file: the step dataset needs a folder")
    if card.is_file() and not overwrite and f"- {_TAG}\n" not in card.read_text("utf-8", "replace"):
        raise UserError(f"{card} is not of a step dataset: use another folder or --overwrite")


def write_step_dataset(
    traces: Iterable[Trace],
    directory: str | Path,
    *,
    confidence: str = "entropy",
    title: str = "Step confidence",
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes `data/*.parquet` and `README.md`, so that `datasets.load_dataset(directory)` loads the steps.

    Args:
      traces: annotated.
      directory: made if need be; files of an earlier run are replaced, each in one move.
      confidence: name of the step confidence, for the card.
      title: of the card.
      overwrite: also replace a README.md that is not a card of a step dataset.

    Returns:
      Counts: `traces`, `steps`, and steps by verdict. Of several processes one writes.

    Raises:
      UserError: no trace has a step; a README.md of something else is there.
    """
    check_step_dataset(directory, overwrite)
    folder, seen = Path(directory) / "data", _Seen()
    parts = _parts(traces, seen)
    first = next(parts, None)
    if first is None:
        raise UserError(f"{directory}: no step to write: annotate the traces first")
    parts = itertools.chain([first], parts)
    del first  # with its prefixes
    if is_writer():
        file = _write_parts(parts, folder)
        write_text(Path(directory) / "README.md", _card(seen, confidence, title, f"data/{file.name}"))
        for old in folder.glob(f"train-{'[0-9a-f]' * 16}.parquet"):
            if old != file:
                old.unlink()
    collections.deque(parts, maxlen=0)  # where another process writes: to count
    return seen.counts()


@dataclasses.dataclass
class _Seen:
    """What the card says of all rows."""

    traces: int = 0
    verdicts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    confidences: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # by verdict
    strategies: set[str] = dataclasses.field(default_factory=set)
    verifiers: set[str] = dataclasses.field(default_factory=set)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """The rows of a trace."""
        self.traces += 1
        self.verdicts.update(row["verdict"] for row in rows)
        self.strategies.update(str(row["strategy"]) for row in rows if row["strategy"])
        self.verifiers.update(str(row["verifier"]) for row in rows if row["verifier"])
        for row in rows:
            if row["confidence"] is not None:
                self.confidences.setdefault(row["verdict"], []).append(row["confidence"])

    def counts(self) -> dict[str, int]:
        """Traces, steps, and steps by verdict."""
        by_verdict = {verdict: self.verdicts[verdict] for verdict in ("correct", "wrong", "unknown")}
        return {"traces": self.traces, "steps": self.verdicts.total(), **by_verdict}


def _parts(traces: Iterable[Trace], seen: _Seen) -> Iterator[list[dict[str, Any]]]:
    """The rows of all steps, `_PART` or a trace's more at a time: those of a whole run take gigabytes."""
    rows: list[dict[str, Any]] = []
    ids = 0
    for trace in traces:
        found = step_rows([trace])
        seen.add(found)
        rows += found
        ids += sum(len(row["prefix_ids"]) for row in found)
        if len(rows) >= _PART or ids >= _PART_IDS:
            yield rows
            rows, ids = [], 0
    if rows:
        yield rows


def _write_parts(parts: Iterable[list[dict[str, Any]]], folder: Path) -> Path:
    """The parquet file of the rows."""
    import pyarrow
    import pyarrow.parquet

    types = {
        "string": pyarrow.string(),
        "int32": pyarrow.int32(),
        "float64": pyarrow.float64(),
        "bool": pyarrow.bool_(),
        "list": pyarrow.list_(pyarrow.int32()),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, (kind, _) in COLUMNS.items()])
    new = folder / "train.parquet"
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [name for name in COLUMNS if name not in _REPEATING],
    }
    with (
        replacing(new) as temporary,
        pyarrow.parquet.ParquetWriter(temporary, schema, **options) as writer,
    ):
        for rows in parts:
            writer.write_table(pyarrow.Table.from_pylist([*map(_writable, rows)], schema))
    # `datasets` caches by the folder's name and what the card says, not by content: the file's name tells them apart.
    return new.rename(folder / f"train-{hash_path(new)[:16]}.parquet")


def _writable(row: dict[str, Any]) -> dict[str, Any]:
    """The row with texts that parquet can hold."""
    return {name: writable(value) if isinstance(value, str) else value for name, value in row.items()}


def _card(seen: _Seen, confidence: str, title: str, file: str) -> str:
    def mean(verdict: str) -> str:
        values = seen.confidences.get(verdict)
        return f"{np.mean(values):.4f}" if values else "-"

    counts = seen.counts()
    table = "\n".join(f"| {v} | {counts[v]} | {mean(v)} |" for v in ("correct", "wrong", "unknown"))
    columns = "\n".join(f"| `{name}` | {text} |" for name, (_, text) in COLUMNS.items())
    fields = {
        "title": title,
        "file": file,
        "steps": str(counts["steps"]),
        "traces": str(counts["traces"]),
        "confidence": confidence,
        "verdicts": table,
        "columns": columns,
        "strategies": ", ".join(sorted(seen.strategies)) or "not recorded",
        "verifiers": ", ".join(sorted(seen.verifiers)) or "none",
    }
    card = _CARD.read_text(encoding="utf-8")
    for name, value in fields.items():
        card = card.replace("{{" + name + "}}", value)
    return writable(card)
