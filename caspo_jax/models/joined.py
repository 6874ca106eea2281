"""Weights that read the same states, side by side: one product for several, while decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

# A GPU's product of a few rows ends before the next has begun: three kernels a layer fewer, and larger ones.
JOINS = (("q", "k", "v"), ("gate", "up"))


def joined(names: Sequence[str]) -> str:
    """The name of several weights side by side."""
    return "+".join(names)


def join(layer: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A layer's weights, or stacks of them, those of `JOINS`, and their biases, concatenated over their outputs.

    Weights with LoRA adapters stay as they are: theirs are products of their own.
    """
    weights = dict(layer)
    if any(f"{name}_lora_a" in weights for names in JOINS for name in names):
        return weights
    for names in JOINS:
        for suffix in ("", "_bias"):
            parts = [weights.pop(name + suffix) for name in names if name + suffix in weights]
            if parts:
                weights[joined(names) + suffix] = jnp.concatenate(parts, axis=-1)
    return weights
