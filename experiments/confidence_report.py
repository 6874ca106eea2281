"""`evaluate --traces`: every named step and path confidence of a file of annotated traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import common, result_files

_NO_VERDICT = "no step and no answer in it has a verdict: annotate the traces first"


def check_places(out: Path) -> None:
    """Refuses a folder that holds files of somebody else in the places of ours, or another run's report.

    Args:
      out: the folder.

    Raises:
      UserError: as `result_files.check_files` does.
    """
    tables = [f"confidences.{of}.{kind}" for of in ("steps", "paths") for kind in ("md", "csv", "json")]
    result_files.check_files([out / name for name in (*tables, "report.html")], _manifest(out))


def _manifest(out: Path) -> Path:
    from caspo_jax.outputs import manifest_path

    return manifest_path(out / "confidences")


def _has_verdict(trace: Any) -> bool:
    return trace.correct is not None or any(step.verdict != "unknown" for step in trace.steps)


def report(policy: Any, path: str, out: Path) -> None:
    """Write and print confidences.steps.* and confidences.paths.*."""
    from caspo_jax.errors import UserError
    from caspo_jax.evaluation import confidences
    from caspo_jax.evaluation.confidence_items import confidence_items
    from caspo_jax.evaluation.formats import tables, write_table
    from caspo_jax.evaluation.rescoring import token_statistics
    from caspo_jax.outputs import Manifest
    from caspo_jax.records import trace_from_record
    from caspo_jax.store import load_records

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
    with common.Progress(len(kept), "token statistics", unit="trace") as progress:
        stats = token_statistics(policy.model, kept, progress=progress.reach)
    found = confidence_items(kept, policy.token_bytes, stats, delimiter)
    if not any(items.right.size for items in found):
        raise UserError(f"{path}: {_NO_VERDICT}")
    seen: dict[str, Any] = {"traces": len(kept), "left out, no ids": len(traces) - len(kept)}
    kinds = dict(zip(("steps", "paths"), found))
    total = sum(len(items.scores) + 1 for items in found if items.right.size)  # and the length
    made: dict[str, list[dict[str, Any]]] = {}
    # One count for both tables: printed in between they would cut the bar in two.
    with common.Progress(total, "tables", unit="confidence") as progress:
        for kind, items in kinds.items():
            if items.right.size:
                made[kind] = confidences.confidence_table(
                    items, seed=seed, progress=lambda *_: progress.update()
                )
    for kind, items in kinds.items():
        if kind not in made:
            seen[kind] = "no verdicts"
            continue
        rows, head = made[kind], confidences.overview(items, seed=seed)
        write_table(out / f"confidences.{kind}", rows, confidences.COLUMNS, overview=head)
        common.say(
            f"{kind}: "
            + ", ".join(
                f"{k.replace('_', ' ')} {'-' if np.isnan(v) else f'{v:.4g}'}" for k, v in head.items()
            )
        )
        common.say(f"{tables(rows, confidences.COLUMNS)}\n")
        seen[kind] = f"{head['items']:,} with a verdict, {head['questions']:,} questions"
    manifest.finish(**seen)
    common.closing(f"confidence tables in {out}", seen)
