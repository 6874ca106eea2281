"""Tensors copied out of a safetensors file by slices, into targets of any layout and dtype."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from caspo_jax.models import safetensors_io
from caspo_jax.models.safetensors_io import TensorReader


@pytest.mark.parametrize("target", ["rows", "turned", "part of a stack, turned"])
@pytest.mark.parametrize("chunk", [1, 100 * 24, 1 << 20])  # bytes: a row, a hundred rows, all 1,000
def test_every_layout_of_the_target_gets_the_same_numbers(tmp_path, monkeypatch, chunk, target):
    tensor = np.random.default_rng(0).standard_normal((1000, 6)).astype(np.float32)
    save_file({"before": np.ones(3, np.float32), "w": tensor}, tmp_path / "x.safetensors")
    monkeypatch.setattr(safetensors_io, "_CHUNK", chunk)
    index = (slice(17, 900), slice(1, 5))
    stack = np.zeros((3, 4, 883), np.float16)
    place = {
        "rows": np.zeros((883, 4), np.float32),
        "turned": np.zeros((4, 883), np.float32).T,
        "part of a stack, turned": stack[1].T,
    }[target]
    reader = TensorReader(tmp_path / "x.safetensors")
    reader.copy("w", index, place)
    np.testing.assert_array_equal(place, tensor[index].astype(place.dtype))
    assert not stack[[0, 2]].any()
    assert reader.bytes_read == tensor[index].nbytes
