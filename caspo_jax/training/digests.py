"""Digests that tell one policy's weights from another's, the same on any mesh."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from caspo_jax.models.lora import base_model, has_adapters
from caspo_jax.sharding import to_host


def weights_digest(model: Any, dtype: Any = None) -> str:
    """SHA-256 over every parameter's name, shape, dtype and a 128-bit sum of its bits.

    Args:
      model: whose parameters.
      dtype: what floating-point ones are rounded to first; default: they stay as they are.
    """
    digest = hashlib.sha256()
    for path, leaf, read in _leaves(model, dtype):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {read};".encode())
        digest.update(to_host(_bit_sums(leaf, read)).astype("<u4").tobytes())
    return digest.hexdigest()


def base_digest(model: Any, own: str | None = None) -> str:
    """Of the weights without adapters, rounded to bfloat16: the same in whatever dtype a policy was loaded.

    Args:
      model: whose weights.
      own: its `weights_digest`, if that is known: where there is nothing to leave out or to round it is this digest too.
    """
    if has_adapters(model):
        model, own = base_model(model), None
    if own is not None and all(leaf.dtype == read for _, leaf, read in _leaves(model, jnp.bfloat16)):
        return own
    return weights_digest(model, jnp.bfloat16)


def _leaves(model: Any, dtype: Any) -> list[tuple[Any, jax.Array, jnp.dtype]]:
    """Path and array of every parameter, and the dtype that it is read in."""

    def read(leaf: jax.Array) -> jnp.dtype:
        rounded = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.dtype(dtype if rounded else leaf.dtype)

    state = nnx.to_pure_dict(nnx.split(model)[1])
    return [(path, leaf, read(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


@functools.partial(jax.jit, static_argnums=1)
def _bit_sums(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Four sums of a mix of (bits as `dtype`, index), modulo 2^32: integers, so their order does not matter."""
    width = dtype.itemsize
    bits = jax.lax.bitcast_convert_type(array.astype(dtype), jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    sums = []
    for number in range(4):
        x = (bits ^ (index * jnp.uint32(0x9E3779B1 + 2 * number))) + jnp.uint32(
            0x85EBCA6B * (number + 1) & 0xFFFFFFFF
        )
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> shift)) * jnp.uint32(factor)
        sums.append(jnp.sum(x ^ (x >> 16), dtype=jnp.uint32))
    return jnp.stack(sums)
