"""A decoder without arrays."""

from __future__ import annotations

import jax
from flax import nnx
from jax.sharding import Mesh

from caspo_jax.models.config import ModelConfig
from caspo_jax.models.decoder import Decoder
from caspo_jax.models.weights import owner, parameter_shape, parameter_sharding, weights


def abstract_decoder(config: ModelConfig, dtype: jax.typing.DTypeLike, mesh: Mesh | None) -> Decoder:
    """A decoder whose parameters are `jax.ShapeDtypeStruct`s: to load a checkpoint into, or to compile for.

    Args:
      config: of the model.
      dtype: of the parameters and of the computation.
      mesh: if given, every shape has the sharding that its parameter is to have on it.
    """
    model = nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    model.mesh = mesh
    if mesh is None:
        return model
    for weight in weights(config):
        sharding = parameter_sharding(mesh, weight, config)
        shaped = jax.ShapeDtypeStruct(parameter_shape(weight, config), dtype, sharding=sharding)
        setattr(owner(model, weight), weight.name, nnx.Param(shaped))
    return model
