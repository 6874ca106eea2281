"""Model shapes by name, so that a check needs no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.models.config import ModelConfig
from caspo_jax.models.rope import RopeConfig

_QWEN2 = {
    "model_type": "qwen2",
    "qkv_bias": True,
    "rope": RopeConfig(theta=1e6),
    "max_position_embeddings": 32768,
}
_QWEN3 = {"model_type": "qwen3", "rope": RopeConfig(theta=1e6), "max_position_embeddings": 40960}
_LLAMA31 = {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope": RopeConfig(
        rope_type="llama3",
        theta=500000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
}
# name -> (family, (V, E, width of the MLP, L, H, G, D), whether the head is the embedding)
_PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, ...], bool]] = {
    "tiny": (_QWEN3, (512, 256, 512, 2, 2, 2, 128), True),  # of no model: compiles in seconds
    "qwen2.5-0.5b": (_QWEN2, (151936, 896, 4864, 24, 14, 2, 64), True),
    "qwen2.5-1.5b": (_QWEN2, (151936, 1536, 8960, 28, 12, 2, 128), True),
    "qwen2.5-7b": (_QWEN2, (152064, 3584, 18944, 28, 28, 4, 128), False),
    "qwen3-8b": (_QWEN3, (151936, 4096, 12288, 36, 32, 8, 128), False),
    "llama-3.1-8b": (_LLAMA31, (128256, 4096, 14336, 32, 32, 8, 128), False),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
)


def _published(family: dict[str, Any], sizes: tuple[int, ...], tied: bool) -> ModelConfig:
    named: dict[str, Any] = dict(zip(_SIZES, sizes, strict=True))
    return ModelConfig(**named, **family, tie_word_embeddings=tied)


SHAPES = {name: _published(*description) for name, description in _PUBLISHED.items()}


def model_shape(name: str, flag: str = "--model_config") -> ModelConfig:
    """The shape of that name (any case), or the one that a Hugging Face config.json (or its folder) gives.

    Args:
      name: of a shape, a file or a folder.
      flag: what an error calls it.

    Raises:
      UserError: neither; or a config.json that the decoder does not take.
    """
    if name.lower() in SHAPES:
        return SHAPES[name.lower()]
    if not Path(name).exists():
        raise UserError(
            f"{flag}={name}: no such file, and no shape of that name ({', '.join(sorted(SHAPES))})"
        )
    return ModelConfig.from_hf(name)
