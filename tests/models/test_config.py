"""config.json of every supported architecture: read, written, or refused by name."""

import json

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.models import ModelConfig
from caspo_jax.models.rope import inverse_frequencies
from tests.shapes import small_shape


def hf(**changes):
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_theta": 1e6,
    }
    return config | changes


@pytest.mark.parametrize(
    "params",
    [
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "mscale": 0.7,
            "mscale_all_dim": 1.3,
            "beta_fast": 16.0,
            "truncate": False,
        },
    ],
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_config_survives_writing_and_reading_in_both_dialects(model_type, params):
    names = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
    config = ModelConfig.from_hf(
        hf(
            model_type=model_type,
            architectures=[f"{names[model_type]}ForCausalLM"],
            rope_parameters=params,
            eos_token_id=[3, 4],
            bos_token_id=1,
            head_dim=16,
            torch_dtype="bfloat16",
            tie_word_embeddings=True,
        )
    )
    written = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(written) == config
    v5 = {
        key: value
        for key, value in written.items()
        if key not in ("rope_theta", "rope_scaling", "torch_dtype")
    }
    v4 = {key: value for key, value in written.items() if key not in ("rope_parameters", "dtype")}
    assert ModelConfig.from_hf(v5) == ModelConfig.from_hf(v4) == config


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "mistral"}, ["model_type 'mistral'", "known: qwen2, qwen3, llama"]),
        ({"model_type": "qwen2"}, ["qwen2", "qkv_bias=True", "not qkv_bias=False"]),
        (
            {"model_type": "qwen2", "qkv_bias": True, "output_bias": True},
            ["qwen2", "output_bias=False", "output_bias=True"],
        ),
        ({"model_type": "qwen2", "qkv_bias": True, "mlp_bias": True}, ["qwen2", "mlp_bias=False"]),
        ({"model_type": "qwen3", "qkv_bias": True}, ["qwen3", "qkv_bias=True and output_bias=False"]),
        ({"model_type": "llama", "output_bias": True}, ["llama", "qkv_bias=False and output_bias=True"]),
        ({"model_type": "qwen3", "mlp_bias": True}, ["qwen3", "mlp_bias=False"]),
    ],
)
def test_a_decoder_that_no_checkpoint_could_hold_is_refused_where_it_is_made(changes, words):
    with pytest.raises(UserError, match=r"^config: ") as error:
        small_shape(**changes)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2", "qkv_bias": True},
        {"model_type": "qwen3"},
        {"model_type": "qwen3", "qkv_bias": True, "output_bias": True},
        {"model_type": "llama", "mlp_bias": True},
        {"model_type": "llama", "qkv_bias": True, "output_bias": True},
    ],
)
def test_what_can_be_made_can_be_written_and_read(changes):
    config = small_shape(**changes)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_unused_sliding_windows_are_no_obstacle():
    ModelConfig.from_hf(hf(use_sliding_window=False, sliding_window=131072, max_window_layers=2))
    ModelConfig.from_hf(hf(use_sliding_window=True, sliding_window=128, max_window_layers=4))
    ModelConfig.from_hf(hf(layer_types=["full_attention"] * 4))
    ModelConfig.from_hf(hf(use_sliding_window=True, sliding_window=None))
    ModelConfig.from_hf(hf(use_sliding_window=True, num_hidden_layers=28))  # the layers below 28 have none
    used = {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2}
    ModelConfig.from_hf(
        hf(model_type="llama", architectures=["LlamaForCausalLM"], **used)
    )  # it knows no such key


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, ["MixtralForCausalLM"]),
        ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, ["Qwen3MoeForCausalLM"]),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, ["Qwen2ForSequenceClassification"]),
        ({"model_type": None, "architectures": None}, ["None"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["rope type", "dynamic"]),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, ["rope type", "longrope"]),
        ({"rope_parameters": {"rope_type": "proportional"}}, ["rope type", "proportional"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["linear", "factor"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor"]),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "default"}}}, ["sliding_attention"]),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_theta": 1e4}}},
            ["per layer type", "full_attention, sliding_attention"],
        ),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2}, ["sliding"]),
        ({"use_sliding_window": True, "max_window_layers": 2}, ["sliding"]),
        ({"use_sliding_window": True, "num_hidden_layers": 29}, ["sliding"]),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, ["sliding"]),
        ({"layer_types": ["linear_attention"] * 4}, ["linear_attention"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["gptq"]),
        ({"torch_dtype": "float8_e4m3fn"}, ["float8_e4m3fn"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_hidden_layers": "4"}, ["num_hidden_layers"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers must be an integer, not True"]),
        ({"rms_norm_eps": True}, ["rms_norm_eps must be a finite number, not True"]),
        ({"num_attention_heads": 3}, ["hidden_size 32"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads 3"]),
        ({"head_dim": 7}, ["head_dim"]),
        ({"vocab_size": 0}, ["vocab_size"]),
        ({"rope_theta": "big"}, ["rope_theta"]),
        ({"rope_theta": 0}, ["theta", "greater than 0"]),
        (
            {"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            ["theta", "greater than 1"],
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, ["factor", "greater than 0"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 10**39}}, ["factor", "at most 3.4e+38"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 10**400}}, ["factor"]),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, ["high_freq_factor", "low_freq_factor"]),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, ["high_freq_factor 1.0 must be greater"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "linear"]),
        ({"tie_word_embeddings": "false"}, ["tie_word_embeddings", "'false'"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "</s>"]),
        ({"rms_norm_eps": "tiny"}, ["rms_norm_eps", "tiny"]),
        ({"rms_norm_eps": -1e-6}, ["rms_norm_eps", "0 or more"]),
        ({"rms_norm_eps": 10**400}, ["rms_norm_eps", "finite"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings", "at least 1"]),
    ],
)
def test_refusals_name_what_is_wrong(changes, words):
    with pytest.raises(UserError) as error:
        ModelConfig.from_hf(hf(**changes))
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


ODD = (None, "x", "4", 1.5, -1, 0, True, [], [1], [None], ["x"], {}, {"a": 1}, float("nan"), float("inf"))
ROPES = {
    "linear": {"factor": 2.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 128},
    "yarn": {
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.2,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "beta_fast": 32,
        "beta_slow": 1,
        "truncate": True,
    },
}


def test_a_value_of_any_kind_is_read_or_refused_in_one_line():
    """What is read gives frequencies that are numbers, and a config that can be written."""
    full = hf(use_sliding_window=True, sliding_window=None, max_window_layers=4, layer_types=None)
    full |= {
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    full |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "head_dim": 8, "rms_norm_eps": 1e-5}
    full |= {"quantization_config": None, "rope_scaling": None, "rope_parameters": None, "torch_dtype": None}
    cases = [full | {key: value} for key in full for value in ODD]
    for kind, rope in ROPES.items():
        rope = rope | {"rope_type": kind, "rope_theta": 1e4}
        for name in ("rope_scaling", "rope_parameters"):
            cases += [hf(**{name: rope | {key: value}}) for key in rope for value in ODD]
    read, refusals = 0, []
    for case in cases:
        try:
            config = ModelConfig.from_hf(case)
        except UserError as error:
            refusals.append(str(error))
            continue
        frequencies, factor = inverse_frequencies(config.rope, 8)
        assert np.isfinite(frequencies).all()
        assert np.isfinite(factor)
        assert hash(ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))))
        read += 1
    assert not any("\n" in refusal for refusal in refusals)
    assert 50 < read < len(cases) / 2


def test_config_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*config\.json: No such file"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2",\n oops}')
    with pytest.raises(UserError, match=r"config\.json:2: not valid JSON"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="expected a JSON object"):
        ModelConfig.from_hf(tmp_path)


@pytest.mark.parametrize("pad, kept", [(3, 3), (200, None), (-1, -1)])
def test_a_pad_id_that_generation_config_alone_names_does_not_make_the_export_unreadable(tmp_path, pad, kept):
    """transformers makes it the padding index of the embeddings, and refuses one that they do not have."""
    (tmp_path / "config.json").write_text(json.dumps(hf(vocab_size=97, pad_token_id=None)))
    (tmp_path / "generation_config.json").write_text(json.dumps({"pad_token_id": pad}))
    assert ModelConfig.from_hf(tmp_path).to_hf()["pad_token_id"] == kept


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 0},
        {"num_key_value_heads": 3},
        {"head_dim": 15},
        {"rope_parameters": {"rope_type": "linear", "factor": -1}},
    ],
)
def test_values_of_no_model_are_refused_in_the_files_name(tmp_path, wrong):
    (tmp_path / "config.json").write_text(json.dumps(hf(**wrong)))
    with pytest.raises(UserError) as error:
        ModelConfig.from_hf(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ")
