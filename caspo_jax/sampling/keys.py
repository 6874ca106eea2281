"""Randomness by place in the tree: keys folded from node to node, never by slot or position in a batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.errors import UserError


def key_data(key: Any) -> np.ndarray:
    """Raw threefry data [2] of a key, typed or raw.

    Raises:
      UserError: not one threefry key.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    data = np.asarray(key)
    if data.shape != (2,) or data.dtype != np.uint32:
        raise UserError(
            f"key has shape {data.shape} and dtype {data.dtype}: give one threefry key, e.g. jax.random.key(0)"
        )
    return data


def fold_in(keys: jax.Array, data: jax.Array | np.ndarray) -> jax.Array:
    """Raw threefry key data [..., 2] folded with integers [...]: the rows of jax.random.fold_in."""
    flat = jax.vmap(
        lambda k, d: jax.random.key_data(
            jax.random.fold_in(jax.random.wrap_key_data(k, impl="threefry2x32"), d)
        )
    )
    return flat(keys.reshape(-1, 2), jnp.broadcast_to(data, keys.shape[:-1]).reshape(-1)).reshape(keys.shape)


def uniforms(keys: jax.Array, index: jax.Array, attempt: jax.Array | int = 0) -> jax.Array:
    """[...] one uniform in [0, 1) a row: that of fold_in(node key [..., 2], token index), -`attempt` folded in if not 0.

    Negative, because fold_in(fold_in(node key, r), j) is also token j of the node's child of rank r.
    """
    tokens = fold_in(keys, index)
    tokens = jnp.where(jnp.asarray(attempt) > 0, fold_in(tokens, -jnp.asarray(attempt)), tokens)
    draw = jax.vmap(lambda k: jax.random.uniform(jax.random.wrap_key_data(k, impl="threefry2x32")))
    return draw(tokens.reshape(-1, 2)).reshape(keys.shape[:-1])
