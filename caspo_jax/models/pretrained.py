"""load_pretrained and save_pretrained: a Hugging Face folder <-> (Decoder, tokenizer)."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from caspo_jax.distributed import barrier
from caspo_jax.errors import UserError
from caspo_jax.folders import is_free, whole_folder
from caspo_jax.models.abstract import abstract_decoder
from caspo_jax.models.caspo_json import CASPO_FILE, check_caspo_json
from caspo_jax.models.checkpoint import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    check_tensors,
    read_parameter,
    tensor_names,
)
from caspo_jax.models.config import DTYPES, ModelConfig, merge_eos
from caspo_jax.models.decoder import Decoder
from caspo_jax.models.folder import resolve_folder
from caspo_jax.models.lora import checkpoint_tensor
from caspo_jax.models.safetensors_io import write_tensors
from caspo_jax.models.tokenizer import Tokenizer, eos_ids, find_tokenizer, load_tokenizer, save_tokenizer
from caspo_jax.models.weights import Weight, owner, parameter_shape, parameter_sharding, weights
from caspo_jax.sharding import as_mesh, to_host
from caspo_jax.store import read_json, write_json

_LOG = logging.getLogger(__name__)


def load_pretrained(
    path: str | Path, dtype: jax.typing.DTypeLike | None = None, mesh: Mesh | str | None = None
) -> tuple[Decoder, Tokenizer | None]:
    """Loads a checkpoint folder (or a hub id) of Qwen2/2.5, Qwen3 or Llama 3.x.

    Args:
      path: folder with config.json and safetensors, sharded or not; or `owner/name` on the hub.
      dtype: `float32` or `bfloat16`, by name or as `jnp.bfloat16`; None takes what config.json says, else what the
        weights are stored in (float16 checkpoints are computed in float32).
      mesh: if given (itself, or as `make_mesh` takes it: "data:2,fsdp:4"), every parameter is split over it by the rules
        of `caspo_jax.sharding`, each process reading only the bytes that it holds.

    Returns:
      The decoder (its config's `eos_token_ids` include the tokenizer's, and none outside the vocabulary) and
      the tokenizer, None if the folder has none.

    Raises:
      UserError: one line naming the file or tensor: no such folder, an unknown architecture or rope type, a
        missing, unmapped or misshaped tensor, a pickle checkpoint, an unreadable file, EOS ids that are all
        outside the vocabulary; or an invalid mesh.

    >>> from caspo_jax.tasks import get_task
    >>> model, tokenizer = load_pretrained(get_task("graph").policy_path, dtype="float32")
    >>> model(jnp.array([tokenizer.encode("a = 2; b: a + 3. b?")])).dtype.name
    'float32'
    """
    folder = resolve_folder(path)
    config = ModelConfig.from_hf(folder)
    wanted = _compute_dtype(dtype)
    mesh = as_mesh(mesh)
    tokenizer = load_tokenizer(folder) if find_tokenizer(folder) else None
    with Checkpoint(folder) as checkpoint:
        check_tensors(checkpoint, config)
        stored = config.dtype or checkpoint.dtype
        config = dataclasses.replace(config, dtype=stored, eos_token_ids=_ends(config, tokenizer, folder))
        compute = jnp.dtype("float32" if stored == "float16" else stored) if wanted is None else wanted
        model = abstract_decoder(config, compute, mesh)
        for weight in weights(config):
            array = _load(checkpoint, weight, config, compute, mesh)
            setattr(owner(model, weight), weight.name, nnx.Param(array))
        _LOG.info("%s: process %d read %d bytes", folder, jax.process_index(), checkpoint.bytes_read)
    return model, tokenizer


def _ends(config: ModelConfig, tokenizer: Tokenizer | None, folder: Path) -> tuple[int, ...]:
    """The EOS ids that the model can emit; warns of others that the folder names."""
    known = eos_ids(config, tokenizer, f"{folder}/config.json, generation_config.json, tokenizer_config.json")
    named = merge_eos(config.eos_token_ids, None if tokenizer is None else tokenizer.eos_token_id)
    unknown = [id for id in named if id not in known]
    if unknown:
        message = "%s: eos_token_id %s left out: the vocabulary has %d tokens"
        _LOG.warning(message, folder, ", ".join(map(str, unknown)), config.vocab_size)
    return known


def _compute_dtype(dtype: jax.typing.DTypeLike | None) -> jnp.dtype | None:
    if dtype is None:
        return None
    name = _dtype_name(dtype)
    if name not in ("float32", "bfloat16"):
        raise UserError(f"dtype {name!r} is not supported (known: float32, bfloat16)")
    return jnp.dtype(name)


def _dtype_name(dtype: jax.typing.DTypeLike) -> str:
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _load(
    checkpoint: Checkpoint, weight: Weight, config: ModelConfig, dtype: jnp.dtype, mesh: Mesh | None
) -> jax.Array:
    if mesh is None:
        # jnp.asarray would copy: a stacked parameter, which may be a third of the model, would be in memory
        # twice.
        return jax.device_put(read_parameter(checkpoint, weight, config, dtype))
    parts: dict[str, np.ndarray] = {}  # devices that hold the same part share one reading of it

    def part(index: Any) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = read_parameter(checkpoint, weight, config, dtype, index)
        return parts[str(index)]

    sharding = parameter_sharding(mesh, weight, config)
    return jax.make_array_from_callback(parameter_shape(weight, config), sharding, part)


def save_pretrained(
    model: Decoder,
    tokenizer: Tokenizer | None,
    path: str | Path,
    dtype: jax.typing.DTypeLike | None = None,
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
      dtype: dtype of the tensors on disk, by name or as `jnp.bfloat16`; the parameters' own if None.
      caspo: content of `caspo.json` (pass what `load_caspo_json` gave to keep it).
      extra_files: further files, name to text, bytes, or a mapping written as JSON.
      max_shard_bytes: a larger checkpoint is split into shards with an index.

    Raises:
      UserError: an unknown dtype, a value of `caspo` that `load_caspo_json` would refuse, or a path that holds
        something other than a checkpoint, or that another process is writing.

    >>> import tempfile
    >>> from caspo_jax.tasks import get_task
    >>> folder = tempfile.mkdtemp() + "/copy"
    >>> save_pretrained(*load_pretrained(get_task("graph").policy_path), folder)
    >>> (Path(folder) / "model.safetensors").is_file()
    True
    """
    target = Path(path).resolve()  # a link's own target is replaced, not the link
    name = _dtype_name(model.embed[...].dtype if dtype is None else dtype)
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not supported (known: {', '.join(DTYPES)})")
    if not is_free(target) and not (target / "config.json").is_file():
        raise UserError(f"{target}: exists and is no checkpoint folder; choose another path or remove it")
    check_caspo_json(caspo or {}, str(target / CASPO_FILE))
    stored = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    tensors = _tensors(model)
    if jax.process_index() != 0:
        for _ in tensors:  # gathering is collective, so every process takes part in it
            pass
        barrier(f"{path} written")
        return
    with whole_folder(target) as folder:
        _write_tensors(folder, _tensor_shapes(model.config), stored, tensors, max_shard_bytes)
        write_json(folder / "config.json", model.config.to_hf(name))
        _write_generation_config(folder, model.config)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        if caspo is not None:
            write_json(folder / CASPO_FILE, caspo)
        for file, content in (extra_files or {}).items():
            if isinstance(content, Mapping):
                write_json(folder / file, content)
            else:
                (folder / file).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    barrier(f"{path} written")


def load_caspo_json(path: str | Path) -> dict[str, Any]:
    """The optional `caspo.json` of a policy folder (delimiter, default confidence, threshold); {} if there is none.

    Raises:
      UserError: the file is there but is no JSON object, or one of these keys has a value of another type.
    """
    file = resolve_folder(path) / CASPO_FILE
    if not file.exists():
        return {}
    settings = read_json(file)
    check_caspo_json(settings, str(file))
    return settings


def _tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint, in the order of `_tensors`."""
    return {name: weight.tensor_shape for weight in weights(config) for name in tensor_names(weight, config)}


def _tensors(model: Decoder) -> Iterator[np.ndarray]:
    """The checkpoint's tensors, one at a time on the host."""
    for weight in weights(model.config):
        for layer in range(model.config.num_layers if weight.stacked else 1):
            yield to_host(checkpoint_tensor(model, weight, layer))


def _write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    tensors: Iterator[np.ndarray],
    max_shard_bytes: int,
) -> None:
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE_FILE
        part = itertools.islice(tensors, len(names))
        write_tensors(folder / file, {name: shapes[name] for name in names}, dtype, part)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        parameters = sum(math.prod(shape) for shape in shapes.values())
        metadata = {"total_parameters": parameters, "total_size": sum(sizes.values())}
        write_json(
            folder / INDEX_FILE, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        )


def _write_generation_config(folder: Path, config: ModelConfig) -> None:
    if config.generation_json is not None:
        (folder / "generation_config.json").write_text(config.generation_json, encoding="utf-8")
        return
    hf = config.to_hf()
    known = {key: hf[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if hf[key] is not None}
    write_json(folder / "generation_config.json", known)
