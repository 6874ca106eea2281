"""The small decoder that tests change to their needs, and how large a decoder is."""

from __future__ import annotations

import math
from typing import Any

from caspo_jax.models import ModelConfig
from caspo_jax.models.weights import parameter_shape, weights


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


def parameter_count(config: ModelConfig) -> int:
    """All parameters of a decoder of this shape."""
    return sum(math.prod(parameter_shape(weight, config)) for weight in weights(config))
