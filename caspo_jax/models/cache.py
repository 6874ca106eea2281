"""The KV cache: a plain pytree, its layouts, and which of them a platform wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from caspo_jax.models.config import ModelConfig
from caspo_jax.sharding import batch_ways, constrain

Layered = jax.Array | tuple[jax.Array, ...]  # [L, ...], or L arrays [1, ...]

# Logical axes of the fields, without lanes, and of keys and values in lanes.
_KEYS = ("layers", "batch", "kv_heads", "head_dim", "length")
_VALUES = ("layers", "batch", "kv_heads", "length", "head_dim")
_VALID = ("batch", "length")
AXES: dict[str, tuple[str, ...]] = {
    "prompt_k": _KEYS,
    "prompt_v": _VALUES,
    "prompt_valid": _VALID,
    "k": _KEYS,
    "v": _VALUES,
    "valid": _VALID,
}
_LANES = ("layers", "length", "head_dim", "batch", "kv_heads")


class Axis(NamedTuple):
    """The index of one logical axis in the arrays of keys, of values and of `valid`."""

    k: int
    v: int
    valid: int


# The logical axes of keys, values and `valid` in either layout; the key is `lanes` (or `prompt_lanes`).
_LAYOUTS = {False: (_KEYS, _VALUES, _VALID), True: (_LANES, _LANES, _VALID[::-1])}
# Which axes are the rows (or prompts) and which the columns, by layout.
ROWS = {lanes: Axis(*(axes.index("batch") for axes in layout)) for lanes, layout in _LAYOUTS.items()}
COLUMNS = {lanes: Axis(*(axes.index("length") for axes in layout)) for lanes, layout in _LAYOUTS.items()}
# With at least so many rows, lanes are faster on a CPU.
_LANES_FROM = 128
# With so many queries a prompt and key head, or fewer, lanes are faster than matrix products over the
# prompts: 20 instead of 73 ms a step (4 layers, 448 prompts of 144 tokens with 2 queries each); with 8
# queries they are even.
_PROMPT_LANES_TO = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (rotated when written) and values of B prompts, and of R = B * K rows that continue them.

    Row b * K + k continues prompt b, whose keys and values are stored once and read once for all K rows. A
    column is an iteration of the decode loop, the same one for all rows: in a ring of S columns, iteration i
    writes column i % S. `valid` says which columns belong to a row. So a write is one dynamic_update_slice,
    never a scatter.

    The rows' own columns lie in one of two layouts. `lanes` False: the columns of a row are next to each
    other, as matrix units want them. In keys the columns are the last axis, since a product that sums over
    the last axis of both operands takes a CPU twice as long (113 instead of 49 us for 8 rows of 128 columns
    with 4 heads of 32). `lanes` True: the rows of a column are next to each other, [S, D, R, G], so that one
    vector instruction works on many rows. On a CPU with hundreds of rows attention then runs at the memory's
    speed and reads no column twice. Lanes are for one device. The prompts' layout is chosen separately
    (`prompt_lanes`): lanes where so few queries share a prompt that a matrix product would be small.

    With layers `apart`, keys and values are L arrays [1, ...] instead of one: out of one array, XLA's
    compilers for CPUs and GPUs copy every layer that a product reads, which costs too much in larger models.

    On a mesh, prompts and rows are split over the batch axes and KV heads over the tensor axis; heads that it does not
    divide are whole on every device, and so are rows whose prompts the batch axes do not divide.
    """

    prompt_k: Layered  # [L, B, G, D, P], rotated; prompt_lanes: [L, P, D, B, G]
    prompt_v: Layered  # [L, B, G, P, D]; prompt_lanes: [L, P, D, B, G]
    prompt_valid: jax.Array  # [B, P] bool, false at padding; prompt_lanes: [P, B]
    k: Layered  # [L, R, G, D, S], rotated; lanes: [L, S, D, R, G]
    v: Layered  # [L, R, G, S, D]; lanes: [L, S, D, R, G]
    valid: jax.Array  # [R, S] bool; lanes: [S, R]
    lanes: bool = dataclasses.field(default=False, metadata={"static": True})
    prompt_lanes: bool = dataclasses.field(default=False, metadata={"static": True})
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def rows(self) -> int:
        """R."""
        return self.valid.shape[ROWS[self.lanes].valid]

    @property
    def capacity(self) -> int:
        """S."""
        return self.valid.shape[COLUMNS[self.lanes].valid]

    @property
    def apart(self) -> bool:
        """Whether every layer's keys and values are arrays of their own."""
        return isinstance(self.k, tuple)

    @property
    def groups(self) -> int:
        """G."""
        return layer_of(self.k, 0)[0].shape[4 if self.lanes else 2]

    @property
    def prompts(self) -> int:
        """B."""
        return self.prompt_valid.shape[ROWS[self.prompt_lanes].valid]

    @property
    def branches(self) -> int:
        """K, how many rows continue each prompt."""
        return self.rows // self.prompts

    def placed(self) -> KVCache:
        """The same cache, constrained (under jit) to its places on the mesh."""
        if self.mesh is None:
            return self
        split = self.prompts % batch_ways(self.mesh) == 0  # a prompt and its rows stay together

        def put(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
            whole = tuple(None if axis == "batch" and not split else axis for axis in axes)
            return constrain(self.mesh, array, whole)

        return self.with_axes(put)

    def with_axes(self, change: Callable[[Any, tuple[str, ...]], Any]) -> KVCache:
        """The cache (one without lanes) with every array replaced by `change(array, its logical axes)`."""
        changed: dict[str, Any] = {
            field: jax.tree.map(lambda array, axes=axes: change(array, axes), getattr(self, field))
            for field, axes in AXES.items()
        }
        return dataclasses.replace(self, **changed)


def layer_of(stack: Layered, layer: int | jax.Array) -> tuple[jax.Array, int | jax.Array]:
    """The array that holds a layer's keys or values, and the layer's index on its first axis.

    Where layers are apart, `layer` must be an int.
    """
    if isinstance(stack, tuple):
        assert isinstance(layer, int)
        return stack[layer], 0
    return stack, layer


def with_layers_apart(cache: KVCache) -> KVCache:
    """The same cache with layers apart: L arrays [1, ...] of keys and of values (see `KVCache`)."""
    if cache.apart:
        return cache

    def cut(stack: Layered) -> Layered:
        return tuple(array[None] for array in stack)

    return dataclasses.replace(
        cache,
        prompt_k=cut(cache.prompt_k),
        prompt_v=cut(cache.prompt_v),
        k=cut(cache.k),
        v=cut(cache.v),
    )


def on_one_cpu() -> bool:
    """Whether this process runs on a single CPU device."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def prefers_lanes(rows: int) -> bool:
    """Whether a cache of so many rows is faster in lanes: with many rows, on a single CPU device."""
    return rows >= _LANES_FROM and on_one_cpu()


def prefers_prompt_lanes(lanes: bool, queries: int) -> bool:
    """Whether prompts are faster in lanes.

    Args:
      lanes: whether the rows are.
      queries: queries a prompt and key head: rows a prompt times query heads a key head.
    """
    return lanes and queries <= _PROMPT_LANES_TO


def init_cache(
    config: ModelConfig,
    rows: int,
    capacity: int,
    dtype: jax.typing.DTypeLike,
    *,
    prompt_columns: int = 0,
    lanes: bool = False,
    mesh: Mesh | None = None,
) -> KVCache:
    """An empty cache of `rows` prompts with one row each: P = `prompt_columns` and S = `capacity` columns."""
    sizes = {
        "layers": config.num_layers,
        "batch": rows,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
    }

    keys, values, valid = _LAYOUTS[lanes]

    def empty(axes: Sequence[str], columns: int, dtype: jax.typing.DTypeLike = dtype) -> jax.Array:
        return jnp.zeros([columns if axis == "length" else sizes[axis] for axis in axes], dtype)

    return KVCache(
        prompt_k=empty(_KEYS, prompt_columns),
        prompt_v=empty(_VALUES, prompt_columns),
        prompt_valid=empty(_VALID, prompt_columns, jnp.bool_),
        k=empty(keys, capacity),
        v=empty(values, capacity),
        valid=empty(valid, capacity, jnp.bool_),
        lanes=lanes,
        mesh=mesh,
    )


def with_prompt_lanes(cache: KVCache) -> KVCache:
    """The same cache with its prompts in lanes."""
    if cache.prompt_lanes:
        return cache

    def turned(stack: Layered, axes: Sequence[str]) -> Layered:
        return jax.tree.map(lambda array: array.transpose([axes.index(axis) for axis in _LANES]), stack)

    return dataclasses.replace(
        cache,
        prompt_k=turned(cache.prompt_k, _KEYS),
        prompt_v=turned(cache.prompt_v, _VALUES),
        prompt_valid=cache.prompt_valid.T,
        prompt_lanes=True,
    )


def write(cache: KVCache, layer: int | jax.Array, column: jax.Array, k: jax.Array, v: jax.Array) -> KVCache:
    """Puts one token's keys and values [R, G, D] of every row into `column` of a layer (both scalar int32)."""
    columns = COLUMNS[cache.lanes]

    def put(stack: Layered, x: jax.Array, axis: int) -> Layered:
        array, at = layer_of(stack, layer)
        x = jnp.expand_dims(jnp.moveaxis(x, -1, 0) if cache.lanes else x, (0, axis))
        start = [column if i == axis else at if i == 0 else 0 for i in range(array.ndim)]
        written = lax.dynamic_update_slice(array, x, start)
        if isinstance(stack, tuple):
            return (*stack[:layer], written, *stack[layer + 1 :])
        return written

    return dataclasses.replace(cache, k=put(cache.k, k, columns.k), v=put(cache.v, v, columns.v))


def own(cache: KVCache, column: jax.Array) -> KVCache:
    """Marks a column (scalar int32) as valid in every row: it belongs to all of them."""
    axis = COLUMNS[cache.lanes].valid
    yes = jnp.ones((1, cache.rows) if cache.lanes else (cache.rows, 1), jnp.bool_)
    return dataclasses.replace(cache, valid=lax.dynamic_update_slice_in_dim(cache.valid, yes, column, axis))
