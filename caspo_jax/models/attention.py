"""Grouped-query attention: over a whole sequence, and of one new token over the cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.models.cache import KVCache

# Finite, so that a padded query (which attends to nothing) yields a harmless mean and no NaN.
_MASKED = -1e30
# Into how many parts a cache is cut at most, and columns a part at least.
_MAX_PARTS = 4
_MIN_PART = 32


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


def attend_cache(q: jax.Array, cache: KVCache, layer: jax.Array, column: jax.Array) -> jax.Array:
    """Attention of one query a row over the valid columns of one layer's cache.

    Only the leading part of the cache that holds `column` is read, in whole parts of the capacity: a search whose
    buffers are half empty does half the work.

    Args:
      q: [R, H, D].
      cache: R rows, S columns.
      layer: scalar int32.
      column: scalar int32, the last column written.

    Returns:
      [R, H, D] in q's dtype.
    """
    rows, heads, dim = q.shape
    groups, capacity = cache.v.shape[2:4]
    q = q.reshape(rows, groups, heads // groups, dim)

    def over_columns(columns: int, q: jax.Array, cache: KVCache) -> jax.Array:
        start = (layer, 0, 0, 0, 0)
        keys = lax.dynamic_slice(cache.k, start, (1, rows, groups, dim, columns))[0]
        values = lax.dynamic_slice(cache.v, start, (1, rows, groups, columns, dim))[0]
        scores = jnp.einsum(
            "rgqd,rgds->rgqs", q, keys, precision=precision(q.dtype), preferred_element_type=jnp.float32
        )
        scores = jnp.where(cache.valid[:, None, None, :columns], scores * dim**-0.5, _MASKED)
        probabilities = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
        return jnp.einsum(
            "rgqs,rgsd->rgqd",
            probabilities,
            values,
            precision=precision(values.dtype),
            preferred_element_type=jnp.float32,
        ).astype(q.dtype)

    parts = max(1, min(_MAX_PARTS, capacity // _MIN_PART))
    part = -(-capacity // parts)
    widths = [min(capacity, part * (i + 1)) for i in range(parts)]
    branches = [functools.partial(over_columns, width) for width in widths]
    mixed = lax.switch(column // part, branches, q, cache) if parts > 1 else branches[0](q, cache)
    return mixed.reshape(rows, heads, dim)
