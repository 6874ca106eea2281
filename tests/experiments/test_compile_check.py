"""Ahead-of-time checks for chips that are not there. The compiler, libtpu, is an extra: without it they are skipped."""

import importlib.util
import json

import pytest

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the tpu extra)"
)
TINY = {"model_config": "tiny", "topology": "v5e:2x2", "mesh": "fsdp:4", "rows": 4, "length": 256}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_config": "nothing"}, ("nothing", "qwen3-8b")),
        ({"topology": "h100:8"}, ("h100:8", "v5e")),
        ({"topology": "v6e:32x32"}, ("1024 chips", "256")),
    ],
)
def test_bad_input_is_named(program, change, words):
    code, out, err = program("compile_check", **(TINY | change))
    assert (code, out) == (1, "")
    for word in words:
        assert word in err


def test_without_the_compiler_it_says_what_to_install(program, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    code, _, err = program("compile_check", **TINY)
    assert code == 1
    assert "caspo_jax[tpu]" in err


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
    from caspo_jax.compile_check.shapes import parameter_count

    state = 3 * 4 * parameter_count(model_shape("tiny")) / 4
    assert memory["aliased"] == pytest.approx(state, rel=0.05)
    assert found["collectives"]["all-gather"]["count"] > 0
    # 6 products a parameter and token, 8 with recomputed layers; attention and the head come on top.
    products = 6 * parameter_count(model_shape("tiny")) * 4 * 256 / 4
    assert products < found["flops_a_chip_update"] < 2.5 * products


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
