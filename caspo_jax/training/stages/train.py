"""Pairs to a trained state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.distributed import writer_first
from caspo_jax.errors import UserError
from caspo_jax.locks import held
from caspo_jax.models.lora import check_rank
from caspo_jax.outputs import Manifest, manifest_path, read_manifest
from caspo_jax.preferences.packing import Row
from caspo_jax.preferences.selection import REASONS
from caspo_jax.store import hash_path
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.loop import TrainSummary, train
from caspo_jax.training.run_folder import clear_folder
from caspo_jax.training.stages.pairs import read_pairs, verified_row, verified_traces
from caspo_jax.training.stages.policy import Policy
from caspo_jax.types import Pair

# Of what the stage of pairs counts, why candidates came into none.
_REASONS = (
    "unverified_prefix",
    "flawed_prefix",
    "unknown_verdict",
    "no_confidence",
    "conflicting_verdict",
    "duplicate_ids",
    "duplicate_text",
    *REASONS,
)


def train_stage(
    policy: Policy,
    pairs: str | Path,
    annotated: str | Path | None,
    run: str | Path,
    config: TrainConfig,
    *,
    delimiter: str | None = None,
    reference_cache: str | Path | None = None,
    overwrite: bool = False,
    donate: bool = False,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Pairs to a trained state, checkpointed in `run`.

    Args:
      policy: where training starts, and the reference.
      pairs: JSONL of pairs: ours, or Step-DPO-10K or TRL records, which are tokenised here.
      annotated: JSONL of annotated traces, for losses that read verified steps.
      run: folder of checkpoints, metrics and manifest.
      config: the recipe.
      delimiter: what ends the steps of pairs that are tokenised here; default the policy's own, else two newlines.
      reference_cache: folder of reference log-probs that runs share; default the run's own.
      overwrite: start anew if the run was begun with other settings; nothing but that run is removed.
      donate: give up the policy's weights to the updates, if there are any to be done (see `train`).
      progress: called with (updates done, updates in all, **metrics), and before the first update with `reference`, how
        many of the pairs have their reference log-probs; before the number of updates is known (None) with `reading`, how
        many pairs were read.

    Returns:
      What the manifest counts: updates, pairs, verified rows, tokens, last metrics.
    """
    run = Path(run)
    if config.loss.uses_verified and annotated is None:
        raise UserError(
            f"loss={config.loss.loss}, nll_on={config.loss.nll_on} reads verified steps: give traces as `annotated`"
        )
    if config.lora is not None:
        check_rank(policy.model.config, config.lora)  # before the run has a manifest that says so
    # rft goes on without: a round in which no step was wrong has no pairs. sft trains on what DPO would, to be its control.
    needed = config.loss.uses_pairs
    on_read = None if progress is None else lambda count: progress(0, None, reading=f"{count:,} pairs")
    loaded, left_out = read_pairs(pairs, policy, delimiter, required=needed, progress=on_read)
    if needed and not loaded:
        raise UserError(f"{pairs}: no pairs in it: nothing to train on{_why(pairs)}")
    rows: list[Row] = []
    if config.loss.uses_verified and annotated is not None:
        rows = verified_traces(policy.each_trace(annotated, check=verified_row))
    settings = {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "train": config.shaping(),
        "pairs": hash_path(pairs),
        "annotated": hash_path(annotated) if annotated is not None and config.loss.uses_verified else None,
        **({} if delimiter is None else {"delimiter": delimiter}),
    }
    where = manifest_path(run, folder=True)
    with held(where):
        with writer_first("old run"):
            if overwrite and _differs(run, settings):
                clear_folder(run)
        manifest = Manifest.open(where, program="train", config=settings, overwrite=overwrite)
        if not manifest.complete:
            summary = _train(policy, loaded, rows, run, config, reference_cache, donate, progress)
            manifest.finish(**_counts(summary, left_out))
    return manifest.contents["counts"]


def _train(
    policy: Policy,
    pairs: Sequence[Pair],
    verified: Sequence[Row],
    run: Path,
    config: TrainConfig,
    reference_cache: str | Path | None,
    donate: bool,
    progress: Callable[..., None] | None,
) -> TrainSummary:
    callback, on_reference = None, None
    if progress is not None:

        def callback(record: Mapping[str, Any]) -> None:
            shown = {"margin": record.get("rewards/margin"), "chosen": record.get("logps/chosen")}
            progress(int(record["step"]), int(record["steps"]), loss=record["loss"], **shown)

        def on_reference(done: int, total: int, updates: int) -> None:
            progress(0, updates, reference=f"{done:,} of {total:,} pairs")

    _, summary = train(
        policy.model,
        pairs,
        config,
        verified=verified,
        reference_cache=reference_cache,
        out_dir=run,
        donate=donate,
        callback=callback,
        on_reference=on_reference,
    )
    return summary


def _why(pairs: str | Path) -> str:
    """What became of the candidates instead, if the stage of pairs wrote the file; the most frequent first."""
    counts = read_manifest(manifest_path(pairs)).get("counts") or {}
    found = sorted(((counts.get(reason, 0), reason) for reason in _REASONS), reverse=True)
    said = [f"{count:,} {reason.replace('_', ' ')}" for count, reason in found if count]
    return f" ({counts['candidates']:,} candidates: {', '.join(said)})" if said else ""


def _counts(summary: TrainSummary, left_out: int) -> dict[str, Any]:
    """What the manifest keeps of a run."""
    return {
        "updates": summary.steps,
        "pairs": summary.pairs,
        "left_out": left_out,
        "verified_rows": summary.verified,
        "tokens": summary.tokens,
        "skipped": summary.skipped,
        "last": {
            k: round(float(v), 6)
            for k, v in summary.last.items()
            if isinstance(v, (int, float)) and k not in ("seconds", "tokens_per_second")
        },
    }


def _differs(run: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder's run was begun with other settings. Raises UserError if another program wrote the folder."""
    path = manifest_path(run, folder=True)
    if not path.exists():
        return True
    try:
        found = read_manifest(path)
    except UserError:
        found = None
    if found is not None and found.get("program") == "train":
        return found.get("config") != json.loads(json.dumps(settings))
    if found is None and (run / "run.json").is_file():  # a run whose manifest cannot be read
        return True
    raise UserError(
        f"{path} is of no training run, and --overwrite replaces nothing else: use another folder"
    )
