"""Checks the arrays given to a decoder: all of one shape, else a UserError that names the odd one."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from caspo_jax.errors import UserError


def checked_inputs(token_ids: Any, **beside: Any) -> tuple[Any, ...]:
    """The arrays themselves, with lists converted; checks shapes and dtypes only, so it works under `jit`.

    Args:
      token_ids: [B, T] integers, B and T at least 1.
      beside: further arrays [B, T] by name, or None.

    Returns:
      `token_ids`, then the others in their order.

    Raises:
      UserError: names the array of another shape, or token_ids that are no integers.
    """
    token_ids = jnp.asarray(token_ids)
    if token_ids.ndim != 2 or 0 in token_ids.shape:
        raise UserError(
            f"token_ids of shape {token_ids.shape}: give rows of tokens, [B, T] with B and T >= 1"
        )
    if not jnp.issubdtype(token_ids.dtype, jnp.integer):
        raise UserError(f"token_ids must be integers, not {token_ids.dtype}")
    arrays = [None if array is None else jnp.asarray(array) for array in beside.values()]
    for name, array in zip(beside, arrays, strict=True):
        if array is not None and array.shape != token_ids.shape:
            raise UserError(
                f"{name} of shape {array.shape} does not match token_ids of shape {token_ids.shape}"
            )
    return (token_ids, *arrays)
