"""Pairs to a trained state, and a trained state to a policy folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from caspo_jax.distributed import from_writer, writer_first
from caspo_jax.errors import UserError
from caspo_jax.models import load_adapter, save_adapter, save_pretrained
from caspo_jax.preferences.packing import Row
from caspo_jax.store import Manifest, hash_path, manifest_path
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.loop import train
from caspo_jax.training.restore import description_of, resolve_checkpoint, restore_trained
from caspo_jax.training.run_folder import clear_folder
from caspo_jax.training.stages.pairs import read_pairs, verified_traces
from caspo_jax.training.stages.policy import Policy


def train_stage(
    policy: Policy,
    pairs: str | Path,
    annotated: str | Path | None,
    run: str | Path,
    config: TrainConfig,
    *,
    reference_cache: str | Path | None = None,
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
      reference_cache: folder of reference log-probs that runs share; default the run's own.
      overwrite: start anew if the run was begun with other settings; nothing but that run is removed.
      progress: called with (updates done, updates in all, **metrics).

    Returns:
      What the manifest counts: updates, pairs, verified rows, tokens, last metrics.
    """
    run = Path(run)
    if config.loss.uses_verified and annotated is None:
        raise UserError(
            f"loss={config.loss.loss}, nll_on={config.loss.nll_on} reads verified steps: give annotated traces"
        )
    loaded = read_pairs(pairs, policy)
    rows: list[Row] = []
    if config.loss.uses_verified and annotated is not None:
        rows = verified_traces(policy.read_traces(annotated))
    settings = {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "train": config.shaping(),
        "pairs": hash_path(pairs),
        "annotated": hash_path(annotated) if annotated is not None and config.loss.uses_verified else None,
    }
    with writer_first("old run"):
        if overwrite and _differs(run, settings):
            clear_folder(run)
    where = manifest_path(run, folder=True)
    manifest = Manifest.open(where, program="train", config=settings, overwrite=overwrite)
    if manifest.complete:
        return manifest.contents["counts"]
    callback = None
    if progress is not None:

        def callback(record: Mapping[str, Any]) -> None:
            shown = {"margin": record.get("rewards/margin"), "chosen": record.get("logps/chosen")}
            progress(int(record["step"]), int(record["steps"]), loss=record["loss"], **shown)

    _, summary = train(
        policy.model,
        loaded,
        config,
        verified=rows,
        reference_cache=reference_cache,
        out_dir=run,
        callback=callback,
    )
    counts = {
        "updates": summary.steps,
        "pairs": summary.pairs,
        "verified_rows": summary.verified,
        "tokens": summary.tokens,
        "skipped": summary.skipped,
        "last": {
            k: round(float(v), 6)
            for k, v in summary.last.items()
            if isinstance(v, (int, float)) and k not in ("seconds", "tokens_per_second")
        },
    }
    manifest.finish(**counts)
    return counts


def _differs(run: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder's run was begun with other settings. Raises UserError if another program wrote the folder."""
    path = manifest_path(run, folder=True)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and found.get("program") == "train":
        return found.get("config") != json.loads(json.dumps(settings))
    if found is None and (run / "run.json").is_file():  # a run whose manifest cannot be read
        return True
    raise UserError(
        f"{path} is of no training run, and --overwrite replaces nothing else: use another folder"
    )


def export_stage(
    policy: Policy,
    run: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "last",
    overwrite: bool = False,
) -> Path:
    """A checkpoint of a run to a policy folder in Hugging Face layout; adapters are merged into the weights.

    Args:
      policy: the policy that the run started from; its tokenizer, configuration and caspo.json go along.
      run: folder of a training run.
      output: the policy folder.
      checkpoint: see `restore_trained`.
      overwrite: replace a folder that the export of another run, or of an earlier checkpoint, wrote.
    """
    settings = _export_settings(policy, run, output, checkpoint, overwrite)

    def write(folder: Path) -> dict[str, Any]:
        model, updates = _restored(policy, run, settings)
        save_pretrained(model, policy.tokenizer, folder, caspo=policy.settings or None)
        return {"updates": updates}

    return _write_once(Path(output), "export", settings, write, overwrite)


def export_adapter(
    policy: Policy,
    run: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "last",
    overwrite: bool = False,
) -> Path:
    """A checkpoint's LoRA adapters to a folder in PEFT's format; arguments as of `export_stage`.

    Raises:
      UserError: the run trained the weights themselves.
    """
    settings = {**_export_settings(policy, run, output, checkpoint, overwrite), "format": "peft"}

    def write(folder: Path) -> dict[str, Any]:
        model, updates = _restored(policy, run, settings)
        if model.lora is None:
            raise UserError(f"{run}: the run trained the weights, not adapters: export it as a policy")
        save_adapter(model, folder, base=policy.path)
        return {"updates": updates}

    return _write_once(Path(output), "export", settings, write, overwrite)


def _export_settings(
    policy: Policy, run: str | Path, output: str | Path, checkpoint: str, overwrite: bool
) -> dict[str, Any]:
    """What an export is made of; `last` and `best` with the checkpoint that they mean while the run goes on."""
    settings = {"policy": policy.hash, "run": hash_path(description_of(run)), "checkpoint": checkpoint}
    if checkpoint.isdecimal():
        return settings
    update, state = resolve_checkpoint(run, checkpoint)
    if not overwrite and _counted_alone(manifest_path(output, folder=True)) == update:
        return settings
    return {**settings, "update": update, "state": state}


def _counted_alone(path: Path) -> int | None:
    """The update that an export wrote whose settings do not hold it yet: those of earlier versions do not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return None if "update" in found["config"] else int(found["counts"]["updates"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _restored(policy: Policy, run: str | Path, settings: Mapping[str, Any]) -> tuple[Any, int]:
    """The model that an export writes, and its update."""
    model, updates = restore_trained(policy.model, run, settings["checkpoint"])
    if updates != settings.get("update", updates):
        raise UserError(f"{run}: training went on while its checkpoint was read: export again")
    return model, updates


def merge_stage(policy: Policy, adapter: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """A policy and LoRA adapters in PEFT's format to a policy folder of the merged weights.

    Args:
      policy: the base of the adapters; its tokenizer, configuration and caspo.json go along.
      adapter: folder with adapter_config.json and adapter_model.safetensors.
      output: the policy folder.
      overwrite: replace a folder that was written from others.
    """
    settings = {"policy": policy.hash, "adapter": hash_path(adapter)}

    def write(folder: Path) -> dict[str, Any]:
        model = load_adapter(policy.model, adapter)
        save_pretrained(model, policy.tokenizer, folder, caspo=policy.settings or None)
        return {}

    return _write_once(Path(output), "export", settings, write, overwrite)


def _write_once(
    output: Path,
    program: str,
    settings: Mapping[str, Any],
    write: Callable[[Path], dict[str, Any]],
    overwrite: bool,
) -> Path:
    """Write a folder and its manifest, unless the manifest says that it is there."""
    path = manifest_path(output, folder=True)
    # Said by one process: it may be done before another looks.
    if from_writer("folder", lambda: str(path.exists())) == "True":
        manifest = Manifest.open(path, program=program, config=settings, overwrite=overwrite)
        if manifest.complete:
            return output
    counts = write(output)
    manifest = Manifest.open(path, program=program, config=settings)
    manifest.finish(**counts)
    return output
