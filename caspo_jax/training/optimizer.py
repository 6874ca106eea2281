"""The optimiser: AdamW under a linear warm-up and a cosine, behind a clip on the global gradient norm."""

from __future__ import annotations

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from caspo_jax.training.config import TrainConfig


def make_schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of update t = 0, 1, ...: linear to the peak over the warm-up, then a cosine.

    With `W = ceil(warmup_fraction * total_steps)`: `peak (t + 1) / W` for `t < W` (no update is wasted on a rate of
    0), then `peak (f + (1 - f)(1 + cos(pi (t - W) / (N - W))) / 2)` to `f = final_fraction` at `N = total_steps`.
    """
    warmup = min(math.ceil(config.warmup_fraction * total_steps), total_steps)
    peak = config.learning_rate
    cosine = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1), alpha=config.final_fraction)
    if warmup == 0:
        return cosine
    linear = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([linear, cosine], [warmup])


def learning_rates(config: TrainConfig, total_steps: int) -> np.ndarray:
    """`make_schedule`'s value at every update, [total_steps] float32."""
    return np.asarray(jax.vmap(make_schedule(config, total_steps))(jnp.arange(total_steps)), np.float32)


class AdamWSettings(Protocol):
    """What `make_optimizer` reads: a `TrainConfig` has it."""

    @property
    def b1(self) -> float: ...  # noqa: D102
    @property
    def b2(self) -> float: ...  # noqa: D102
    @property
    def eps(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def clip_norm(self) -> float | None: ...  # noqa: D102


def make_optimizer(
    settings: AdamWSettings, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """Clipping, then AdamW; weight decay spares biases and norms, as in the reference trainers.

    Args:
      settings: moments, decay and clip; its `learning_rate`, if it has one, is not read.
      learning_rate: a number, or a schedule such as `make_schedule(config, updates)`.
    """
    adamw = optax.adamw(
        learning_rate,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        mask=_decays if settings.weight_decay else None,
    )
    if settings.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)


def _decays(params: Any) -> Any:
    def decays(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path).lower()
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(decays, params)
