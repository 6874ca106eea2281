"""load_pretrained and save_pretrained: a Hugging Face folder <-> (Decoder, tokenizer)."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import save_file

from caspo_jax.errors import UserError
from caspo_jax.models.checkpoint import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    check_tensors,
    read_parameter,
    tensor_names,
)
from caspo_jax.models.config import DTYPES, ModelConfig, read_json
from caspo_jax.models.decoder import Decoder
from caspo_jax.models.lora import merged_weight
from caspo_jax.models.tokenizer import Tokenizer, eos_ids, find_tokenizer, load_tokenizer, save_tokenizer
from caspo_jax.models.weights import weights
from caspo_jax.sharding import named_sharding

CASPO_FILE = "caspo.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_pretrained(
    path: str | Path, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[Decoder, Tokenizer | None]:
    """Loads a checkpoint folder (or a hub id) of Qwen2/2.5, Qwen3 or Llama 3.x.

    Args:
      path: folder with config.json and safetensors, sharded or not; or `owner/name` on the hub.
      dtype: `float32` or `bfloat16`; None takes the checkpoint's (float16 checkpoints are computed in float32).
      mesh: if given, every parameter is split over it by the rules of `caspo_jax.sharding`, each process reading
        only the bytes that it holds.

    Returns:
      The decoder (its config's `eos_token_ids` include the tokenizer's) and the tokenizer, None if the
      folder has none.

    Raises:
      UserError: one line naming the file or tensor: no such folder, an unknown architecture or rope type, a
        missing, unmapped or misshaped tensor, a pickle checkpoint, an unreadable file.
    """
    folder = resolve_folder(path)
    config = ModelConfig.from_hf(folder)
    name = dtype or ("float32" if config.dtype == "float16" else config.dtype)
    if name not in ("float32", "bfloat16"):
        raise UserError(f"dtype {name!r} is not supported (known: float32, bfloat16)")
    compute = jnp.dtype(name)
    tokenizer = load_tokenizer(folder) if find_tokenizer(folder) else None
    config = dataclasses.replace(config, eos_token_ids=eos_ids(config, tokenizer))
    model = _abstract_decoder(config, compute)
    with Checkpoint(folder) as checkpoint:
        check_tensors(checkpoint, config)
        for weight in weights(config):
            if mesh is None:
                array = jnp.asarray(read_parameter(checkpoint, weight, config, compute))
            else:
                shape = (config.num_layers, *weight.shape) if weight.stacked else weight.shape
                axes = ("layers", *weight.axes) if weight.stacked else weight.axes
                array = jax.make_array_from_callback(
                    shape,
                    named_sharding(mesh, axes, shape),
                    functools.partial(read_parameter, checkpoint, weight, config, compute),
                )
            setattr(model.layers if weight.stacked else model, weight.name, nnx.Param(array))
    return model, tokenizer


def _abstract_decoder(config: ModelConfig, dtype: jnp.dtype) -> Decoder:
    """A decoder whose parameters are shapes only."""

    def build() -> Decoder:
        return Decoder(config, dtype=dtype, rngs=nnx.Rngs(0))

    return nnx.eval_shape(build)


def save_pretrained(
    model: Decoder,
    tokenizer: Tokenizer | None,
    path: str | Path,
    dtype: str | None = None,
    *,
    caspo: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, str | bytes | Mapping[str, Any]] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that `transformers` and `load_pretrained` load; in the parameters' dtype, bit for bit.

    LoRA adapters are merged into the weights (`models.save_adapter` writes them by themselves).
    The folder appears whole or not at all: it is written under a temporary name and renamed. A checkpoint that
    stood there before is replaced with everything in its folder.

    Args:
      model: the decoder.
      tokenizer: written with its chat template; None writes none.
      path: the folder.
      dtype: dtype of the tensors on disk, the parameters' own if None.
      caspo: content of `caspo.json` (pass what `load_caspo_json` gave to keep it).
      extra_files: further files, name to text, bytes, or a mapping written as JSON.
      max_shard_bytes: a larger checkpoint is split into shards with an index.

    Raises:
      UserError: an unknown dtype, or a path that holds something other than a checkpoint.
    """
    target = Path(path)
    name = dtype or str(model.embed[...].dtype)
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not supported (known: {', '.join(DTYPES)})")
    occupied = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if occupied and not (target / "config.json").is_file():
        raise UserError(f"{target}: exists and is no checkpoint folder; choose another path or remove it")
    tensors = _tensors(model, np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name))
    if jax.process_index() != 0:
        for _ in tensors:  # gathering is collective, so every process takes part in it
            pass
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as workspace:
        folder = Path(workspace) / "new"
        folder.mkdir()
        _write_tensors(folder, tensors, max_shard_bytes)
        _write_json(folder / "config.json", model.config.to_hf(name))
        _write_generation_config(folder, model.config)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        if caspo is not None:
            _write_json(folder / CASPO_FILE, caspo)
        for file, content in (extra_files or {}).items():
            if isinstance(content, Mapping):
                _write_json(folder / file, content)
            else:
                (folder / file).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        if target.exists():
            os.rename(target, Path(workspace) / "old")
        os.rename(folder, target)


def load_caspo_json(path: str | Path) -> dict[str, Any]:
    """The optional `caspo.json` of a policy folder (delimiter, default confidence, threshold); {} if there is none.

    Raises:
      UserError: the file is there but is no JSON object.
    """
    file = resolve_folder(path) / CASPO_FILE
    return read_json(file) if file.exists() else {}


def resolve_folder(path: str | Path) -> Path:
    """The local folder of a checkpoint: the path itself, or a hub id's snapshot (downloaded if need be).

    Raises:
      UserError: neither a folder nor a hub id that can be fetched.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{path}: is a file; give the folder that holds config.json and the safetensors")
    if not _HUB_ID.fullmatch(str(path)):
        raise UserError(f"{path}: model folder not found")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"])
        )
    except Exception as error:  # the hub client and its transport raise many kinds
        raise UserError(
            f"{path}: no such folder, and it cannot be fetched from the hub ({type(error).__name__})"
        ) from error


def _tensors(model: Decoder, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Checkpoint names and tensors, one at a time."""
    for weight in weights(model.config):
        array = merged_weight(model, weight)
        if not array.is_fully_addressable:
            from jax.experimental import multihost_utils

            array = multihost_utils.process_allgather(array, tiled=True)
        stack = np.asarray(array) if weight.stacked else np.asarray(array)[None]
        for name, tensor in zip(tensor_names(weight, model.config), stack, strict=True):
            tensor = tensor.T if weight.transposed else tensor
            yield name, np.ascontiguousarray(tensor.astype(dtype))


def _write_tensors(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], max_shard_bytes: int) -> None:
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = parameters = held_bytes = 0

    def flush() -> None:
        shards.append(list(held))
        # Its final name needs the number of shards, which is known at the end.
        part = folder / f"{len(shards)}.part"
        part.touch()
        mode = part.stat().st_mode  # the user's umask; safetensors makes its files private to the owner
        save_file(held, str(part), {"format": "pt"})
        part.chmod(mode)
        held.clear()

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            held_bytes = 0
        held[name] = tensor
        held_bytes += tensor.nbytes
        total += tensor.nbytes
        parameters += tensor.size
    flush()
    if len(shards) == 1:
        os.rename(folder / "1.part", folder / SINGLE_FILE)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"{number}.part", folder / file)
        weight_map.update(dict.fromkeys(names, file))
    metadata = {"total_parameters": parameters, "total_size": total}
    _write_json(folder / INDEX_FILE, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _write_generation_config(folder: Path, config: ModelConfig) -> None:
    if config.generation_json is not None:
        (folder / "generation_config.json").write_text(config.generation_json, encoding="utf-8")
        return
    hf = config.to_hf()
    known = {key: hf[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if hf[key] is not None}
    _write_json(folder / "generation_config.json", known)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
