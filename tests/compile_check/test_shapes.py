"""Named shapes have the published numbers of parameters; chips and topologies are refused by name."""

import json

import pytest

from caspo_jax.compile_check import CHIPS, SHAPES, model_shape, topology_devices
from caspo_jax.compile_check.gpus import GPUS
from caspo_jax.errors import UserError
from tests.shapes import parameter_count

# Model cards: "total parameters" of the safetensors index.
PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "llama-3.1-8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    assert parameter_count(model_shape(name.upper())) == PUBLISHED[name]


def test_a_config_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPES["qwen3-8b"].to_hf()))
    read = model_shape(str(path))
    assert parameter_count(read) == PUBLISHED["qwen3-8b"]
    assert model_shape(str(tmp_path)) == read


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: model_shape("qwen9"), "llama-3.1-8b"),
        (lambda: topology_devices("v5e"), "CHIP:SHAPE"),
        (lambda: topology_devices("v99:2x2"), "v5e"),
        (lambda: topology_devices("v5e:0x4"), "v5e:0x4"),
        (lambda: topology_devices("v5p:8x8x8"), "512 chips"),
        (lambda: topology_devices("h100:512"), "512 chips"),
    ],
)
def test_refusals(call, word):
    with pytest.raises(UserError, match=word):
        call()


def test_a_gpus_description_has_its_figures():
    text = GPUS["h100"].target_config
    for figure in ("core_count: 132", "major: 9 minor: 0", "memory_bandwidth: 3350000000000"):
        assert figure in text
    assert text.count("{") == text.count("}")


def test_rates_are_positive():
    for name, chip in CHIPS.items():
        assert chip.name == name
        assert min(chip.flops, chip.hbm_bytes, chip.hbm_bandwidth, chip.ici_bandwidth) > 1e9
