"""Rotary embeddings: their angles, both dialects of their settings, and the context that they give."""

import json

import numpy as np
import pytest

from caspo_jax.models import ModelConfig, RopeConfig
from caspo_jax.models.rope import inverse_frequencies, rotation
from tests.models.test_config import LLAMA3, hf


def test_rope_matches_transformers(golden):
    cases = json.loads((golden / "rope.json").read_text())["cases"]
    assert {case["rope_parameters"]["rope_type"] for case in cases} == {"default", "linear", "llama3", "yarn"}
    for case in cases:
        config = {"rope_parameters": case["rope_parameters"], "max_position_embeddings": 512}
        rope = RopeConfig.from_hf(config)
        frequencies, factor = inverse_frequencies(rope, case["head_dim"])
        assert frequencies.dtype == np.float32
        np.testing.assert_allclose(frequencies, case["inv_freq"], rtol=3e-7)
        assert factor == pytest.approx(case["attention_factor"], rel=1e-6)
        cos, sin = rotation(rope, case["head_dim"], np.asarray(case["positions"]))
        np.testing.assert_allclose(cos, case["cos"], atol=2e-3)  # one ulp of a frequency, times 4000
        np.testing.assert_allclose(cos[:3], np.asarray(case["cos"])[:3], atol=1e-5)
        np.testing.assert_allclose(cos**2 + sin**2, factor**2, rtol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"type": "linear", "factor": 4.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ],
)
def test_hub_dialect_equals_rope_parameters(scaling):
    old = ModelConfig.from_hf(hf(rope_scaling=scaling))
    params = {"rope_theta": 1e6, "rope_type": scaling.get("rope_type", scaling.get("type"))} | scaling
    new = hf(rope_parameters=params)
    del new["rope_theta"]
    assert old == ModelConfig.from_hf(new)
    assert old.rope.theta == 1e6
    assert old.rope.factor == 4.0


def test_theta_beside_rope_parameters_is_read():
    assert ModelConfig.from_hf(hf(rope_parameters={"rope_type": "default"})).rope.theta == 1e6
    assert ModelConfig.from_hf({k: v for k, v in hf().items() if k != "rope_theta"}).rope.theta == 1e4


@pytest.mark.parametrize(
    "scaling, context",
    [
        (None, 512),
        ({"rope_type": "linear", "factor": 4.0}, 512),
        (LLAMA3 | {"original_max_position_embeddings": 64}, 512),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "original_max_position_embeddings": 96}, 512),  # no factor: 512 / 96
        ({"rope_type": "yarn", "factor": 1.3, "original_max_position_embeddings": 511}, 664),
    ],
)
def test_yarn_alone_raises_the_context(scaling, context):
    config = ModelConfig.from_hf(hf(rope_scaling=scaling))
    assert config.max_position_embeddings == 512
    assert config.context == ModelConfig.from_hf(config.to_hf()).context == context
    assert ("factor" in config.context_key) == (context != 512)
    assert ("max_position_embeddings" in config.context_key) == (context == 512)


def test_the_original_context_is_read_where_these_architectures_read_it():
    """Beside the rope section it belongs to others (Phi-3); transformers does not look at it here."""
    beside = {"original_max_position_embeddings": 256}
    inside = LLAMA3 | {"original_max_position_embeddings": 128}
    assert ModelConfig.from_hf(hf(**beside, rope_scaling=inside)).rope.original_max_position_embeddings == 128
    assert ModelConfig.from_hf(hf(**beside, rope_scaling=LLAMA3)).rope.original_max_position_embeddings == 512
