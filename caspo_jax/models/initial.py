"""Random weights to start from."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from caspo_jax.models.config import ModelConfig
from caspo_jax.models.weights import parameter_shape, parameter_sharding, weights


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def initial_params(
    key: jax.Array, config: ModelConfig, dtype: jnp.dtype, mesh: Mesh | None
) -> dict[str, jax.Array]:
    """All initial weights by name, as `Weight.init` says, in `dtype`, on the mesh if one is given.

    Those that are random are cut from one draw: to compile a generator for every shape would take seconds.
    """
    shapes = {weight.name: parameter_shape(weight, config) for weight in weights(config)}
    sizes = [math.prod(shapes[w.name]) for w in weights(config) if w.init == "normal"]
    draw = config.initializer_range * jax.random.normal(key, (sum(sizes),), jnp.float32)
    pieces = iter(jnp.split(draw, np.cumsum(sizes)[:-1]))
    params = {}
    for weight in weights(config):
        shape = shapes[weight.name]
        if weight.init == "normal":
            value = next(pieces).reshape(shape)
        else:
            value = jnp.full(shape, 1.0 if weight.init == "ones" else 0.0)
        value = value.astype(dtype)
        if mesh is not None:
            value = lax.with_sharding_constraint(value, parameter_sharding(mesh, weight, config))
        params[weight.name] = value
    return params
