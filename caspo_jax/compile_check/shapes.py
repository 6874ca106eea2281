"""Model shapes by name, so that a check needs no checkpoint."""

from __future__ import annotations

from pathlib import Path

from caspo_jax.errors import UserError
from caspo_jax.models.config import ModelConfig
from caspo_jax.models.rope import RopeConfig

SHAPES = {
    "tiny": ModelConfig(
        model_type="qwen3",
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": ModelConfig(
        model_type="qwen2",
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        rope=RopeConfig(theta=1e6),
        max_position_embeddings=32768,
        qkv_bias=True,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": ModelConfig(
        model_type="qwen2",
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        rope=RopeConfig(theta=1e6),
        max_position_embeddings=32768,
        qkv_bias=True,
    ),
    "qwen3-8b": ModelConfig(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope=RopeConfig(theta=1e6),
        max_position_embeddings=40960,
    ),
    "llama-3.1-8b": ModelConfig(
        model_type="llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope=RopeConfig(
            rope_type="llama3",
            theta=500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
    ),
}


def model_shape(name: str) -> ModelConfig:
    """The shape of that name (any case), or the one that a Hugging Face config.json (or its folder) gives.

    Raises:
      UserError: neither; or a config.json that the decoder does not take.
    """
    if name.lower() in SHAPES:
        return SHAPES[name.lower()]
    if not Path(name).exists():
        raise UserError(
            f"--model_config={name}: no such file, and no shape of that name ({', '.join(sorted(SHAPES))})"
        )
    return ModelConfig.from_hf(name)


def parameter_count(config: ModelConfig) -> int:
    """All parameters of a decoder of this shape."""
    from caspo_jax.models.weights import weights

    total = 0
    for weight in weights(config):
        size = 1
        for dimension in weight.shape:
            size *= dimension
        total += size * (config.num_layers if weight.stacked else 1)
    return total
