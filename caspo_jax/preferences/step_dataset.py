"""The step dataset: one row a step with its confidence, as parquet with a card, for `datasets`."""

from __future__ import annotations

import collections
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.distributed import is_writer
from caspo_jax.errors import UserError
from caspo_jax.steps import is_closed, is_flawed_correct
from caspo_jax.store import write_bytes, write_text
from caspo_jax.types import Trace

_CARD = Path(__file__).with_name("dataset_card.md")
_TAG = "step-confidence"  # which its cards have

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
    "confidence": ("float64", "the step confidence named below"),
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
    traces: Sequence[Trace],
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
    rows = step_rows(traces)
    if not rows:
        raise UserError(f"{directory}: no step to write: annotate the traces first")
    verdicts = collections.Counter(row["verdict"] for row in rows)
    counts = {
        "traces": len(traces),
        "steps": len(rows),
        **{v: verdicts[v] for v in ("correct", "wrong", "unknown")},
    }
    if is_writer():
        folder = Path(directory) / "data"
        file = _write_rows(rows, folder)
        write_text(Path(directory) / "README.md", _card(rows, counts, confidence, title, f"data/{file.name}"))
        for old in folder.glob(f"train-{'[0-9a-f]' * 16}.parquet"):
            if old != file:
                old.unlink()
    return counts


def _write_rows(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
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
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), content)
    # `datasets` caches by the folder's name and what the card says, not by content: the file's name tells them apart.
    path = folder / f"train-{hashlib.sha256(content.getvalue()).hexdigest()[:16]}.parquet"
    write_bytes(path, content.getvalue())
    return path


def _card(
    rows: Sequence[dict[str, Any]], counts: dict[str, int], confidence: str, title: str, file: str
) -> str:
    def mean(verdict: str) -> str:
        values = [r["confidence"] for r in rows if r["verdict"] == verdict and r["confidence"] is not None]
        return f"{np.mean(values):.4f}" if values else "-"

    table = "\n".join(f"| {v} | {counts[v]} | {mean(v)} |" for v in ("correct", "wrong", "unknown"))
    columns = "\n".join(f"| `{name}` | {text} |" for name, (_, text) in COLUMNS.items())
    strategies = sorted({str(r["strategy"]) for r in rows if r["strategy"]})
    fields = {
        "title": title,
        "file": file,
        "steps": str(counts["steps"]),
        "traces": str(counts["traces"]),
        "confidence": confidence,
        "verdicts": table,
        "columns": columns,
        "strategies": ", ".join(strategies) or "not recorded",
        "verifiers": ", ".join(sorted({str(r["verifier"]) for r in rows if r["verifier"]})) or "none",
    }
    card = _CARD.read_text(encoding="utf-8")
    for name, value in fields.items():
        card = card.replace("{{" + name + "}}", value)
    return card
