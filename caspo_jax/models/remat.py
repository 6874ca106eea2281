"""What a backward pass computes again of each layer."""

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
    """The step of a layer whose backward pass computes again what `remat` says (see `Decoder.hidden_states`).

    In a loop norms, activations and the like are computed again with `none` too: they take next to no time, and kept they would
    be two thirds of the memory. On a mesh the backward pass gathers a layer's weights again in any case: kept, they would be
    all of the model on every device.

    Args:
      layer_step: (states, layer) -> (states, what is collected).
      remat: one of `REMATS`.
      in_loop: whether the layers are a loop; where they are written out the compiler itself weighs what to keep.
      on_mesh: whether weights are gathered.

    Raises:
      UserError: an unknown `remat`.
    """
    if remat not in REMATS:
        raise UserError(f"remat={remat!r} is unknown: choose one of {', '.join(REMATS)}")
    if remat == "none" and not in_loop:
        return layer_step
    # In a loop the compiler has no forward pass beside it to take the values from, and needs no barrier against that. On a
    # mesh the barrier stays: it also keeps apart what is gathered for one layer and for the next.
    return jax.checkpoint(layer_step, policy=_POLICIES[remat], prevent_cse=on_mesh or not in_loop)


def attended(x: jax.Array) -> jax.Array:
    """Marks what attention keeps for its backward pass."""
    return checkpoint_name(x, _ATTENDED)


def multiplied(x: jax.Array) -> jax.Array:
    """Marks the result of a linear map, its adapter's share added: kept apart the two would take twice the memory."""
    return checkpoint_name(x, _MULTIPLIED)


_ATTENDED, _MULTIPLIED = "attended", "multiplied"
_POLICIES = {
    "none": jax.checkpoint_policies.save_only_these_names(_ATTENDED, _MULTIPLIED),
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(_MULTIPLIED),
}
