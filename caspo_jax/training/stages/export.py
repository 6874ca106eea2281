"""A trained state to a policy folder, or to adapters by themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.distributed import barrier, from_writer, is_writer
from caspo_jax.errors import UserError
from caspo_jax.locks import held
from caspo_jax.models import load_adapter, save_adapter, save_pretrained
from caspo_jax.outputs import Manifest, manifest_path, read_manifest
from caspo_jax.store import hash_path
from caspo_jax.training.restore import description_of, resolve_checkpoint, restore_trained
from caspo_jax.training.stages.policy import Policy


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

    return _write_once((policy.path, run), Path(output), settings, write, overwrite)


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

    return _write_once((policy.path, run), Path(output), settings, write, overwrite)


def _export_settings(
    policy: Policy, run: str | Path, output: str | Path, checkpoint: str, overwrite: bool
) -> dict[str, Any]:
    """What an export is made of; `last` and `best` with the checkpoint that they mean while the run goes on."""
    before = {} if overwrite else _manifest_of(output)
    then = before.get("config", {})
    if before.get("complete") and not any((Path(run) / "checkpoints").glob("[0-9]*")):
        # The run's checkpoints, several times the size of what was exported, may be gone by now.
        settings = {"policy": policy.hash, "run": _run_hash(run), "checkpoint": checkpoint}
        if settings == {name: then.get(name) for name in settings}:
            return {name: value for name, value in then.items() if name != "format"}
    settings = {"policy": policy.hash, "run": hash_path(description_of(run)), "checkpoint": checkpoint}
    if checkpoint.isdecimal():
        return settings
    update, state = resolve_checkpoint(run, checkpoint)
    # Earlier versions kept the update among the counts alone.
    if then and "update" not in then and before.get("counts", {}).get("updates") == update:
        return settings
    return {**settings, "update": update, "state": state}


def _run_hash(run: str | Path) -> str | None:
    description = Path(run) / "run.json"
    return hash_path(description) if description.is_file() else None


def _manifest_of(output: str | Path) -> dict[str, Any]:
    """The manifest of a folder, {} where there is none that can be read."""
    try:
        return read_manifest(manifest_path(output, folder=True))
    except UserError:
        return {}


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

    return _write_once((policy.path, adapter), Path(output), settings, write, overwrite)


def _write_once(
    sources: Sequence[str | Path],
    output: Path,
    settings: Mapping[str, Any],
    write: Callable[[Path], dict[str, Any]],
    overwrite: bool,
) -> Path:
    """Write a folder and its manifest, unless the manifest says that it is there.

    The folder gets its name once it is complete, so that one without a manifest is somebody's own.

    Raises:
      UserError: the folder is, or holds, one of the `sources`; it holds what another export wrote, or what none wrote;
        another process is writing it.
    """
    place = output.resolve()  # what a link or a dot stands for can be renamed
    with held(place):
        # Said by one process: it may be done before another looks.
        found = from_writer("folder", lambda: _state_of(sources, place))
        if found == "own":
            raise UserError(f"{output} is, or holds, what the export reads: use another output")
        if found == "other":
            raise UserError(f"{output}: exists and is no checkpoint folder: use another output or remove it")
        if found == "unknown" and not overwrite:
            raise UserError(
                f"{output} is there, and no manifest in it says that this program wrote it: "
                "use another output or --overwrite"
            )
        new, old = (place.with_name(f".{place.name}.{name}") for name in ("export", "replaced"))
        if is_writer():  # what a kill left; the old one may be all that there is
            for left in (new, old) if place.exists() else (new,):
                shutil.rmtree(left, ignore_errors=True)
        if found == "manifest":
            path = manifest_path(place, folder=True)
            manifest = Manifest.open(path, program="export", config=settings, overwrite=overwrite)
            if manifest.complete:
                return output
        counts = write(new)
        manifest = Manifest.open(manifest_path(new, folder=True), program="export", config=settings)
        manifest.finish(**counts)
        if is_writer():
            if place.exists():
                os.rename(place, old)  # not removed yet: a removal cut short would look like somebody's own
            os.rename(new, place)
            shutil.rmtree(old, ignore_errors=True)
        barrier(f"{place.name} in place")
    return output


def _state_of(sources: Sequence[str | Path], place: Path) -> str:
    """What stands where an export is to go: nothing, an export, a checkpoint of somebody's, a source, something else."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return "nothing"
    if any(Path(source).exists() and Path(source).resolve().is_relative_to(place) for source in sources):
        return "own"
    if not any((place / name).is_file() for name in ("config.json", "adapter_config.json")):
        return "other"
    return "manifest" if manifest_path(place, folder=True).exists() else "unknown"
