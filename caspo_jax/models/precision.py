"""Products and sums in full precision, and the number that stands for minus infinity in scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

# Finite: a query that sees no key (one of padding) then gets a harmless mean, where (-inf) - (-inf) would be
# NaN.
LOWEST = -1e30


def precision(dtype: jax.typing.DTypeLike) -> lax.Precision:
    """HIGHEST for float32 operands (no TF32, no bf16 passes); bf16 operands need no more than the default."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """`jnp.einsum` of two arrays in the left one's dtype, accumulated and returned in float32.

    Args:
      spec: an einsum equation of two operands.
      left: of the dtype to multiply in.
      right: is cast to that dtype.
    """
    right = right.astype(left.dtype)
    return jnp.einsum(spec, left, right, precision=precision(left.dtype), preferred_element_type=jnp.float32)


@jax.custom_vjp
def looked_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows [..., E] of a table [V, E] at ids [...]; an id out of range is clipped into it.

    The gradient of the table is summed in float32. Summed in bfloat16, that of a frequent token would stop
    growing after some hundred occurrences, when each further one is less than half of the sum's last bit.
    """
    return _rows(table, ids)


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take(table, ids, axis=0, mode="clip")


def _looked_up_forward(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rows(table, ids), (table, ids)


def _looked_up_backward(
    residuals: tuple[jax.Array, jax.Array], upstream: jax.Array
) -> tuple[jax.Array, None]:
    table, ids = residuals
    wide = jax.ShapeDtypeStruct(table.shape, jnp.promote_types(table.dtype, jnp.float32))
    (total,) = jax.linear_transpose(lambda table: _rows(table, ids), wide)(upstream.astype(wide.dtype))
    return total.astype(table.dtype), None


looked_up.defvjp(_looked_up_forward, _looked_up_backward)
