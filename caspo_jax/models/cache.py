"""The KV cache: a plain pytree, and the few functions that move whole rows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.models.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (rotated when written) and values of R rows over S physical columns.

    A column is the loop's iteration, the same for all rows; which columns a row owns is in `valid`, so that a write
    is one dynamic_update_slice and never a scatter. Heads stand before columns, and keys are stored transposed:
    both products of a decoding step then read the cache as it lies, without a transposed copy.
    """

    k: jax.Array  # [L, R, G, D, S], rotated
    v: jax.Array  # [L, R, G, S, D]
    valid: jax.Array  # [R, S] bool

    @property
    def rows(self) -> int:
        """R."""
        return self.valid.shape[0]

    @property
    def capacity(self) -> int:
        """S."""
        return self.valid.shape[1]


def init_cache(config: ModelConfig, rows: int, capacity: int, dtype: jax.typing.DTypeLike) -> KVCache:
    """An empty cache of `rows` rows and `capacity` columns."""
    lead, dim = (config.num_layers, rows, config.num_kv_heads), config.head_dim
    return KVCache(
        k=jnp.zeros((*lead, dim, capacity), dtype),
        v=jnp.zeros((*lead, capacity, dim), dtype),
        valid=jnp.zeros((rows, capacity), jnp.bool_),
    )


def repeat_rows(cache: KVCache, n: int) -> KVCache:
    """Row r becomes rows r*n .. r*n+n-1: [R] -> [R*n]."""
    return KVCache(
        k=jnp.repeat(cache.k, n, axis=1),
        v=jnp.repeat(cache.v, n, axis=1),
        valid=jnp.repeat(cache.valid, n, axis=0),
    )


def copy_rows(cache: KVCache, source: jax.Array, destination: jax.Array, count: jax.Array) -> KVCache:
    """Copies row `source[i]` onto row `destination[i]` for i < count, in order.

    A loop of `count` trips over one row each: inside a donated `while_loop` the cache is updated in place, and an
    iteration without a fork costs nothing.

    Args:
      cache: R rows.
      source: [n] int32 row indices.
      destination: [n] int32 row indices.
      count: scalar int32, at most n.
    """

    def copy_row(array: jax.Array, axis: int, i: jax.Array) -> jax.Array:
        row = lax.dynamic_slice_in_dim(array, source[i], 1, axis)
        return lax.dynamic_update_slice_in_dim(array, row, destination[i], axis)

    def body(i, cache: KVCache) -> KVCache:
        return KVCache(
            k=copy_row(cache.k, 1, i), v=copy_row(cache.v, 1, i), valid=copy_row(cache.valid, 0, i)
        )

    return lax.fori_loop(0, count, body, cache)


def grow(cache: KVCache, capacity: int) -> KVCache:
    """Adds empty columns up to `capacity`; a cache that is already as large is returned as it is."""
    extra = capacity - cache.capacity
    if extra <= 0:
        return cache

    def pad(array: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(array, [(0, extra if i == axis else 0) for i in range(array.ndim)])

    return KVCache(k=pad(cache.k, 4), v=pad(cache.v, 3), valid=pad(cache.valid, 1))


def take_rows(cache: KVCache, rows: jax.Array) -> KVCache:
    """Gathers rows [n] into a new cache of n rows (compaction between loop segments, never inside one)."""
    return KVCache(
        k=jnp.take(cache.k, rows, axis=1),
        v=jnp.take(cache.v, rows, axis=1),
        valid=jnp.take(cache.valid, rows, axis=0),
    )
