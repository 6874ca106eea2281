"""The small decoder that tests change to their needs."""

from __future__ import annotations

from typing import Any

from caspo_jax.models import ModelConfig


def small_shape(**changes: Any) -> ModelConfig:
    """Qwen3-shaped and tied, with two layers; any field can be given another value."""
    fields: dict[str, Any] = {
        "model_type": "qwen3",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
    }
    return ModelConfig(**(fields | changes))
