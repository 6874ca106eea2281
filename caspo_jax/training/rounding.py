"""float32 results in the dtype that parameters are kept in; bfloat16 is rounded at random, so that the mean is exact."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def stored_like(old: Any, new: Any, key: jax.Array) -> Any:
    """float32 parameters in the dtypes of `old`: as they are, or rounded to bfloat16 at random."""
    leaves, tree = jax.tree.flatten(new)
    wanted = [leaf.dtype for leaf in jax.tree.leaves(old)]
    stored = [
        stochastic_round(leaf, jax.random.fold_in(key, i)) if dtype == jnp.bfloat16 else leaf.astype(dtype)
        for i, (leaf, dtype) in enumerate(zip(leaves, wanted, strict=True))
    ]
    return jax.tree.unflatten(tree, stored)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down with probabilities that make the mean exact.

    An update far below a weight's last bit then moves it now and then, where rounding to nearest would lose it.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
