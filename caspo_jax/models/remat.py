"""What a backward pass computes again of each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

from caspo_jax.errors import UserError

Remat = Literal["none", "full", "dots"]
REMATS = ("none", "full", "dots")


def rematted(layer_step: Callable[..., Any], remat: Remat, on_mesh: bool = False) -> Callable[..., Any]:
    """The step of a layer whose backward pass computes again what `remat` says (see `Decoder.hidden_states`).

    On a mesh the backward pass gathers a layer's weights again in any case: kept, they would be all of the model on every
    device.

    Raises:
      UserError: an unknown `remat`.
    """
    if remat not in REMATS:
        raise UserError(f"remat={remat!r} is unknown: choose one of {', '.join(REMATS)}")
    if remat == "none":
        return jax.checkpoint(layer_step, policy=_all_but_placements) if on_mesh else layer_step
    # Attention's products have a batch axis: its scores are always recomputed.
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(layer_step, policy=kept)


def _all_but_placements(primitive: Any, *_: Any, **__: Any) -> bool:
    """What may be kept: not arrays in another placement. Gathered weights are; where activations are, it costs nothing."""
    return primitive.name != "sharding_constraint"
