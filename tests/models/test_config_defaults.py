"""What a config.json may leave out, or say in another way, and what it then means."""

import dataclasses
import json

import pytest

from caspo_jax.errors import UserError
from caspo_jax.models import ModelConfig
from tests.models.test_config import LLAMA3, hf


def test_what_a_config_leaves_out_is_as_in_transformers():
    config = ModelConfig.from_hf(hf())
    assert (config.rms_norm_eps, config.initializer_range, config.tie_word_embeddings) == (1e-6, 0.02, False)
    assert ModelConfig.from_hf(hf(hidden_act="swish", rms_norm_eps=0)) == dataclasses.replace(
        config, rms_norm_eps=0.0
    )  # another name of silu
    assert ModelConfig.from_hf(hf(dtype="bfloat16", torch_dtype="float16")).dtype == "bfloat16"
    assert "attention_bias" not in config.to_hf()  # no key of qwen2
    assert ModelConfig.from_hf(hf(mlp_bias=True)) == config  # nor is this


def test_numbers_and_flags_are_read_in_any_spelling_of_the_same_value():
    assert ModelConfig.from_hf(hf(num_hidden_layers=4.0, rope_theta=10**6)) == ModelConfig.from_hf(hf())
    assert ModelConfig.from_hf(hf(tie_word_embeddings=1)) == ModelConfig.from_hf(hf(tie_word_embeddings=True))


def test_a_config_may_leave_its_dtype_to_the_weights():
    assert ModelConfig.from_hf(hf()).dtype is None
    assert ModelConfig.from_hf(hf(torch_dtype=None, dtype=None)).dtype is None
    assert ModelConfig.from_hf(hf(torch_dtype="torch.bfloat16")).dtype == "bfloat16"
    assert ModelConfig.from_hf(hf(dtype="float16")).to_hf("float32")["torch_dtype"] == "float32"


def test_head_dim_and_biases_by_architecture():
    qwen2 = ModelConfig.from_hf(hf())
    assert (qwen2.head_dim, qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (8, True, False, False)
    qwen3 = ModelConfig.from_hf(
        hf(model_type="qwen3", architectures=["Qwen3ForCausalLM"], attention_bias=True)
    )
    assert (qwen3.head_dim, qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm) == (128, True, True, True)
    llama = ModelConfig.from_hf(hf(model_type="llama", architectures=["LlamaForCausalLM"], mlp_bias=True))
    assert (llama.head_dim, llama.qkv_bias, llama.mlp_bias) == (8, False, True)
    assert (
        ModelConfig.from_hf({k: v for k, v in hf().items() if k != "num_key_value_heads"}).num_kv_heads == 4
    )


@pytest.mark.parametrize("model_type, context", [("qwen2", 32768), ("qwen3", 32768), ("llama", 2048)])
def test_the_context_that_a_config_leaves_out_is_the_architectures(model_type, context):
    name = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[model_type]
    changes = {"model_type": model_type, "architectures": [name], "max_position_embeddings": None}
    assert ModelConfig.from_hf(hf(**changes)).context == context
    for scaling in (LLAMA3, {"rope_type": "yarn", "factor": 2.0}):
        rope = ModelConfig.from_hf(hf(**changes, rope_scaling=scaling)).rope
        assert rope.original_max_position_embeddings == context


def test_eos_ids_are_merged_with_generation_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf(eos_token_id=5)))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5], "temperature": 0.7}))
    config = ModelConfig.from_hf(tmp_path)
    assert config.eos_token_ids == (5, 7)
    assert json.loads(config.generation_json)["temperature"] == 0.7
    assert hash(config) == hash(ModelConfig.from_hf(tmp_path))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5], "bos_token_id": 9}))
    assert ModelConfig.from_hf(tmp_path).bos_token_id == 9
    (tmp_path / "config.json").write_text(json.dumps(hf(eos_token_id=5, bos_token_id=0)))
    config = ModelConfig.from_hf(tmp_path)
    assert (config.bos_token_id, config.eos_token_ids) == (0, (5, 7))
    for name in ("config.json", "generation_config.json"):  # with the byte-order mark of an editor on Windows
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert ModelConfig.from_hf(tmp_path) == config
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ["</s>"]}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id"):
        ModelConfig.from_hf(tmp_path)
