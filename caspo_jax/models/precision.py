"""Products in full precision, and the number that stands for minus infinity in scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

# Finite: what sees nothing (a query of padding) gets a harmless mean, where (-inf) - (-inf) would be NaN.
LOWEST = -1e30


def precision(dtype: jax.typing.DTypeLike) -> lax.Precision:
    """HIGHEST for float32 operands (no TF32, no bf16 passes); bf16 operands need no more than the default."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """`jnp.einsum` of two arrays in the left one's dtype, accumulated and returned in float32.

    Args:
      spec: an einsum equation of two operands.
      left: of the dtype to multiply in.
      right: is cast to it.
    """
    right = right.astype(left.dtype)
    return jnp.einsum(spec, left, right, precision=precision(left.dtype), preferred_element_type=jnp.float32)
