"""Step confidences -> the confidence of a path, at once or one step at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.confidence.registering import is_registered
from caspo_jax.errors import UserError

Array = Any  # jax.Array inside jit, np.ndarray on the host


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PathState:
    """What path confidences need to know of the steps closed so far; a forked branch starts with a copy.

    Attributes:
      log_sum: [...] f32, sum of log step confidences.
      count: [...] int32, steps closed.
      minimum: [...] f32, smallest step confidence, +inf before the first step.
      last: [...] f32, the newest step confidence, NaN before the first step.
    """

    log_sum: jax.Array  # [...] f32
    count: jax.Array  # [...] int32
    minimum: jax.Array  # [...] f32
    last: jax.Array  # [...] f32


def path_init(shape: tuple[int, ...] = ()) -> PathState:
    """The state of paths without a closed step."""
    return PathState(
        log_sum=jnp.zeros(shape, jnp.float32),
        count=jnp.zeros(shape, jnp.int32),
        minimum=jnp.full(shape, jnp.inf, jnp.float32),
        last=jnp.full(shape, jnp.nan, jnp.float32),
    )


def path_update(state: PathState, confidence: jax.Array, where: jax.Array | bool = True) -> PathState:
    """Add one closed step to the paths where `where` is true.

    Args:
      state: PathState [...].
      confidence: [...] f32, the closed step's confidence; read only where `where` holds.
      where: [...] bool, the paths that closed a step now.
    """
    return PathState(
        log_sum=state.log_sum + jnp.where(where, jnp.log(confidence), 0.0),
        count=state.count + jnp.asarray(where, jnp.int32),
        minimum=jnp.where(where, jnp.minimum(state.minimum, confidence), state.minimum),
        last=jnp.where(where, confidence, state.last),
    )


# (namespace, state of n steps) -> value; `path_confidence` gives the mathematics.
_VALUES: dict[str, Callable] = {
    "geometric": lambda xp, s: xp.exp(s.log_sum / s.count),
    "product": lambda xp, s: xp.exp(s.log_sum),
    "min": lambda xp, s: s.minimum,
    "last": lambda xp, s: s.last,
}


def path_value(name: str, state: PathState) -> jax.Array:
    """The path confidence `name` of the state [...]; NaN for a path without a closed step."""
    value = _checked(name, jnp, state)
    return jnp.where(state.count > 0, value, jnp.nan)


def path_confidence(name: str, step_confidences: Array, mask: Array | None = None) -> Array:
    """Confidence of a path from its steps' confidences c_1..c_n; larger is surer.

    `geometric` (c_1 ... c_n)^(1/n), `product` c_1 ... c_n, `min`, `last`. Equal, to float error, to
    `path_value` after `path_update` with the same steps in order.

    Args:
      name: one of PATH_CONFIDENCES.
      step_confidences: [..., S], non-negative.
      mask: [..., S] bool, the steps that count (default all); values outside never matter.

    Returns:
      [...]: jax float32 for jax arrays, NumPy float64 for host arrays; NaN where no step counts.

    >>> {name: round(float(path_confidence(name, np.array([0.9, 0.4]))), 2) for name in ("geometric", "min", "last")}
    {'geometric': 0.6, 'min': 0.4, 'last': 0.4}
    """
    _value(name)  # an unknown name is refused first
    xp = jnp if isinstance(step_confidences, jax.Array) or isinstance(mask, jax.Array) else np
    c = xp.asarray(step_confidences, np.float64 if xp is np else jnp.float32)
    keep = xp.ones(c.shape, bool) if mask is None else xp.broadcast_to(xp.asarray(mask, bool), c.shape)
    position = xp.arange(c.shape[-1])
    latest = xp.max(xp.where(keep, position, -1), axis=-1, keepdims=True, initial=-1)
    count = xp.sum(keep, axis=-1)
    with np.errstate(all="ignore"):  # log 0 and 0 / 0 are intended
        state = PathState(
            log_sum=xp.sum(xp.where(keep, xp.log(xp.where(keep, c, 1.0)), 0.0), axis=-1),
            count=count,
            minimum=xp.min(xp.where(keep, c, xp.inf), axis=-1, initial=xp.inf),
            last=xp.sum(xp.where(position == latest, c, 0.0), axis=-1),
        )
        value = _checked(name, xp, state)
    return xp.where(count > 0, value, xp.nan)


def _value(name: str) -> Callable:
    if name not in _VALUES:
        raise UserError(f"unknown path confidence {name!r}; choose from {', '.join(_VALUES)}")
    return _VALUES[name]


def _checked(name: str, xp: Any, state: PathState) -> Array:
    value = _value(name)(xp, state)
    if np.shape(value) != state.count.shape:  # otherwise broadcasting would give all paths one value
        raise UserError(
            f"path confidence {name!r} gave shape {np.shape(value)} for paths of shape {state.count.shape}: "
            "give each path a value of its own"
        )
    return value


def _named(name: str) -> Callable[..., Array]:
    def confidence(step_confidences: Array, mask: Array | None = None) -> Array:
        return path_confidence(name, step_confidences, mask)

    confidence.__name__ = name
    return confidence


def register_path_confidence(name: str, value: Callable[[Any, PathState], Array]) -> None:
    """Make a path confidence of one's own available under a name, wherever a name is taken.

    Args:
      name: a new one.
      value: (xp, PathState [...]) -> [...], with xp jax.numpy inside jit and NumPy on the host; called for paths
        with at least one closed step (elsewhere its result is replaced by NaN).

    Raises:
      UserError: the name is taken by another function; compiled searches know a confidence by its name.
    """
    if is_registered("path confidence", name, value, _VALUES):
        return
    _VALUES[name] = value
    PATH_CONFIDENCES[name] = _named(name)


PATH_CONFIDENCES: dict[str, Callable[..., Array]] = {name: _named(name) for name in _VALUES}
# Those that lie in [0, 1] wherever the step confidences do. Of registered ones that is not known.
BOUNDED_PATHS = tuple(_VALUES)
