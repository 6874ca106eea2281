"""Ahead-of-time checks for chips that are not there. The compiler, libtpu, is an extra: without it they are skipped."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest

from caspo_jax.compile_check import chips
from caspo_jax.errors import UserError
from caspo_jax.models import LoraConfig
from caspo_jax.training import TrainConfig

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the tpu extra)"
)
needs_gpu_compiler = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="JAX's CUDA plugin is not installed (the gpu extra)",
)
TINY = {"model_config": "tiny", "topology": "v5e:2x2", "mesh": "fsdp:4", "rows": 4, "length": 256}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_config": "nothing"}, ("nothing", "qwen3-8b")),
        ({"topology": "p100:8"}, ("p100:8", "v5e", "h100")),
        ({"topology": "v6e:32x32"}, ("1024 chips", "256")),
        ({"topology": "v6e:2x32"}, ("v6e:2x32", "16x16")),
        ({"topology": "v5e:4x4x4"}, ("v5e:4x4x4", "plane")),
    ],
)
def test_bad_input_is_named(program, change, words):
    code, out, err = program("compile_check", **(TINY | change))
    assert (code, out) == (1, "")
    for word in words:
        assert word in err


@pytest.mark.parametrize("flag", ["output", "hlo"])
def test_figures_leave_a_file_of_somebody_else_s(program, tmp_path, monkeypatch, flag):
    import jax

    from caspo_jax import compile_check

    def compiles(*_):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(compile_check, "topology_devices", lambda _: (None, jax.devices()[:1]))
    monkeypatch.setattr(compile_check, "train_program", compiles)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    code, _, err = program("compile_check", **(TINY | {"mesh": "data:1", flag: mine}))
    assert code == 1
    assert "no manifest beside it" in err
    code, _, err = program("compile_check", **TINY, output=mine, hlo=mine)
    assert code == 1
    assert "--output and --hlo are the same file" in err
    assert mine.read_text() == "mine"


@pytest.fixture
def planned(program, monkeypatch):
    """Runs the program up to the lowering, on this machine's devices: (code, errors, the recipes that it would lower)."""
    import jax

    from caspo_jax import compile_check

    def run(**flags):
        recipes = []

        def lowered(config, mesh, shape, settings, dtype):
            recipes.append(settings)
            raise UserError("stopped here")

        with monkeypatch.context() as patch:
            patch.setattr(compile_check, "topology_devices", lambda _: (None, jax.devices()[:1]))
            patch.setattr(compile_check, "train_program", lowered)
            code, _, err = program("compile_check", **(TINY | {"mesh": "data:1"} | flags))
        return code, err, recipes

    return run


def test_what_is_planned_is_what_training_does_with_the_same_flags(planned):
    """Also where no flag says so: whoever plans with the defaults trains with them."""
    assert planned()[2] == [TrainConfig.preset("caspo")]
    flags = {"lora_rank": 4, "lora_alpha": 2, "lora_targets": "q_proj,down", "train.remat": "dots"}
    lora = LoraConfig(4, 2.0, ("q_proj", "down_proj"))
    assert planned(preset="paper", **flags)[2] == [TrainConfig.preset("paper", lora=lora, remat="dots")]


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"lora_alpha": 3}, ("--lora_rank",)),
        ({"lora_rank": 4, "lora_targets": "nothing"}, ("'nothing'", "q_proj")),
        ({"lora_rank": 4, "what": "cat"}, ("--lora_rank", "--what=train")),
    ],
)
def test_adapters_that_cannot_be_planned_are_refused(planned, flags, words):
    code, err, recipes = planned(**flags)
    assert (code, recipes) == (1, [])
    for word in words:
        assert word in err


@needs_compiler
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2x1", "v5p:2x2x2", "v6e:2x4"])
def test_a_device_is_a_chip(topology):
    sizes = map(int, topology.partition(":")[2].split("x"))
    assert len(chips.topology_devices(topology)[1]) == math.prod(sizes)


@pytest.mark.ci
@needs_compiler
def test_a_check_does_not_wait_for_another():
    """Nor for a run that holds this machine's chips: it touches none."""
    check = [
        sys.executable,
        "-c",
        "from caspo_jax.compile_check import chips; print(len(chips.topology_devices('v5e:2x2')[1]), flush=True); input()",
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(check, **pipes) as first:
        assert first.stdout.readline() == "4\n"
        second = subprocess.run(check, input="\n", capture_output=True, text=True, timeout=120)
        first.communicate("\n")
    assert second.stdout == "4\n", second.stderr


def test_without_the_compiler_it_says_what_to_install(program, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    code, _, err = program("compile_check", **TINY)
    assert code == 1
    assert 'pip install ".[tpu]"' in err


def test_without_the_gpus_compiler_it_says_what_to_install(program, monkeypatch):
    def absent(name, count):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(chips, "gpu_devices", absent)
    code, _, err = program("compile_check", **(TINY | {"topology": "h100:4"}))
    assert code == 1
    assert 'pip install ".[gpu]"' in err


@pytest.mark.slow
@needs_gpu_compiler
@pytest.mark.parametrize("branches", [1, 4])
def test_on_a_gpu_an_iteration_reads_the_weights_once(program, tmp_path, branches):
    path = tmp_path / "check.json"
    flags = {"model_config": "qwen2.5-1.5b", "topology": "h200:1", "mesh": "data:1", "what": "cat"}
    sizes = {"questions": 16 // branches, "num_branches": branches, "prompt": 64, "max_new_tokens": 128}
    code, out, err = program("compile_check", **flags, **sizes, output=path)
    assert code == 0, err
    assert "waits for the host" in out
    found = json.loads(path.read_text())
    read = found["arguments"]["parameters (bfloat16)"] + found["arguments"]["KV cache"]
    assert read < found["hbm_traffic_a_chip_iteration"] < 1.2 * read
    assert found["host_waits"] <= 3
    # The copy of the layers is beside the stacks that it was made of.
    assert found["hbm_bytes_a_chip"]["arguments"] > sum(found["arguments"].values()) * 0.99


@pytest.mark.slow
@needs_gpu_compiler
def test_on_gpus_an_update_of_long_rows_hardly_asks_the_host(program, tmp_path):
    path = tmp_path / "check.json"
    flags = {
        "model_config": "qwen2.5-1.5b",
        "topology": "h100:4",
        "mesh": "fsdp:4",
        "rows": 16,
        "length": 2048,
        "train.remat": "full",
    }
    code, _, err = program("compile_check", **flags, output=path)
    assert code == 0, err
    found = json.loads(path.read_text())
    assert found["host_waits"] < 500
    assert found["collectives"]["reduce-scatter"]["bytes"] > 0


@pytest.mark.slow
@needs_compiler
def test_a_training_update_fits(program, tmp_path):
    path = tmp_path / "check.json"
    code, out, err = program("compile_check", **TINY, output=path)
    assert code == 0, err
    assert "fits" in out
    assert "all-gather" in out
    found = json.loads(path.read_text())
    memory = found["hbm_bytes_a_chip"]
    assert memory["peak"] < found["hbm_capacity"]
    # The state is updated in place: parameters and both moments, float32, a quarter on each chip.
    from caspo_jax.compile_check import model_shape
    from tests.shapes import parameter_count

    state = 3 * 4 * parameter_count(model_shape("tiny")) / 4
    assert memory["aliased"] == pytest.approx(state, rel=0.05)
    assert found["collectives"]["all-gather"]["count"] > 0
    # 6 products a parameter and token; attention and what is recomputed of the head come on top.
    products = 6 * parameter_count(model_shape("tiny")) * 4 * 256 / 4
    assert products < found["flops_a_chip_update"] < 2.5 * products


@pytest.mark.slow
@needs_compiler
def test_an_update_of_adapters_writes_nothing_else(program, tmp_path):
    path = tmp_path / "check.json"
    code, out, err = program("compile_check", **TINY, lora_rank=8, output=path)
    assert code == 0, err
    assert "adapters of rank 8, remat=none" in out
    found = json.loads(path.read_text())
    held, memory = found["arguments"], found["hbm_bytes_a_chip"]
    trained = held["adapters (float32)"] + held["Adam state (float32)"]
    # Small arrays fill whole tiles of the chip; the base weights would more than double it.
    assert trained <= memory["aliased"] < 1.25 * trained < held["base weights (bfloat16)"] + trained
    assert memory["arguments"] > held["base weights (bfloat16)"] + trained


@pytest.mark.slow
@needs_compiler
def test_the_search_updates_its_cache_in_place(program, tmp_path):
    path = tmp_path / "check.json"
    flags = {"model_config": "tiny", "topology": "v5e:2x2", "mesh": "data:2,tensor:2", "what": "cat"}
    sizes = {"questions": 2, "num_branches": 4, "max_new_tokens": 512, "output": path}
    code, _, err = program("compile_check", **flags, **sizes)
    assert code == 0, err
    found = json.loads(path.read_text())
    rows_keys = (
        2 * 4 * 2 * 2 * 512 * 128 * 2 / 4
    )  # layers, rows, heads, columns, dims, bytes; over four chips
    assert found["arguments"]["KV cache"] >= 2 * rows_keys
    assert found["largest_loop_array"] < rows_keys
    assert found["hbm_bytes_a_chip"]["aliased"] >= 2 * rows_keys
    # An iteration reads the weights and the cache once. No weight is gathered.
    read = sum(size for name, size in found["arguments"].items() if name != "tree")
    assert 0.8 * read < found["hbm_traffic_a_chip_iteration"] < 1.5 * read
    assert found["collectives"]["all-gather"]["bytes"] < 512 * 256 * 2 / 4  # half of the head's share
    assert found["when_taken"]["forks"]["hbm_bytes"] > 0
    assert found["when_taken"]["step_confidence"]["hbm_bytes"] > 0


@pytest.mark.slow
@needs_compiler
def test_what_does_not_fit_is_refused_with_numbers(program):
    big = {"model_config": "qwen3-8b", "topology": "v5e:2x2", "mesh": "fsdp:4", "rows": 4, "length": 256}
    code, _, err = program("compile_check", **big)
    assert code == 1
    assert "too large for 4 v5e" in err
    assert "GiB a chip" in err
    assert "about 8 with fsdp" in err
