"""What a backward pass computes again of each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

from caspo_jax.errors import UserError

Remat = Literal["none", "full", "dots"]
REMATS = ("none", "full", "dots")


def rematted(layer_step: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The step of a layer whose backward pass computes again what `remat` says (see `Decoder.hidden_states`).

    Raises:
      UserError: an unknown `remat`.
    """
    if remat not in REMATS:
        raise UserError(f"remat={remat!r} is unknown: choose one of {', '.join(REMATS)}")
    if remat == "none":
        return layer_step
    # Attention's products have a batch axis: its scores are always recomputed.
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(layer_step, policy=kept)
