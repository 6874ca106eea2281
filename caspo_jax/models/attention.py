"""Grouped-query attention: over a whole sequence, and of one new token over the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

# Finite, so that a padded query (which attends to nothing) yields a harmless mean and no NaN.
_MASKED = -1e30


def precision(dtype: jax.typing.DTypeLike) -> lax.Precision:
    """HIGHEST for float32 operands (no TF32, no bf16 passes); bf16 operands need no more than the default."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v with float32 scores; query heads share their group's keys and values.

    Args:
      q: [B, T, H, D].
      k: [B, S, G, D], H a multiple of G.
      v: [B, S, G, D].
      mask: [B, T, S] bool, what each query may see.

    Returns:
      [B, T, H, D] in q's dtype.
    """
    batch, length, heads, dim = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, dim)
    scores = jnp.einsum(
        "btgqd,bsgd->bgqts", q, k, precision=precision(q.dtype), preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, _MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum(
        "bgqts,bsgd->btgqd",
        probabilities,
        v,
        precision=precision(v.dtype),
        preferred_element_type=jnp.float32,
    )
    return mixed.reshape(batch, length, heads, dim).astype(q.dtype)
