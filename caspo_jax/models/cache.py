"""The KV cache: a plain pytree, and the few functions that move whole rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from caspo_jax.models.config import ModelConfig
from caspo_jax.sharding import batch_ways, constrain, named_sharding

_AXES = (
    "layers",
    "batch",
    "kv_heads",
    "length",
    "head_dim",
)  # of keys and values; of the masks: batch, length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (rotated when written) and values: those of B prompts, and those of R = B * K rows that go on from them.

    Row b * K + k goes on from prompt b, whose part is stored once and read once for all K. The rows' columns are the
    loop's iterations, the same for all; which of them a row owns is in `valid`, so that a write is one
    dynamic_update_slice and never a scatter. Keys lie as values do: transposed ones would save the product a copy, but
    every write would touch D separate places, which costs more (measured on a CPU).

    On a mesh, prompts and rows are split over the batch axes and KV heads over the tensor axis; heads that it does not
    divide are whole on every device, and so are rows whose prompts the batch axes do not divide.
    """

    prompt_k: jax.Array  # [L, B, G, P, D], rotated
    prompt_v: jax.Array  # [L, B, G, P, D]
    prompt_valid: jax.Array  # [B, P] bool, false at padding
    k: jax.Array  # [L, R, G, S, D], rotated
    v: jax.Array  # [L, R, G, S, D]
    valid: jax.Array  # [R, S] bool
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def rows(self) -> int:
        """R."""
        return self.valid.shape[0]

    @property
    def capacity(self) -> int:
        """S."""
        return self.valid.shape[1]

    @property
    def branches(self) -> int:
        """K, rows a prompt."""
        return self.rows // self.prompt_valid.shape[0]

    def placed(self) -> KVCache:
        """The same cache, under jit, where the mesh wants it."""
        if self.mesh is None:
            return self
        split = self.prompt_valid.shape[0] % batch_ways(self.mesh) == 0  # a prompt and its rows stay together

        def put(array: jax.Array) -> jax.Array:
            axes = ("batch", "length") if array.ndim == 2 else _AXES
            axes = axes if split else tuple(None if axis == "batch" else axis for axis in axes)
            return constrain(self.mesh, array, axes)

        return jax.tree.map(put, self)


def init_cache(
    config: ModelConfig,
    rows: int,
    capacity: int,
    dtype: jax.typing.DTypeLike,
    *,
    prompt_columns: int = 0,
    mesh: Mesh | None = None,
) -> KVCache:
    """An empty cache of `rows` prompts with a row each, of `prompt_columns` and `capacity` columns."""
    lead, dim = (config.num_layers, rows, config.num_kv_heads), config.head_dim

    def part(columns: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        shape = (*lead, columns, dim)
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows, columns), jnp.bool_)

    return KVCache(*part(prompt_columns), *part(capacity), mesh=mesh)


def branch(cache: KVCache, n: int) -> KVCache:
    """Each row becomes n: row r is copied to rows r*n .. r*n+n-1; the prompts stay as they are."""
    wide = dataclasses.replace(
        cache,
        k=jnp.repeat(cache.k, n, axis=1),
        v=jnp.repeat(cache.v, n, axis=1),
        valid=jnp.repeat(cache.valid, n, axis=0),
    )
    return wide.placed()


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
    if cache.mesh is None or cache.prompt_valid.shape[0] % batch_ways(cache.mesh):
        k, v, valid = _copy_rows(arrays, source, destination, count)
    else:
        k, v, valid = _copy_rows_on_mesh(cache.mesh, arrays, source, destination, count)
    return dataclasses.replace(cache, k=k, v=v, valid=valid)


_Arrays = tuple[jax.Array, jax.Array, jax.Array]  # k, v, valid


def _copy_rows(arrays: _Arrays, source: jax.Array, destination: jax.Array, count: jax.Array) -> _Arrays:
    def copy_row(array: jax.Array, axis: int, i: jax.Array) -> jax.Array:
        row = lax.dynamic_slice_in_dim(array, source[i], 1, axis)
        return lax.dynamic_update_slice_in_dim(array, row, destination[i], axis)

    def body(i: jax.Array, arrays: _Arrays) -> _Arrays:
        k, v, valid = arrays
        return copy_row(k, 1, i), copy_row(v, 1, i), copy_row(valid, 0, i)

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
        return _copy_rows(arrays, source, destination, count)

    specs, none = (kv, kv, valid), PartitionSpec()
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(specs, none, none, none), out_specs=specs, check_vma=False
    )
    return run(arrays, source, destination, count)


def grow(cache: KVCache, capacity: int) -> KVCache:
    """Adds empty columns to the rows, up to `capacity`; a cache that is already as large is returned as it is."""
    extra = capacity - cache.capacity
    if extra <= 0:
        return cache

    def pad(array: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(array, [(0, extra if i == axis else 0) for i in range(array.ndim)])

    return dataclasses.replace(
        cache, k=pad(cache.k, 3), v=pad(cache.v, 3), valid=pad(cache.valid, 1)
    ).placed()


def concatenate(caches: Sequence[KVCache]) -> KVCache:
    """The prompts of several caches of equal columns and branches, with their rows, in order."""

    def joined(field: str) -> jax.Array:
        arrays = [getattr(cache, field) for cache in caches]
        return jnp.concatenate(arrays, axis=0 if arrays[0].ndim == 2 else 1)  # the masks have no layers

    names = [field.name for field in dataclasses.fields(KVCache) if field.name != "mesh"]
    return KVCache(**{name: joined(name) for name in names}, mesh=caches[0].mesh)


def take_prompts(cache: KVCache, prompts: jax.Array) -> KVCache:
    """Gathers prompts [n] with all their rows into a new cache (between loop segments, never inside one)."""
    branches = cache.branches
    return _gather(cache, prompts, (prompts[:, None] * branches + jnp.arange(branches)).reshape(-1))


def split_rows(cache: KVCache, rows: jax.Array) -> KVCache:
    """Gathers rows [n] into a new cache in which each has its prompt to itself."""
    return _gather(cache, rows // cache.branches, rows)


def _gather(cache: KVCache, prompts: jax.Array, rows: jax.Array) -> KVCache:
    taken = KVCache(
        prompt_k=jnp.take(cache.prompt_k, prompts, axis=1),
        prompt_v=jnp.take(cache.prompt_v, prompts, axis=1),
        prompt_valid=jnp.take(cache.prompt_valid, prompts, axis=0),
        k=jnp.take(cache.k, rows, axis=1),
        v=jnp.take(cache.v, rows, axis=1),
        valid=jnp.take(cache.valid, rows, axis=0),
        mesh=cache.mesh,
    )
    return taken.placed()
