"""What to say of, and keep from, an update whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.store import write_json
from caspo_jax.training.base_plan import Micro
from caspo_jax.training.data import RowStore
from caspo_jax.training.step_state import StepReport

FOLDER = "not_finite"
MOST_IN_A_ROW = 10  # skipped updates; more than that is no bad batch but a bad run
_SCHEMA = {"name": "not_finite", "version": 1}
_NAMED = 16  # verified steps in a message


def write_batch(
    folder: Path, number: int, report: StepReport, micros: Sequence[Micro], store: RowStore
) -> Path:
    """Write which pairs and verified steps an update read, and which of them gave no finite loss.

    The file is `not_finite/update_NUMBER.json`; a restart that repeats the update writes the same one.
    """
    guilty_pairs, guilty_verified = _guilty(report, micros)
    pairs = np.concatenate([m.pairs for m in micros])
    verified = np.concatenate([m.verified for m in micros])
    path = folder / FOLDER / f"update_{number:06d}.json"
    contents: dict[str, Any] = {
        "schema": _SCHEMA,
        "update": number,
        "skipped": report.skipped,
        "loss": str(report.metrics["loss"]),  # as text: JSON has no word for nan
        "grad_norm": str(report.metrics["grad_norm"]),
        "not_finite": {
            "pairs": [store.pair_ids[i] for i in guilty_pairs],
            "verified": guilty_verified.tolist(),
        },
        "batch": {
            "pairs": [store.pair_ids[i] for i in pairs[pairs >= 0]],
            "verified": verified[verified >= 0].tolist(),
        },
    }
    write_json(path, contents)
    return path


def describe(number: int, report: StepReport, micros: Sequence[Micro], store: RowStore) -> str:
    """One line: the update, its loss, and the rows to blame."""
    pairs, verified = _guilty(report, micros)
    blamed = "rows whose loss is not finite"
    if not len(pairs) and not len(verified):
        pairs, blamed = np.concatenate([m.pairs for m in micros]), "the batch"
    names = store.names(pairs[pairs >= 0])
    if len(verified):
        names += f"; verified steps {', '.join(map(str, verified[:_NAMED]))}"
    return (
        f"update {number}: loss {report.metrics['loss']}, gradient norm {report.metrics['grad_norm']}; "
        f"{blamed}: {names}"
    )


def _guilty(report: StepReport, micros: Sequence[Micro]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pairs and of the verified steps whose loss is not finite."""
    none = np.zeros(0, int)
    pairs = [m.pairs[~ok[: len(m.pairs)]] for m, ok in zip(micros, report.pair_finite)]
    steps = [m.verified[~ok[: len(m.verified)]] for m, ok in zip(micros, report.verified_finite) if len(ok)]
    return np.concatenate([none, *pairs]), np.concatenate([none, *steps])
