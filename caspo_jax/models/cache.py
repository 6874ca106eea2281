"""The KV cache: a plain pytree, and the few functions that move whole rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from caspo_jax.models.config import ModelConfig
from caspo_jax.sharding import batch_ways, constrain, named_sharding

# Of keys and values; of the masks: batch, length.
_AXES = ("layers", "batch", "kv_heads", "length", "head_dim")


class _Axis(NamedTuple):
    kv: int  # of `k` and `v`
    valid: int  # of `valid`


# By layout (`lanes`, `prompt_lanes`): where the rows or prompts and the columns are.
_ROWS = {False: _Axis(1, 0), True: _Axis(3, 1)}
_COLUMNS = {False: _Axis(3, 1), True: _Axis(1, 0)}
# What the fields of the rows' own part and of the prompts' part begin with.
_OWN, _PROMPTS = "", "prompt_"
# From so many rows on the lanes are full enough to pay on a CPU.
_LANES_FROM = 128
# With so many queries a prompt and key head, or fewer, lanes beat matrix products over the prompts: 20 for 73 ms a step
# (4 layers, 448 prompts of 144 tokens with 2 queries each); with 8 they are even.
_PROMPT_LANES_TO = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (rotated when written) and values: those of B prompts, and those of R = B * K rows that go on from them.

    Row b * K + k goes on from prompt b, whose part is stored once and read once for all K. The rows' columns are the
    loop's iterations, the same for all, as a ring of S: iteration i is in column i % S. Which of them a row owns is in
    `valid`, so that a write is one dynamic_update_slice and never a scatter.

    The rows' own columns lie in one of two layouts. `lanes` False: a row's columns are together, as matrix units want
    them. `lanes` True: a column's rows are together, [S, D, R, G], so that one vector instruction works on many rows:
    on a CPU with hundreds of rows attention is then at the memory's speed and reads no column twice. Lanes are for one
    device. The prompts, each by itself, lie in either layout too: lanes where few queries share a prompt, for which a
    matrix product is too small.

    On a mesh, prompts and rows are split over the batch axes and KV heads over the tensor axis; heads that it does not
    divide are whole on every device, and so are rows whose prompts the batch axes do not divide.
    """

    prompt_k: jax.Array  # [L, B, G, P, D], rotated; prompt_lanes: [L, P, D, B, G]
    prompt_v: jax.Array  # [L, B, G, P, D]; prompt_lanes: [L, P, D, B, G]
    prompt_valid: jax.Array  # [B, P] bool, false at padding; prompt_lanes: [P, B]
    k: jax.Array  # [L, R, G, S, D], rotated; lanes: [L, S, D, R, G]
    v: jax.Array  # [L, R, G, S, D]; lanes: [L, S, D, R, G]
    valid: jax.Array  # [R, S] bool; lanes: [S, R]
    lanes: bool = dataclasses.field(default=False, metadata={"static": True})
    prompt_lanes: bool = dataclasses.field(default=False, metadata={"static": True})
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def rows(self) -> int:
        """R."""
        return self.valid.shape[_ROWS[self.lanes].valid]

    @property
    def capacity(self) -> int:
        """S."""
        return self.valid.shape[_COLUMNS[self.lanes].valid]

    @property
    def groups(self) -> int:
        """G."""
        return self.k.shape[4 if self.lanes else 2]

    @property
    def prompts(self) -> int:
        """B."""
        return self.prompt_valid.shape[_ROWS[self.prompt_lanes].valid]

    @property
    def branches(self) -> int:
        """K, rows a prompt."""
        return self.rows // self.prompts

    def placed(self) -> KVCache:
        """The same cache, under jit, where the mesh wants it."""
        if self.mesh is None:
            return self
        split = self.prompts % batch_ways(self.mesh) == 0  # a prompt and its rows stay together

        def put(array: jax.Array) -> jax.Array:
            axes: tuple[str | None, ...] = ("batch", "length") if array.ndim == 2 else _AXES
            axes = axes if split else tuple(None if axis == "batch" else axis for axis in axes)
            return constrain(self.mesh, array, axes)

        return jax.tree.map(put, self)


def on_one_cpu() -> bool:
    """Whether all that this process has is one CPU device."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def prefers_lanes(rows: int) -> bool:
    """Whether a cache of so many rows should be one of lanes here: on one CPU device, with many rows."""
    return rows >= _LANES_FROM and on_one_cpu()


def prefers_prompt_lanes(lanes: bool, queries: int) -> bool:
    """Whether the prompts should be lanes too where the rows are, with so many queries a prompt and key head."""
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
    """An empty cache of `rows` prompts with a row each, of `prompt_columns` and `capacity` columns."""
    layers, groups, dim = config.num_layers, config.num_kv_heads, config.head_dim
    prompt = jnp.zeros((layers, rows, groups, prompt_columns, dim), dtype)
    shape = (layers, capacity, dim, rows, groups) if lanes else (layers, rows, groups, capacity, dim)
    empty = jnp.zeros(shape, dtype)
    valid = jnp.zeros((capacity, rows) if lanes else (rows, capacity), jnp.bool_)
    return KVCache(
        prompt, prompt, jnp.zeros((rows, prompt_columns), jnp.bool_), empty, empty, valid, lanes, mesh=mesh
    )


def widen_prompts(cache: KVCache, columns: int) -> KVCache:
    """The same prompts [L, B, G, P, D] in so many columns; those that are new come last and are not valid."""
    extra = columns - cache.prompt_valid.shape[_COLUMNS[cache.prompt_lanes].valid]
    if not extra:
        return cache
    return _changed(cache, _PROMPTS, _COLUMNS, lambda array, axis: _padded(array, extra, axis))


def with_prompt_lanes(cache: KVCache) -> KVCache:
    """The same cache with its prompts in lanes."""
    if cache.prompt_lanes:
        return cache
    return dataclasses.replace(
        cache,
        prompt_k=_to_lanes(cache.prompt_k),
        prompt_v=_to_lanes(cache.prompt_v),
        prompt_valid=cache.prompt_valid.T,
        prompt_lanes=True,
    )


def _to_lanes(array: jax.Array) -> jax.Array:
    """[L, B, G, P, D] -> [L, P, D, B, G]."""
    return array.transpose(0, 3, 4, 1, 2)


def write(cache: KVCache, layer: jax.Array, column: jax.Array, k: jax.Array, v: jax.Array) -> KVCache:
    """Puts one token's keys and values [R, G, D] of every row into `column` of a layer (both scalar int32)."""

    def put(array: jax.Array, x: jax.Array) -> jax.Array:
        if cache.lanes:
            x = jnp.moveaxis(x, -1, 0)[None, None]
            return lax.dynamic_update_slice(array, x, (layer, column, 0, 0, 0))
        return lax.dynamic_update_slice(array, x[None, :, :, None], (layer, 0, 0, column, 0))

    return dataclasses.replace(cache, k=put(cache.k, k), v=put(cache.v, v))


def own(cache: KVCache, column: jax.Array) -> KVCache:
    """Marks a column as valid in every row."""
    axis = _COLUMNS[cache.lanes].valid
    yes = jnp.ones((1, cache.rows) if cache.lanes else (cache.rows, 1), jnp.bool_)
    return dataclasses.replace(cache, valid=lax.dynamic_update_slice_in_dim(cache.valid, yes, column, axis))


def _changed(
    cache: KVCache, part: str, axes: dict[bool, _Axis], change: Callable[[jax.Array, int], jax.Array]
) -> KVCache:
    """The cache with `change(array, its axis)` done to `k`, `v` and `valid` of the rows (`part` "") or the prompts."""
    axis = axes[cache.prompt_lanes if part else cache.lanes]
    places = {f"{part}k": axis.kv, f"{part}v": axis.kv, f"{part}valid": axis.valid}
    changed: dict[str, Any] = {name: change(getattr(cache, name), at) for name, at in places.items()}
    return dataclasses.replace(cache, **changed)


def _padded(array: jax.Array, extra: int, axis: int) -> jax.Array:
    return jnp.pad(array, [(0, extra if i == axis else 0) for i in range(array.ndim)])


def branch(cache: KVCache, n: int) -> KVCache:
    """Each row becomes n: row r is copied to rows r*n .. r*n+n-1; the prompts stay as they are."""
    return _changed(cache, _OWN, _ROWS, lambda array, axis: jnp.repeat(array, n, axis=axis)).placed()


def copy_rows(cache: KVCache, source: jax.Array, destination: jax.Array, count: jax.Array) -> KVCache:
    """Copies row `source[i]` onto row `destination[i]`, of the same prompt, for i < count, in order.

    A loop of `count` trips over one row each: inside a donated `while_loop` the cache is updated in place, and an
    iteration without a fork costs nothing.

    Args:
      cache: R rows.
      source: [n] int32 row indices.
      destination: [n] int32 row indices.
      count: scalar int32, at most n.
    """

    arrays = (cache.k, cache.v, cache.valid)
    if cache.mesh is None or cache.prompts % batch_ways(cache.mesh):
        k, v, valid = _copy_rows(arrays, _ROWS[cache.lanes], source, destination, count)
    else:
        k, v, valid = _copy_rows_on_mesh(cache.mesh, arrays, source, destination, count)
    return dataclasses.replace(cache, k=k, v=v, valid=valid)


_Arrays = tuple[jax.Array, jax.Array, jax.Array]  # k, v, valid


def _copy_rows(
    arrays: _Arrays, axis: _Axis, source: jax.Array, destination: jax.Array, count: jax.Array
) -> _Arrays:
    def copy_row(array: jax.Array, axis: int, i: jax.Array) -> jax.Array:
        row = lax.dynamic_slice_in_dim(array, source[i], 1, axis)
        return lax.dynamic_update_slice_in_dim(array, row, destination[i], axis)

    def body(i: jax.Array, arrays: _Arrays) -> _Arrays:
        k, v, valid = arrays
        return copy_row(k, axis.kv, i), copy_row(v, axis.kv, i), copy_row(valid, axis.valid, i)

    return lax.fori_loop(0, count, body, arrays)


def _copy_rows_on_mesh(
    mesh: Mesh, arrays: _Arrays, source: jax.Array, destination: jax.Array, count: jax.Array
) -> _Arrays:
    """Each device copies among its own rows: a copy by global index would gather the cache on every device."""
    kv = named_sharding(mesh, _AXES, arrays[0].shape).spec
    valid = named_sharding(mesh, ("batch", "length"), arrays[2].shape).spec
    split = (valid[0],) if isinstance(valid[0], str) else tuple(valid[0] or ())

    def local(arrays: _Arrays, source: jax.Array, destination: jax.Array, count: jax.Array) -> _Arrays:
        rows = arrays[2].shape[0]
        first = lax.axis_index(split) * rows if split else 0
        mine = (destination >= first) & (destination < first + rows)
        # What belongs to another device becomes a copy of row 0 onto itself.
        source, destination = (jnp.where(mine, index - first, 0) for index in (source, destination))
        return _copy_rows(arrays, _ROWS[False], source, destination, count)

    specs, none = (kv, kv, valid), PartitionSpec()
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(specs, none, none, none), out_specs=specs, check_vma=False
    )
    return run(arrays, source, destination, count)


def ring_source(iteration: jax.Array, size: int, larger: int) -> tuple[jax.Array, jax.Array]:
    """Where the places of a larger ring find what they hold in a ring of `size` places; place i % size is iteration i's.

    Returns:
      [larger] int32 places of the smaller ring, and [larger] bool: it still holds that iteration.
    """
    newest = iteration - 1
    held = newest - (newest - jnp.arange(larger, dtype=jnp.int32)) % larger  # the iteration at each new place
    return held % size, (held >= 0) & (held > newest - size)


def grow(cache: KVCache, capacity: int, iteration: jax.Array | None = None) -> KVCache:
    """More columns for the rows, `capacity` in all; a cache that is already as large is returned as it is.

    The new ones are empty and come last; with `iteration` (scalar int32, columns written so far) the columns are a ring
    and move to their places in the larger one.
    """
    extra = capacity - cache.capacity
    if extra <= 0:
        return cache
    if iteration is None:
        return _changed(cache, _OWN, _COLUMNS, lambda array, axis: _padded(array, extra, axis)).placed()
    source, held = ring_source(iteration, cache.capacity, capacity)
    moved = _changed(cache, _OWN, _COLUMNS, lambda array, axis: jnp.take(array, source, axis=axis))
    valid = moved.valid & (held[:, None] if cache.lanes else held)
    return dataclasses.replace(moved, valid=valid).placed()


def load_prompt(cache: KVCache, queued: KVCache, prompt: jax.Array, entry: jax.Array) -> KVCache:
    """Puts prompt `entry` of another cache in the place of `prompt`; its rows are emptied. Both scalar int32."""
    one = _changed(
        queued, _PROMPTS, _ROWS, lambda array, axis: lax.dynamic_slice_in_dim(array, entry, 1, axis)
    )
    if cache.prompt_lanes:
        one = with_prompt_lanes(one)
    axis, branches = _ROWS[cache.prompt_lanes], cache.branches

    def put(array: jax.Array, source: jax.Array, at: jax.Array, axis: int) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(array, source, at, axis)

    empty = jnp.zeros((cache.capacity, branches) if cache.lanes else (branches, cache.capacity), jnp.bool_)
    return dataclasses.replace(
        cache,
        prompt_k=put(cache.prompt_k, one.prompt_k, prompt, axis.kv),
        prompt_v=put(cache.prompt_v, one.prompt_v, prompt, axis.kv),
        prompt_valid=put(cache.prompt_valid, one.prompt_valid, prompt, axis.valid),
        valid=put(cache.valid, empty, prompt * branches, _ROWS[cache.lanes].valid),
    )


def concatenate(caches: Sequence[KVCache]) -> KVCache:
    """The prompts of several caches of equal columns, branches and layouts, with their rows, in order."""
    first = caches[0]
    axis, prompt_axis = _ROWS[first.lanes], _ROWS[first.prompt_lanes]

    def joined(field: str, axis: int) -> jax.Array:
        return jnp.concatenate([getattr(cache, field) for cache in caches], axis=axis)

    return KVCache(
        prompt_k=joined("prompt_k", prompt_axis.kv),
        prompt_v=joined("prompt_v", prompt_axis.kv),
        prompt_valid=joined("prompt_valid", prompt_axis.valid),
        k=joined("k", axis.kv),
        v=joined("v", axis.kv),
        valid=joined("valid", axis.valid),
        lanes=first.lanes,
        prompt_lanes=first.prompt_lanes,
        mesh=first.mesh,
    )


def take_prompts(cache: KVCache, prompts: jax.Array) -> KVCache:
    """Gathers prompts [n] with all their rows into a new cache (between loop segments, never inside one)."""
    branches = cache.branches
    return _gather(cache, prompts, (prompts[:, None] * branches + jnp.arange(branches)).reshape(-1))


def split_rows(cache: KVCache, rows: jax.Array) -> KVCache:
    """Gathers rows [n] into a new cache in which each has its prompt to itself."""
    return _gather(cache, rows // cache.branches, rows)


def _gather(cache: KVCache, prompts: jax.Array, rows: jax.Array) -> KVCache:
    cache = _changed(cache, _PROMPTS, _ROWS, lambda array, axis: jnp.take(array, prompts, axis=axis))
    return _changed(cache, _OWN, _ROWS, lambda array, axis: jnp.take(array, rows, axis=axis)).placed()
