"""A trained state to a policy folder, or to adapters by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.models import load_adapter, save_adapter, save_pretrained
from caspo_jax.models.lora import has_adapters
from caspo_jax.outputs import manifest_path, read_manifest
from caspo_jax.store import hash_path
from caspo_jax.training.restore import description_of, resolve_checkpoint, restore_trained
from caspo_jax.training.stages.policy import Policy
from caspo_jax.training.stages.whole_folder import write_once


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

    def save(model: Any, folder: Path) -> None:
        save_pretrained(model, policy.tokenizer, folder, caspo=policy.settings or None)

    return _export(policy, run, output, settings, save, overwrite)


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

    def save(model: Any, folder: Path) -> None:
        if not has_adapters(model):
            raise UserError(f"{run}: the run trained the weights, not adapters: export it as a policy")
        save_adapter(model, folder, base=policy.path)

    return _export(policy, run, output, settings, save, overwrite)


def _export(
    policy: Policy,
    run: str | Path,
    output: str | Path,
    settings: dict[str, Any],
    save: Callable[[Any, Path], None],
    overwrite: bool,
) -> Path:
    """What `save` makes of the model of a run's checkpoint, and a folder, as the output."""

    def write(folder: Path) -> dict[str, Any]:
        model, updates = restore_trained(policy.model, run, settings["checkpoint"])
        if updates != settings.get("update", updates):
            raise UserError(f"{run}: training went on while its checkpoint was read: export again")
        save(model, folder)
        return {"updates": updates}

    return write_once("export", (policy.path, run), output, settings, write, overwrite)


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
    return {**settings, "update": update, "state": state}


def _run_hash(run: str | Path) -> str | None:
    description = Path(run) / "run.json"
    return hash_path(description) if description.is_file() else None


def _manifest_of(output: str | Path) -> dict[str, Any]:
    """The manifest of a folder; {} without a readable one."""
    try:
        return read_manifest(manifest_path(output, folder=True))
    except UserError:
        return {}


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

    return write_once("export", (policy.path, adapter), output, settings, write, overwrite)
