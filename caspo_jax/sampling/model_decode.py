"""A Decoder as the loop's model function, with its weights as the platform wants them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from flax import nnx

from caspo_jax.host_memory import free_memory
from caspo_jax.models.block import Layer
from caspo_jax.models.cache import on_one_cpu
from caspo_jax.sharding import bytes_a_device

# On a CPU layers lie apart from so many bytes of a layer's largest matrix on (a step of 8 or 10 rows took .87 and .89 of the
# time with 1 MiB; below it is not worth that every layer is compiled), and turned from so many on (.65 and .81 with 12 MiB,
# which alone gave .99; with 1 MiB it was no better for 8 rows and .16 worse for 10).
_APART_FROM = 1 << 20
_TURNED_FROM = 3 << 20


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
    """The parameters to decode with: as they are, or `ApartParams` where layers that lie apart are read faster.

    Layers are kept apart (a) on GPUs, because XLA's compiler copies every slice of a stack that a product reads, so that a
    step in a loop over stacked layers moves their bytes three times, and because a loop within the search's loop cannot be
    a part of one CUDA graph; (b) on one CPU, because its compiler copies slices too, and reads large matrices faster turned
    (`TurnedLayer`).
    """
    if not prefers_apart(params):
        return params
    turned = on_one_cpu() and _largest_matrix(params) >= _TURNED_FROM
    return ApartParams(params, _layers_apart(graphdef, params, turned))


def prefers_apart(params: Any) -> bool:
    """Whether layers should lie apart here: this process alone has all devices, which are GPUs or one CPU, with room."""
    devices = jax.tree.leaves(params)[0].devices()
    held = bytes_a_device(params)
    if on_one_cpu():
        return _largest_matrix(params) >= _APART_FROM and room_apart(held, free_memory())
    if jax.process_count() > 1 or any(device.platform != "gpu" for device in devices):
        return False
    room = [device.memory_stats() for device in devices]
    return all(stats and room_apart(held, stats["bytes_limit"] - stats["bytes_in_use"]) for stats in room)


def _largest_matrix(params: Any) -> int:
    """Bytes of the largest weight of a layer."""
    return max(leaf.nbytes // leaf.shape[0] for leaf in jax.tree.leaves(params["layers"]))


def room_apart(held: float, free: float) -> bool:
    """Whether a device that holds so many bytes of parameters has room for their copy: it and as much again is free."""
    return free >= 2 * held


@functools.partial(jax.jit, static_argnums=(0, 2))
def _layers_apart(graphdef: Any, params: Any, turned: bool) -> tuple[Layer, ...]:
    return nnx.merge(graphdef, params).layers_apart(turned)
