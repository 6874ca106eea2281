"""The stage of the linear probe on hidden states."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.confidence.forced import measure, plan_batches, steps_by_width
from caspo_jax.confidence.probe import Probe, cross_fitted_probe, fit_probe, load_probe, save_probe
from caspo_jax.evaluation.faithfulness.estimators import Values, unit_values
from caspo_jax.evaluation.faithfulness.stages.stage import Stage, finish
from caspo_jax.evaluation.faithfulness.subjects import Subject
from caspo_jax.store import hash_path


def probe_stage(
    stage: Stage,
    model: Any,
    verdicts: Mapping[str, Sequence[bool | None]],
    *,
    pretrained: str | Path | None = None,
    final_norm: bool = False,
    folds: int = 5,
    l2: float = 1.0,
    seed: int = 0,
) -> str | None:
    """The linear probe: `probe.jsonl`, {"id", "probe": [S]}, and the probe fitted on all steps in `probe/`.

    Without `pretrained` each step's value comes from a probe that has seen no step of its question.

    Args:
      stage: traces and folder.
      model: whose states are read.
      verdicts: trace id -> for each step whether it is right; None where unknown.
      pretrained: folder of a probe to use instead of fitting one.
      final_norm: read the states after the final norm.
      folds: of the split by question.
      l2: the probe's penalty.
      seed: of the split.

    Returns:
      Why there is no probe, or None.
    """
    readable = [s for s in stage.subjects if s.readable and s.trace.steps]
    known = [v for s in readable for v in verdicts.get(s.id, ()) if v is not None]
    questions = {s.group for s in readable}
    if pretrained is None and (len(set(known)) < 2 or len(questions) < 2):
        return "a probe needs right and wrong steps that the checkpoint can read, and two questions at least"
    labels = [[s.id, list(verdicts.get(s.id, ()))] for s in stage.subjects]
    loaded = None if pretrained is None else load_probe(pretrained)
    written = stage.open(
        "probe",
        pretrained=None if pretrained is None else hash_path(pretrained),
        final_norm=final_norm,
        folds=folds,
        l2=l2,
        seed=seed,
        **({"labels": _digest(labels)} if pretrained is None else {}),
    )
    if written.complete:
        return None
    features = _features(stage, model, readable, final_norm)
    if loaded is None:
        values = _fit_values(stage, readable, features, verdicts, folds, l2, seed, final_norm)
    else:
        values = {readable[i].id: unit_values(loaded.predict(found)) for i, found in features}
    written.append(
        [{"id": s.id, "probe": values.get(s.id, [None] * len(s.trace.steps))} for s in stage.subjects]
    )
    finish(written, len(stage.subjects))
    return None


def _fit_values(
    stage: Stage,
    readable: Sequence[Subject],
    features: Iterable[tuple[int, np.ndarray]],
    verdicts: Mapping[str, Sequence[bool | None]],
    folds: int,
    l2: float,
    seed: int,
    final_norm: bool,
) -> dict[str, Values]:
    ends = list(itertools.accumulate(len(s.trace.steps) for s in readable))
    x = np.empty((0, 0), np.float32)
    for i, found in features:  # into their place at once: of long thoughts they are gigabytes
        x = x if x.size else np.empty((ends[-1], found.shape[1]), np.float32)
        x[ends[i] - len(found) : ends[i]] = found
    right = np.array([np.nan if v is None else float(v) for s in readable for v in verdicts[s.id]])
    groups = [s.group for s in readable for _ in s.trace.steps]
    predicted = cross_fitted_probe(x, right, groups, folds=folds, l2=l2, seed=seed)
    settings = {"final_norm": final_norm, "l2": l2, "steps": int(np.sum(~np.isnan(right)))}
    whole: Probe = fit_probe(x, right, ~np.isnan(right), l2=l2, settings=settings)
    save_probe(whole, stage.folder / "probe")
    return {s.id: unit_values(predicted[end - len(s.trace.steps) : end]) for s, end in zip(readable, ends)}


def _features(
    stage: Stage, model: Any, readable: Sequence[Subject], final_norm: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """The index of each trace and its features [S, 2E], a batch of like lengths after another."""
    rows = [s.row() for s in readable]
    room = steps_by_width(rows)
    done = 0
    for batch in plan_batches(rows):
        measured = measure(
            model, [rows[i] for i in batch], rcc=False, features=True, final_norm=final_norm, room=room
        )
        yield from ((i, m.features) for i, m in zip(batch, measured, strict=True))
        done += len(batch)
        stage.report(done)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
