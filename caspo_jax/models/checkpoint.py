"""Reading safetensors checkpoints strictly: every tensor accounted for, or one clear refusal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from caspo_jax.errors import UserError
from caspo_jax.models.config import DTYPES, ModelConfig
from caspo_jax.models.safetensors_io import STORED_DTYPES, TensorReader, aligned_empty
from caspo_jax.models.weights import Weight, parameter_shape, weights
from caspo_jax.store import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"  # one matrix in a tied checkpoint


class Checkpoint:
    """The open safetensors files of a folder, and which of them holds which tensor.

    Use as a context manager; tensors are read one slice at a time, on demand.

    Raises:
      UserError: no safetensors, a pickle checkpoint, a missing or unreadable shard, an index that does not match.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files = contextlib.ExitStack()
        self._handle_of: dict[str, Any] = {}  # tensor name -> open file
        self._file_of: dict[str, Path] = {}
        self._readers: dict[Path, TensorReader] = {}
        try:
            self._open_all()
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._files.close()
        for reader in self._readers.values():
            reader.close()

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._handle_of)

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        return tuple(self._handle_of[name].get_slice(name).get_shape())

    def stored_dtype(self, name: str) -> str:
        """The dtype code of a tensor in its file, e.g. `BF16`."""
        return self._handle_of[name].get_slice(name).get_dtype()

    @property
    def dtype(self) -> str:
        """The dtype of the first tensor of floats, which transformers takes where config.json names none."""
        codes = map(self.stored_dtype, self._handle_of)
        names = (np.dtype(STORED_DTYPES[code]).name for code in codes if code in STORED_DTYPES)
        return next((name for name in names if name in DTYPES), "float32")

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors that were read so far."""
        return sum(reader.bytes_read for reader in self._readers.values())

    def copy(self, name: str, index: Sequence[slice], target: np.ndarray) -> None:
        """Copies a slice of a tensor into `target`, cast to its dtype; only the slice's bytes are read."""
        path = self._file_of[name]
        try:
            if path not in self._readers:
                self._readers[path] = TensorReader(path)
            self._readers[path].copy(name, index, target)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: tensor {name!r} cannot be read ({error})") from error

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors are the same bit for bit, compared a few rows at a time."""
        shape, code = self.shape(name), self.stored_dtype(name)
        if (shape, code) != (self.shape(other), self.stored_dtype(other)) or code not in STORED_DTYPES:
            return False
        rest = [slice(0, size) for size in shape[1:]]
        rows = max(1, (32 << 20) // max(1, 4 * math.prod(shape[1:])))
        for first in range(0, shape[0], rows):
            part = slice(first, min(first + rows, shape[0]))
            pair = np.empty((2, part.stop - first, *shape[1:]), STORED_DTYPES[code])
            self.copy(name, (part, *rest), pair[0])
            self.copy(other, (part, *rest), pair[1])
            if pair[0].tobytes() != pair[1].tobytes():
                return False
        return True

    def _open_all(self) -> None:
        single, index = self.folder / SINGLE_FILE, self.folder / INDEX_FILE
        if single.is_file():
            self._open(single)
            return
        if not index.is_file():
            pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in _PICKLES)
            if pickles:
                raise UserError(
                    f"{self.folder / pickles[0]}: pickle checkpoints are not read (they can run code); "
                    "convert it to safetensors"
                )
            raise UserError(f"{self.folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index}: weight_map must map tensor names to file names")
        for name in sorted(set(weight_map.values())):
            if Path(name).name != name:
                raise UserError(
                    f"{index}: lists {name!r}: shards lie in the checkpoint's own folder; give file names"
                )
            path = self.folder / name
            if path.suffix != ".safetensors":
                raise UserError(f"{index}: lists {name!r}, which is no safetensors file")
            if not path.is_file():
                raise UserError(f"{path}: shard not found, though {INDEX_FILE} lists it")
            self._open(path)
        for name, file in weight_map.items():
            if name not in self._file_of or self._file_of[name].name != file:
                raise UserError(
                    f"{self.folder / file}: tensor {name!r} is missing, though {INDEX_FILE} lists it there"
                )
        unlisted = sorted(self.names - set(weight_map))
        if unlisted:
            raise UserError(f"{self.file(unlisted[0])}: tensor {unlisted[0]!r} is not listed in {INDEX_FILE}")

    def _open(self, path: Path) -> None:
        try:
            path.open("rb").close()  # `safe_open` says of every file that it may not read that there is none
            handle = self._files.enter_context(safe_open(str(path), framework="numpy"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error
        for name in handle.keys():  # noqa: SIM118 (a safe_open handle is no dict)
            if name in self._handle_of:
                raise UserError(f"{path}: tensor {name!r} is also in {self.file(name).name}")
            self._handle_of[name] = handle
            self._file_of[name] = path


def tensor_names(weight: Weight, config: ModelConfig) -> list[str]:
    """The checkpoint tensors that make up one parameter, in layer order."""
    return [weight.tensor.format(i) for i in range(config.num_layers)] if weight.stacked else [weight.tensor]


def _names_in(checkpoint: Checkpoint, weight: Weight, config: ModelConfig) -> list[str]:
    """`tensor_names` as this checkpoint has them: of tied matrices, it may hold the output's alone."""
    names = tensor_names(weight, config)
    tied = names == [_EMBEDDING] and config.tie_word_embeddings
    return [_OUTPUT] if tied and _EMBEDDING not in checkpoint.names and _OUTPUT in checkpoint.names else names


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Checks a checkpoint against the config: nothing missing, nothing unmapped, every shape and dtype as it must be.

    Two redundancies are allowed: rotary frequencies, which old exporters stored, and, where config.json ties
    input and output, an output matrix that equals the embedding bit for bit. A tied checkpoint may also hold
    the output matrix instead of the embedding.

    Raises:
      UserError: naming the first offending tensor and its file.
    """
    if config.num_layers > len(checkpoint.names):  # an absurd number of names would fill the memory
        raise UserError(
            f"{checkpoint.folder}: config.json says num_hidden_layers {config.num_layers}, "
            f"but the safetensors hold {len(checkpoint.names)} tensors"
        )
    expected = {name: weight for weight in weights(config) for name in _names_in(checkpoint, weight, config)}
    missing = [name for name in expected if name not in checkpoint.names]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{checkpoint.folder}: tensor {missing[0]!r} is missing{more}")
    unmapped = sorted(
        name for name in checkpoint.names - set(expected) if not name.endswith("rotary_emb.inv_freq")
    )
    if config.tie_word_embeddings and _OUTPUT in unmapped:
        if not checkpoint.equal(_OUTPUT, _EMBEDDING):
            raise UserError(
                f"{checkpoint.file(_OUTPUT)}: tensor {_OUTPUT!r} differs from the embedding, "
                "but config.json says tie_word_embeddings"
            )
        unmapped.remove(_OUTPUT)
    if unmapped:
        more = f" (and {len(unmapped) - 1} more)" if len(unmapped) > 1 else ""
        raise UserError(
            f"{checkpoint.file(unmapped[0])}: tensor {unmapped[0]!r} is not part of this model{more}"
        )
    for name, weight in expected.items():
        shape, dtype = checkpoint.shape(name), checkpoint.stored_dtype(name)
        if shape != weight.tensor_shape:
            raise UserError(
                f"{checkpoint.file(name)}: tensor {name!r} has shape {list(shape)}, "
                f"config.json asks for {list(weight.tensor_shape)}"
            )
        if dtype not in STORED_DTYPES:
            known = ", ".join(STORED_DTYPES)
            raise UserError(f"{checkpoint.file(name)}: tensor {name!r} is stored as {dtype} (known: {known})")


def read_parameter(
    checkpoint: Checkpoint, weight: Weight, config: ModelConfig, dtype: np.dtype, index: Sequence[slice] = ()
) -> np.ndarray:
    """One parameter, or a slice of it, layer by layer into one buffer.

    Args:
      checkpoint: checked by `check_tensors`.
      weight: which parameter.
      config: of the model.
      dtype: dtype of the result.
      index: one slice for each dimension of the parameter (the stacked axis first); empty means all.
    """
    shape = parameter_shape(weight, config)
    spans = [range(size)[part] for size, part in zip(shape, index or [slice(None)] * len(shape), strict=True)]
    inner = spans[1:] if weight.stacked else spans
    tensor_index = [slice(span.start, span.stop) for span in inner]
    tensor_index = tensor_index[::-1] if weight.transposed else tensor_index
    names = _names_in(checkpoint, weight, config)
    buffer = aligned_empty([len(span) for span in spans], dtype)
    for row, layer in enumerate(spans[0] if weight.stacked else [0]):
        target = buffer[row] if weight.stacked else buffer
        checkpoint.copy(names[layer], tensor_index, target.T if weight.transposed else target)
    return buffer
