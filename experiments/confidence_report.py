"""`evaluate --traces`: every named step and path confidence of a file of annotated traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.evaluation.confidence_items import Items, confidence_items
from caspo_jax.evaluation.confidences import COLUMNS, confidence_table, overview
from caspo_jax.evaluation.formats import write_table
from caspo_jax.evaluation.rescoring import token_statistics
from caspo_jax.outputs import Manifest, manifest_path
from caspo_jax.records import trace_from_record
from caspo_jax.store import load_records
from caspo_jax.training.stages import Policy
from caspo_jax.types import Trace
from experiments import common, result_files

_NO_VERDICT = "no step and no answer in it has a verdict: annotate the traces first"


def check_places(out: Path) -> None:
    """Refuses a folder that holds, at our output paths, files that this program did not write, or another run's report.

    Args:
      out: the folder.

    Raises:
      UserError: as `result_files.check_files` does.
    """
    tables = [f"confidences.{of}.{kind}" for of in ("steps", "paths") for kind in ("md", "csv", "json")]
    result_files.check_files([out / name for name in (*tables, "report.html")], _manifest(out))


def _manifest(out: Path) -> Path:
    return manifest_path(out / "confidences")


def report(policy: Policy, path: str, out: Path) -> None:
    """Write and print confidences.steps.* and confidences.paths.*."""
    traces, left_out = _read(policy, path)
    delimiter, seed = common.step_delimiter(policy), common.FLAGS.seed
    manifest = Manifest.open(
        _manifest(out),
        program="evaluate/traces",
        config={
            "policy": policy.hash,
            "dtype": str(policy.model.dtype),
            "delimiter": delimiter,
            "seed": seed,
        },
        inputs={"traces": path},
        overwrite=common.FLAGS.overwrite,
    )
    with common.Progress(len(traces), "token statistics", unit="trace") as progress:
        stats = token_statistics(policy.model, traces, progress=progress.reach)
    steps, paths = confidence_items(traces, policy.token_bytes, stats, delimiter)
    kinds = {"steps": steps, "paths": paths}
    if not any(items.right.size for items in kinds.values()):
        raise UserError(f"{path}: {_NO_VERDICT}")
    seen: dict[str, Any] = {"traces": len(traces), "left out, no ids": left_out}
    tables = _tables(kinds, seed)
    for kind, items in kinds.items():
        seen[kind] = _write(out, kind, tables[kind], items, seed) if kind in tables else "no verdicts"
    manifest.finish(**seen)
    common.closing(f"confidence tables in {out}", seen)


def _read(policy: Policy, path: str) -> tuple[list[Trace], int]:
    """The traces that the model can read, and how many it cannot; refuses what gives no table."""
    traces = load_records(path, trace_from_record)
    if not traces:
        raise UserError(f"{path}: no traces in it")
    other = next((t for t in traces if t.policy not in (None, policy.hash[:16])), None)
    if other is not None:
        raise UserError(
            f"{path}: trace {other.id!r} was written by policy {other.policy}, --model is {policy.hash[:16]}"
        )
    kept = [t for t in traces if t.token_ids and t.prompt_ids]
    if not kept:
        raise UserError(
            f"{path}: no trace in it has both `prompt_ids` and `token_ids`, which the model must read"
        )
    if not any(_has_verdict(t) for t in kept):
        raise UserError(f"{path}: {_NO_VERDICT}")
    return kept, len(traces) - len(kept)


def _has_verdict(trace: Trace) -> bool:
    return trace.correct is not None or any(step.verdict != "unknown" for step in trace.steps)


def _tables(kinds: Mapping[str, Items], seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of each kind that has verdicts."""
    judged = {kind: items for kind, items in kinds.items() if items.right.size}
    total = sum(len(items.scores) + 1 for items in judged.values())  # and the length
    # One count for both tables: printed in between they would cut the bar in two.
    with common.Progress(total, "tables", unit="confidence") as progress:
        return {
            kind: confidence_table(items, seed=seed, progress=lambda *_: progress.update())
            for kind, items in judged.items()
        }


def _write(out: Path, kind: str, rows: Sequence[dict[str, Any]], items: Items, seed: int) -> str:
    """Writes and prints a table; what the closing summary says of it."""
    from caspo_jax.evaluation.formats import tables

    head = overview(items, seed=seed)
    write_table(out / f"confidences.{kind}", rows, COLUMNS, overview=head)
    facts = (f"{k.replace('_', ' ')} {'-' if np.isnan(v) else f'{v:.4g}'}" for k, v in head.items())
    common.say(f"{kind}: {', '.join(facts)}")
    common.say(f"{tables(rows, COLUMNS)}\n")
    return f"{head['items']:,} with a verdict, {head['questions']:,} questions"
