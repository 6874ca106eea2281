"""Rotary embeddings: their angles, both dialects of their settings, and the context that they give."""

import dataclasses
import json

import numpy as np
import pytest

from caspo_jax.errors import UserError
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


def test_a_ramp_of_no_width_is_a_step():
    """Within six positions no dimension turns even once: all but the first are slowed down."""
    plain, _ = inverse_frequencies(RopeConfig(), 8)
    short, _ = inverse_frequencies(RopeConfig("yarn", factor=4.0, original_max_position_embeddings=6), 8)
    np.testing.assert_allclose(short, plain / [1, 4, 4, 4], rtol=1e-6)


def test_a_ramp_may_end_beyond_the_last_pair():
    """From dimension 1 to 5 of 8, of which four are angles."""
    rope = RopeConfig("yarn", theta=100.0, factor=4.0, original_max_position_embeddings=1000)
    plain, _ = inverse_frequencies(RopeConfig(theta=100.0), 8)
    slowed = np.array([0, 0, 0.25, 0.5])
    np.testing.assert_allclose(
        inverse_frequencies(rope, 8)[0], plain * (1 - slowed) + plain / 4 * slowed, rtol=1e-6
    )


def test_a_ramp_ends_at_the_last_dimension():
    """Every pair of these turns more than once; 2 is the first that turns less than 32 times."""
    rope = RopeConfig("yarn", theta=10.0, factor=4.0, original_max_position_embeddings=1000)
    plain, _ = inverse_frequencies(RopeConfig(theta=10.0), 8)
    slowed = np.array([0, 0, 0, 1 / 5])
    np.testing.assert_allclose(
        inverse_frequencies(rope, 8)[0], plain * (1 - slowed) + plain / 4 * slowed, rtol=1e-6
    )


def test_what_yarn_leaves_out_is_as_published():
    """From 32 turns to one within the original context; what is no longer than that is not made any sharper."""
    bare = RopeConfig("yarn", factor=4.0, original_max_position_embeddings=4096, truncate=False)
    full = dataclasses.replace(bare, beta_fast=32.0, beta_slow=1.0)
    np.testing.assert_array_equal(inverse_frequencies(bare, 64)[0], inverse_frequencies(full, 64)[0])
    for other in ({"beta_fast": 31.0}, {"beta_slow": 1.1}):
        changed = dataclasses.replace(full, **other)
        assert (inverse_frequencies(changed, 64)[0] != inverse_frequencies(full, 64)[0]).any()
    derived = hf(rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 96})
    assert ModelConfig.from_hf(derived).rope.factor == 512 / 96
    for factor in (0.5, 1.0):
        assert inverse_frequencies(dataclasses.replace(full, factor=factor), 64)[1] == 1.0


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


def test_of_two_sections_and_two_thetas_one_is_taken():
    """`rope_scaling` before `rope_parameters`; a theta where the section has it, then beside, then in the other section."""
    linear, other = {"rope_type": "linear", "factor": 4.0}, {"rope_type": "default", "rope_theta": 3e5}
    bare = {k: v for k, v in hf().items() if k != "rope_theta"}
    assert ModelConfig.from_hf(hf(rope_parameters=other)).rope == RopeConfig(theta=3e5)
    both = {"rope_scaling": linear, "rope_parameters": other}
    assert ModelConfig.from_hf(bare | both).rope == RopeConfig("linear", 3e5, 4.0)
    assert ModelConfig.from_hf(hf(**both)).rope == RopeConfig("linear", 1e6, 4.0)
    assert ModelConfig.from_hf(hf(rope_scaling=linear | {"rope_theta": 2e4})).rope.theta == 2e4
    assert ModelConfig.from_hf(hf(rope_scaling=linear | {"type": "default"})).rope.rope_type == "linear"


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


@pytest.mark.parametrize("scaling", [LLAMA3, {"rope_type": "yarn", "factor": 4.0}])
@pytest.mark.parametrize("dialect", ["rope_scaling", "rope_parameters"])
def test_the_original_context_is_read_in_the_section_and_beside_it(scaling, dialect):
    """transformers 5 takes the one beside the section, older ones that inside: two that differ are two models."""
    key = "original_max_position_embeddings"
    beside, inside = {key: 256}, scaling | {key: 256}
    for given in ({dialect: inside}, beside | {dialect: scaling}, beside | {dialect: inside}):
        config = ModelConfig.from_hf(hf(**given))
        assert config.rope.original_max_position_embeddings == 256
        assert ModelConfig.from_hf(config.to_hf()) == config
    assert ModelConfig.from_hf(hf(**{dialect: scaling})).rope.original_max_position_embeddings == 512
    with pytest.raises(UserError, match=r"is 128 in .* and 256 beside it"):
        ModelConfig.from_hf(hf(**beside, **{dialect: scaling | {key: 128}}))


# As DeepSeek-R1-0528-Qwen3-8B publishes it: in all, cos and sin are scaled by 1.
ATTN = {"factor": 4.0, "original_max_position_embeddings": 128, "attn_factor": 0.8782488562869419}


def test_attn_factor_scales_cos_and_sin_and_survives_for_every_reader():
    config = ModelConfig.from_hf(hf(rope_scaling=ATTN | {"rope_type": "yarn"}))
    assert inverse_frequencies(config.rope, 8)[1] == pytest.approx(1.0)
    written = json.loads(json.dumps(config.to_hf()))
    for dialect in ("rope_scaling", "rope_parameters"):
        assert written[dialect]["attention_factor"] == pytest.approx(1.0)  # all that transformers reads
        assert written[dialect]["attn_factor"] == ATTN["attn_factor"]  # what older vLLM multiplies itself
    assert ModelConfig.from_hf(written) == config
    outright = ModelConfig.from_hf(hf(rope_scaling=ATTN | {"type": "yarn", "attention_factor": 1.2}))
    assert inverse_frequencies(outright.rope, 8)[1] == 1.2
    without = ModelConfig.from_hf(hf(rope_scaling=ATTN | {"type": "yarn", "attn_factor": None}))
    assert inverse_frequencies(without.rope, 8)[1] == pytest.approx(1 + 0.1 * np.log(4))
    assert "attn_factor" not in without.to_hf()["rope_scaling"]


@pytest.mark.parametrize("dialect", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "rope_type, key, value",
    [
        ("yarn", "made_up", 2),
        ("yarn", "extrapolation_factor", 0.5),
        ("yarn", "apply_yarn_scaling", False),
        ("yarn", "low_freq_factor", 1.0),
        ("yarn", "mrope_section", [2, 3, 3]),
        ("linear", "attention_factor", 1.1),
        ("llama3", "attn_factor", 0.9),
        ("default", "factor", 4.0),
        ("default", "truncate", False),
    ],
)
def test_a_key_that_the_type_does_not_compute_with_is_refused(tmp_path, dialect, rope_type, key, value):
    known = {"linear": {"factor": 2.0}, "yarn": ATTN, "llama3": LLAMA3}.get(rope_type, {})
    section = known | {"rope_type": rope_type, key: value}
    (tmp_path / "config.json").write_text(json.dumps(hf(**{dialect: section})))
    with pytest.raises(UserError) as error:
        ModelConfig.from_hf(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: {key} ")
    assert f"in {dialect} " in message
    assert repr(rope_type) in message


@pytest.mark.parametrize(
    "section",
    [
        {"factor": 1.0, "attention_factor": 1, "partial_rotary_factor": 1.0, "made_up": None},
        {"original_max_position_embeddings": 64, "finetuned": True, "type": "default"},
        {"truncate": True, "mrope_interleaved": False, "factor": None, "attn_factor": None},
    ],
)
def test_keys_that_change_nothing_are_no_obstacle(section):
    plain = ModelConfig.from_hf(hf())
    assert ModelConfig.from_hf(hf(rope_scaling=section)) == plain
    assert ModelConfig.from_hf(hf(rope_parameters=section | {"rope_theta": 1e6})) == plain
    nested = {"full_attention": section | {"rope_theta": 1e6}}
    assert ModelConfig.from_hf(hf(rope_parameters=nested)) == plain


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"rope_type": "longrope", "factor": 8.0}, ["'longrope'", "known: default"]),
        ({"rope_type": "Yarn", "factor": 8.0}, ["'Yarn'", "yarn"]),
        ({"rope_type": "linear"}, ["'linear'", "factor"]),
        ({"rope_type": "yarn", "factor": 2.0}, ["original_max_position_embeddings"]),
        ({"rope_type": "llama3", "factor": 8.0}, ["low_freq_factor, high_freq_factor, original"]),
        ({"factor": 2.0}, ["'default'", "factor 2.0"]),
        ({"rope_type": "linear", "factor": 2.0, "truncate": False}, ["'linear'", "truncate"]),
        (ATTN | {"rope_type": "yarn", "attn_factor": 0.0}, ["attn_factor", "greater than 0"]),
        (ATTN | {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.3}, ["attention_factor"]),
    ],
)
def test_what_no_rotation_follows_from_is_refused_where_it_is_made(fields, words):
    with pytest.raises(UserError, match="config: rope") as error:
        RopeConfig(**fields)
    assert all(word in str(error.value) for word in words), error.value
