"""Loading reads what is needed and holds it once; saving holds one tensor at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from processes import run

from caspo_jax.models import safetensors_io
from caspo_jax.models.checkpoint import tensor_names
from caspo_jax.models.safetensors_io import TensorReader, aligned_empty, write_tensors
from caspo_jax.models.weights import weights
from tests.shapes import small_shape

MESHES = ["fsdp:8", "fsdp:2,tensor:4", "data:8"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    run(Path(__file__).parent / "on_devices.py", "load", folder, *MESHES, devices=8)
    return {spec: dict(np.load(folder / f"{spec}.npz")) for spec in MESHES}


@pytest.mark.parametrize("spec", MESHES)
def test_a_process_reads_its_share_and_what_everyone_holds(loaded, spec):
    found = loaded[spec]
    everything, replicated = int(found["everything"]), int(found["replicated"])
    np.testing.assert_array_equal(found["shares"], found["wanted"])
    if spec == "fsdp:8":
        assert found["shares"].max() <= (everything - replicated) / 8 + replicated
        assert replicated < everything / 50
    assert int(found["said"]) == everything  # one process with all devices reads every byte once
    assert found["exported_equal"]


def big_checkpoint(folder, megabytes):
    """A checkpoint of about so many megabytes in float32, most of them in the layers."""
    layers = 16
    width = 256
    inner = int(megabytes * 2**20 / 4 / layers / (3 * width))
    sizes = {"vocab_size": 4096, "hidden_size": width, "intermediate_size": inner, "num_layers": layers}
    config = small_shape(**sizes, num_heads=4, num_kv_heads=4, head_dim=32)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf("float32")), encoding="utf-8")
    shapes = {name: w.tensor_shape for w in weights(config) for name in tensor_names(w, config)}
    tensors = (np.full(shape, 0.01, np.float32) for shape in shapes.values())
    write_tensors(folder / "model.safetensors", shapes, np.dtype(np.float32), tensors)
    sizes = [4 * int(np.prod(shape)) for shape in shapes.values()]
    return sum(sizes), max(sizes)


MEASURE = """
import json, re, sys
from pathlib import Path
import jax
from caspo_jax.models import load_pretrained, save_pretrained

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def grown(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    result = work()
    return memory("VmHWM") - before, result

jax.block_until_ready(jax.numpy.zeros(1) + 1)
loading, (model, _) = grown(lambda: load_pretrained(sys.argv[1]))
saving, _ = grown(lambda: save_pretrained(model, None, sys.argv[2]))
print(json.dumps([loading, saving]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
@pytest.mark.parametrize("megabytes", [192, pytest.param(1024, marks=pytest.mark.slow)])
def test_memory_beside_the_parameters_is_one_tensor(tmp_path, megabytes):
    total, largest = big_checkpoint(tmp_path / "policy", megabytes)
    loading, saving = json.loads(run("-c", MEASURE, tmp_path / "policy", tmp_path / "again", devices=1))
    assert total < loading <= total + largest + 100 * 2**20
    assert saving <= 3 * largest + 100 * 2**20
    first, again = (tmp_path / name / "model.safetensors" for name in ("policy", "again"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_files_are_those_of_the_library(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tensors = {
        f"t{i}": rng.normal(size=shape).astype(dtype) for i, shape in enumerate([(3, 5), (7,), (1, 1)])
    }
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(tmp_path / "ours", shapes, np.dtype(dtype), tensors.values())
    for name, tensor in safetensors.numpy.load_file(tmp_path / "ours").items():
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor, tensors[name])
    for few, error in (
        ([*tensors.values()][:2], "shorter"),
        ([t[:1] for t in tensors.values()], "'t0' has shape"),
    ):
        with pytest.raises(ValueError, match=error):
            write_tensors(tmp_path / "damaged", shapes, np.dtype(dtype), few)
    safetensors.numpy.save_file(tensors, tmp_path / "theirs")
    reader = TensorReader(tmp_path / "theirs")
    part = np.empty((2, 2), np.float32).T
    reader.copy("t0", (slice(1, 3), slice(2, 4)), part)
    np.testing.assert_array_equal(part, tensors["t0"][1:3, 2:4].astype(np.float32))
    assert reader.bytes_read == 4 * np.dtype(dtype).itemsize
    reader.close()


@pytest.mark.parametrize("length", range(1, 9))
def test_arrays_begin_at_a_multiple_of_eight_bytes(tmp_path, length):
    write_tensors(tmp_path / "file", {"t" * length: (1,)}, np.dtype(np.float64), [np.ones(1)])
    data = (tmp_path / "file").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert len(data) % 8 == 0


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 9])
def test_a_tensor_is_copied_whole_in_parts_of_any_size(tmp_path, monkeypatch, rows):
    """0: a row is more than a part."""
    tensor = np.arange(24, dtype=np.float32).reshape(8, 3)
    safetensors.numpy.save_file({"t": tensor}, tmp_path / "file")
    monkeypatch.setattr(safetensors_io, "_CHUNK", max(1, rows * tensor[0].nbytes))
    reader = TensorReader(tmp_path / "file")
    found = np.full((7, 2), np.nan, np.float32)
    reader.copy("t", (slice(1, 8), slice(1, 3)), found)
    np.testing.assert_array_equal(found, tensor[1:, 1:])
    reader.close()


def test_aligned_memory():
    for size in (1, 3, 1000):
        assert aligned_empty((size, 3), np.dtype(np.float32)).ctypes.data % 64 == 0
