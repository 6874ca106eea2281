"""Safetensors files read and written a piece at a time: neither a tensor nor a file has to fit into memory twice.

`safetensors.safe_open` checks a file and hands out slices, but leaves every page that it touched in this process's
memory, and `save_file` wants all tensors of a file at once. The format is a JSON header and raw little-endian arrays.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

STORED_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
_CODES = {np.dtype(dtype): code for code, dtype in STORED_DTYPES.items()}
_CHUNK = 32 << 20  # bytes of a file that are in memory at once
_TURNED_ROWS = 64  # rows copied at once into a transposed target, so that whole cache lines of it are written


class TensorReader:
    """The tensors of one checked safetensors file, copied out by slices; `bytes_read` counts their bytes."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
            self._entries = json.loads(file.read(header))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._start = 8 + header
        self.bytes_read = 0

    def copy(self, name: str, index: Sequence[slice], target: np.ndarray) -> None:
        """Copies `tensor[index]` into `target`, which has its shape, cast to the target's dtype.

        Args:
          name: of a tensor whose dtype is among `STORED_DTYPES`.
          index: a slice without a step for each dimension, of one at least.
          target: where it goes; any strides.
        """
        entry = self._entries[name]
        dtype = np.dtype(STORED_DTYPES[entry["dtype"]])
        shape = entry["shape"]
        offset = self._start + entry["data_offsets"][0]
        tensor = np.frombuffer(self._map, dtype, math.prod(shape), offset).reshape(shape)
        part = tensor[tuple(index)]
        rows = max(1, _CHUNK // max(1, tensor[:1].nbytes))
        turned = target.ndim > 1 and abs(target.strides[0]) < abs(target.strides[-1])
        step = min(rows, _TURNED_ROWS) if turned else rows
        for first in range(0, len(part), rows):
            for row in range(first, min(first + rows, len(part)), step):
                target[row : row + step] = part[row : row + step]
            self._release()
        self.bytes_read += part.nbytes

    def _release(self) -> None:
        """Gives the pages back to the system's cache: mapped ones count as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmaps the file, or leaves that to the garbage collector where a view of it is still alive."""
        with contextlib.suppress(BufferError):
            self._map.close()


def write_tensors(
    path: Path, shapes: Mapping[str, Sequence[int]], dtype: np.dtype, tensors: Iterable[np.ndarray]
) -> None:
    """Writes one safetensors file, a tensor at a time.

    Args:
      path: the file.
      shapes: name -> shape of every tensor, in file order.
      dtype: of all of them.
      tensors: the arrays, in that order.

    Raises:
      ValueError: there are more or fewer arrays than shapes, or one has another shape; the file is then
        incomplete.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            if tensor.shape != tuple(shape):
                raise ValueError(f"tensor {name!r} has shape {tensor.shape}, not {tuple(shape)}")
            file.write(np.ascontiguousarray(tensor, dtype).view(np.uint8).data)


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that JAX's CPU backend takes over as it is, without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
