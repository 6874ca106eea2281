"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors <-> a Decoder with LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from caspo_jax.distributed import barrier
from caspo_jax.errors import UserError
from caspo_jax.folders import is_free, whole_folder
from caspo_jax.models.checkpoint import STORED_DTYPES, Checkpoint, read_parameter, tensor_names
from caspo_jax.models.config_fields import flag, integer, number
from caspo_jax.models.decoder import Decoder
from caspo_jax.models.lora import LINEAR, LoraConfig, attach, lora_weights
from caspo_jax.sharding import to_host
from caspo_jax.store import read_json, write_json, write_tensors

CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
# Settings that change nothing about what a stored adapter computes. Any other that is switched on is refused.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "parent_library",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Ways of drawing the first adapters that leave the base's weights alone.
_INITS = (True, False, None, "gaussian", "orthogonal", "eva")


class _AdapterFile(Checkpoint):
    """The tensors of an adapter folder."""

    def _open_all(self) -> None:
        path = self.folder / ADAPTER_FILE
        if not path.is_file():
            if (self.folder / "adapter_model.bin").is_file():
                raise UserError(
                    f"{self.folder / 'adapter_model.bin'}: pickle files are not read (they can run code); "
                    "convert it to safetensors"
                )
            raise UserError(f"{self.folder}: holds no {ADAPTER_FILE}")
        self._open(path)


def load_adapter(model: Decoder, path: str | Path) -> Decoder:
    """The model with the LoRA adapters of a PEFT folder; train them on, decode with them, or `merge_lora` them.

    Args:
      model: the base that the adapters were trained on, without adapters.
      path: folder with adapter_config.json and adapter_model.safetensors.

    Returns:
      A new Decoder that shares the base's arrays; its adapters are float32.

    Raises:
      UserError: an unreadable file, a setting or tensor that this decoder does not compute (by name), a shape that does
        not fit the model.
    """
    folder = Path(path)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder}: holds no {CONFIG_FILE}")
    settings = read_json(folder / CONFIG_FILE)
    _check_settings(settings, folder / CONFIG_FILE)
    with _AdapterFile(folder) as file:
        lora = _lora_config(settings, file)
        table = lora_weights(model.config, lora)
        expected = {name: weight for weight in table for name in tensor_names(weight, model.config)}
        where = folder / ADAPTER_FILE
        if missing := expected.keys() - file.names:
            raise UserError(
                f"{where}: tensor {min(missing)!r} is missing: an adapter covers all layers or none"
            )
        if unknown := file.names - expected.keys():
            raise UserError(f"{where}: tensor {min(unknown)!r} is not part of this model")
        for name, weight in expected.items():
            if file.shape(name) != weight.tensor_shape:
                raise UserError(
                    f"{where}: tensor {name!r} has shape {list(file.shape(name))}, model and "
                    f"{CONFIG_FILE} ask for {list(weight.tensor_shape)}"
                )
            if file.stored_dtype(name) not in STORED_DTYPES:
                raise UserError(f"{where}: tensor {name!r} is stored as {file.stored_dtype(name)}")
        return attach(
            model, lora, lambda weight, _: read_parameter(file, weight, model.config, np.dtype(np.float32))
        )


def _check_settings(settings: dict[str, Any], path: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {settings.get('peft_type')!r} is not supported (known: LORA)")
    if settings.get("bias", "none") != "none":
        raise UserError(f"{path}: bias {settings['bias']!r} is not supported (known: none)")
    if settings.get("init_lora_weights") not in _INITS:
        raise UserError(
            f"{path}: init_lora_weights {settings['init_lora_weights']!r} changes the base's weights: not supported"
        )
    checked = _HARMLESS | {"bias", "init_lora_weights"}
    for name, value in settings.items():
        if name not in checked and value not in (None, False, 0, "", [], {}):
            raise UserError(f"{path}: {name} = {value!r} is not supported")


def _lora_config(settings: dict[str, Any], file: Checkpoint) -> LoraConfig:
    where = str(file.folder / CONFIG_FILE)
    rank, alpha = integer(settings, "r", where), number(settings, "lora_alpha", where)
    rslora = flag(settings, "use_rslora", where)
    # What the file holds decides: target_modules may also be a regular expression.
    targets = [name for name in LINEAR if any(f".{name}.lora_" in tensor for tensor in file.names)]
    if not targets:
        raise UserError(f"{file.folder / ADAPTER_FILE}: has no adapter of {', '.join(LINEAR)}")
    try:
        return LoraConfig(rank, alpha, tuple(targets), rslora)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def save_adapter(model: Decoder, path: str | Path, *, base: str | None = None) -> None:
    """Writes a Decoder's adapters as a folder that `peft.PeftModel.from_pretrained` and `load_adapter` read.

    The folder appears whole or not at all; an adapter folder that stood there before is replaced.

    Args:
      model: a Decoder with adapters.
      path: the folder.
      base: what `base_model_name_or_path` says: the folder or hub id of the model without adapters.

    Raises:
      UserError: the model has no adapters, or the path holds something other than an adapter, or is being written by
        another process.
    """
    if model.lora is None:
        raise UserError("save_adapter: the model has no adapters; save_pretrained() writes its weights")
    target = Path(path).resolve()  # a link's own target is replaced, not the link
    if not is_free(target) and not (target / CONFIG_FILE).is_file():
        raise UserError(f"{target}: exists and is no adapter folder; choose another path or remove it")
    tensors = dict(_tensors(model))
    if jax.process_index() != 0:
        barrier(f"{path} written")
        return
    with whole_folder(target) as folder:
        write_tensors(folder / ADAPTER_FILE, tensors, {"format": "pt"})
        write_json(folder / CONFIG_FILE, _settings(model.lora, base))
    barrier(f"{path} written")


def _settings(lora: LoraConfig, base: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": lora.rslora,
        "inference_mode": True,
    }


def _tensors(model: Decoder) -> Iterator[tuple[str, np.ndarray]]:
    for weight in lora_weights(model.config, model.lora):
        stack = to_host(getattr(model.layers, weight.name)[...])
        for name, matrix in zip(tensor_names(weight, model.config), stack, strict=True):
            yield name, np.ascontiguousarray(matrix.T)
