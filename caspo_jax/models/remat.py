"""Rematerialisation: what the backward pass of a layer computes again instead of storing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

from caspo_jax.errors import UserError

Remat = Literal["none", "full", "dots"]
REMATS = ("none", "full", "dots")


def rematted(
    layer_step: Callable[..., Any], remat: Remat, *, in_loop: bool, on_mesh: bool
) -> Callable[..., Any]:
    """The step of a layer, whose backward pass recomputes what `remat` says (see `Decoder.hidden_states`).

    In a loop, `none` too recomputes norms, activations and the like: that takes next to no time, and stored
    they would be two thirds of the memory. On a mesh the backward pass always gathers a layer's weights
    again: stored, they would be the whole model on every device.

    Args:
      layer_step: (states, layer) -> (states, what is collected).
      remat: one of `REMATS`.
      in_loop: whether the layers run in a loop; where it is unrolled the compiler itself decides what to
        store.
      on_mesh: whether weights are gathered over devices.

    Raises:
      UserError: an unknown `remat`.
    """
    if remat not in REMATS:
        raise UserError(f"remat={remat!r} is unknown: choose one of {', '.join(REMATS)}")
    if remat == "none" and not in_loop:
        return layer_step
    # `prevent_cse` is a barrier that keeps the compiler from taking recomputed values out of the forward pass
    # instead. In a loop it could not do so anyway. On a mesh the barrier is needed for something else: it
    # keeps the gathers of one layer's weights apart from those of the next.
    return jax.checkpoint(layer_step, policy=_POLICIES[remat], prevent_cse=on_mesh or not in_loop)


def attended(x: jax.Array) -> jax.Array:
    """Marks what attention stores for its backward pass."""
    return checkpoint_name(x, _ATTENDED)


def multiplied(x: jax.Array) -> jax.Array:
    """Marks the result of a linear map and its adapter, added up: apart they would take twice the memory."""
    return checkpoint_name(x, _MULTIPLIED)


_ATTENDED, _MULTIPLIED = "attended", "multiplied"
_POLICIES = {
    "none": jax.checkpoint_policies.save_only_these_names(_ATTENDED, _MULTIPLIED),
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(_MULTIPLIED),
}
