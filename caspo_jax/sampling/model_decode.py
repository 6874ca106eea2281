"""A Decoder as the loop's model function, with its weights as the platform wants them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from flax import nnx

from caspo_jax.models.block import Layer
from caspo_jax.sharding import bytes_a_device


class ApartParams(NamedTuple):
    """A model's parameters, and beside them each layer's weights by themselves."""

    params: Any
    layers: tuple[Layer, ...]


@dataclasses.dataclass(frozen=True)
class ModelDecode:
    """A Decoder's `decode_step` as the policy's model function; its params are the model's or `ApartParams`."""

    graphdef: Any

    def __call__(self, params, cache, token, position, column):
        """One token a row (see Policy.decode)."""
        params, layers = params if isinstance(params, ApartParams) else (params, None)
        return nnx.merge(self.graphdef, params).decode_step(cache, token, position, column, layers)


def decode_params(graphdef: Any, params: Any) -> Any:
    """The parameters to decode with: as they are, or `ApartParams` on a GPU that has room for this copy of the layers.

    XLA's GPU compiler copies every slice of a stack that a product reads, so that a step in a loop over stacked layers
    moves their bytes three times; and a loop within the search's loop cannot be a part of one CUDA graph.
    """
    return ApartParams(params, _layers_apart(graphdef, params)) if prefers_apart(params) else params


def prefers_apart(params: Any) -> bool:
    """Whether layers should lie apart here: all devices are GPUs of this process that have room."""
    devices = jax.tree.leaves(params)[0].devices()
    if jax.process_count() > 1 or any(device.platform != "gpu" for device in devices):
        return False
    held = bytes_a_device(params)
    room = [device.memory_stats() for device in devices]
    return all(stats and room_apart(held, stats["bytes_limit"] - stats["bytes_in_use"]) for stats in room)


def room_apart(held: float, free: float) -> bool:
    """Whether a device that holds so many bytes of parameters has room for their copy: it and as much again is free."""
    return free >= 2 * held


@functools.partial(jax.jit, static_argnums=0)
def _layers_apart(graphdef: Any, params: Any) -> tuple[Layer, ...]:
    return nnx.merge(graphdef, params).layers_apart()
