"""Under FSDP no device holds more of the parameters than its share and one layer; while decoding, than its share."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from on_devices import SIZES
from processes import run

DEVICES = 8


@pytest.fixture(
    scope="module",
    params=[
        "compile",
        pytest.param("compile_none", marks=pytest.mark.ci),
        pytest.param("compile_dots", marks=pytest.mark.ci),
    ],
)
def program(request, tmp_path_factory):
    """An update's, with each `remat`."""
    folder = tmp_path_factory.mktemp("compile")
    run(Path(__file__).parent / "on_devices.py", request.param, folder, f"fsdp:{DEVICES}", devices=DEVICES)
    return dict(np.load(folder / f"fsdp:{DEVICES}.npz"))


def shapes(program):
    """Every array of the optimised program."""
    found = re.findall(r"\b(?:f32|bf16)\[([0-9,]+)\]", str(program["hlo"]))
    return {tuple(map(int, shape.split(","))) for shape in found}


def test_no_array_has_the_shape_of_a_whole_parameter(program):
    layers, hidden, wide, vocab = (
        SIZES[name] for name in ("num_layers", "hidden_size", "intermediate_size", "vocab_size")
    )
    heads, keys = SIZES["num_heads"] * 8, SIZES["num_kv_heads"] * 8
    there = shapes(program)
    for width in (wide, heads, keys):
        for whole in itertools.permutations((layers, hidden, width)):
            assert whole not in there
    assert (vocab, hidden) not in there, "the embedding or the head is whole somewhere"
    assert (hidden, vocab) not in there
    # The same search finds what is there: one layer's weights, and a device's share of all layers.
    assert (hidden, wide) in there
    assert (layers, hidden // DEVICES, wide) in there


@pytest.mark.parametrize("program", ["compile"], indirect=True)
def test_temporaries_are_far_from_a_copy_of_the_parameters(program):
    parameters = int(program["parameters"])
    # Parameters and two moments, split eight ways, updated in place.
    assert int(program["arguments"]) < 1.1 * 3 * parameters / DEVICES + 100_000
    assert int(program["aliased"]) > 0.95 * 3 * parameters / DEVICES
    # The gradient's share, one layer, activations.
    assert int(program["temporaries"]) < 0.6 * parameters


def test_a_token_of_few_rows_gathers_no_weight(tmp_path):
    """Of Qwen2.5-7B on fsdp:4 every device gathered all layers and the head for every token: 11 GB, and 1 GiB to hold it."""
    run(Path(__file__).parent / "on_devices.py", "decode", tmp_path, f"fsdp:{DEVICES}", devices=DEVICES)
    there = shapes(np.load(tmp_path / f"fsdp:{DEVICES}.npz"))
    layers, hidden, wide, vocab = (
        SIZES[name] for name in ("num_layers", "hidden_size", "intermediate_size", "vocab_size")
    )
    for width in (wide, SIZES["num_heads"] * 8, SIZES["num_kv_heads"] * 8, vocab):
        assert not there & {(hidden, width), (width, hidden), (1, hidden, width), (1, width, hidden)}
    assert (layers, hidden // DEVICES, wide) in there
    assert (vocab, hidden // DEVICES) in there
