"""Pairs to a trained state, and a trained state to a policy folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from caspo_jax.distributed import writer_first
from caspo_jax.errors import UserError
from caspo_jax.models import save_pretrained
from caspo_jax.preferences.packing import Row
from caspo_jax.records import trace_from_record
from caspo_jax.store import Manifest, hash_path, load_records, manifest_path
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.loop import train
from caspo_jax.training.restore import description_of, restore_trained
from caspo_jax.training.stages.pairs import read_pairs, verified_traces
from caspo_jax.training.stages.policy import Policy


def train_stage(
    policy: Policy,
    pairs: str | Path,
    annotated: str | Path | None,
    run: str | Path,
    config: TrainConfig,
    *,
    overwrite: bool = False,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Pairs to a trained state, checkpointed in `run`.

    Args:
      policy: where training starts, and the reference.
      pairs: JSONL of pairs: ours, or Step-DPO-10K or TRL records, which are tokenised here.
      annotated: JSONL of annotated traces, for losses that read verified steps.
      run: folder of checkpoints, metrics and manifest.
      config: the recipe.
      overwrite: start anew if the run was begun with other settings.
      progress: called with (updates done, updates in all, **metrics).

    Returns:
      What the manifest counts: updates, pairs, verified rows, tokens, last metrics.
    """
    run = Path(run)
    if config.loss.uses_verified and annotated is None:
        raise UserError(
            f"loss={config.loss.loss}, nll_on={config.loss.nll_on} reads verified steps: give annotated traces"
        )
    settings = {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "train": dataclasses.asdict(config),
        "pairs": hash_path(pairs),
        "annotated": hash_path(annotated) if annotated is not None and config.loss.uses_verified else None,
    }
    with writer_first("old run"):
        if overwrite and run.exists() and _differs(run, settings):
            shutil.rmtree(run)
    manifest = Manifest.open(manifest_path(run), program="train", config=settings, overwrite=overwrite)
    if manifest.complete:
        return manifest.contents["counts"]
    loaded = read_pairs(pairs, policy.tokenizer, policy.settings.get("step_delimiter", "\n\n"))
    rows: list[Row] = []
    if config.loss.uses_verified and annotated is not None:
        rows = verified_traces(load_records(annotated, trace_from_record))
    callback = None
    if progress is not None:

        def callback(record: Mapping[str, Any]) -> None:
            shown = {"margin": record.get("rewards/margin"), "chosen": record.get("logps/chosen")}
            progress(int(record["step"]), int(record["steps"]), loss=record["loss"], **shown)

    _, summary = train(policy.model, loaded, config, verified=rows, out_dir=run, callback=callback)
    counts = {
        "updates": summary.steps,
        "pairs": summary.pairs,
        "verified_rows": summary.verified,
        "tokens": summary.tokens,
        "last": {
            k: round(float(v), 6)
            for k, v in summary.last.items()
            if isinstance(v, (int, float)) and k not in ("seconds", "tokens_per_second")
        },
    }
    manifest.finish(**counts)
    return counts


def _differs(run: Path, settings: Mapping[str, Any]) -> bool:
    path = manifest_path(run)
    if not path.is_file():
        return True
    return json.loads(path.read_text(encoding="utf-8")).get("config") != json.loads(json.dumps(settings))


def export_stage(policy: Policy, run: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """The newest checkpoint of a run to a policy folder in Hugging Face layout.

    Args:
      policy: the policy that the run started from; its tokenizer, configuration and caspo.json go along.
      run: folder of a training run.
      output: the policy folder.
      overwrite: replace a folder that another run's export wrote.
    """
    output = Path(output)
    settings = {"policy": policy.hash, "run": hash_path(description_of(run))}
    if manifest_path(output).exists():
        manifest = Manifest.open(
            manifest_path(output), program="export", config=settings, overwrite=overwrite
        )
        if manifest.complete:
            return output
    model, updates = restore_trained(policy.model, run)
    save_pretrained(model, policy.tokenizer, output, caspo=policy.settings or None)
    manifest = Manifest.open(manifest_path(output), program="export", config=settings)
    manifest.finish(updates=updates)
    return output
