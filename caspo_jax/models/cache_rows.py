"""Moving whole rows, prompts and columns of a KV cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from caspo_jax.models.cache import (
    AXES,
    COLUMNS,
    ROWS,
    Axis,
    KVCache,
    Layered,
    with_layers_apart,
    with_prompt_lanes,
)
from caspo_jax.sharding import batch_ways, named_sharding

# Prefixes of KVCache's fields (k, v, valid): those of the rows themselves, and those of the prompts.
_OWN, _PROMPTS = "", "prompt_"


def widen_prompts(cache: KVCache, columns: int) -> KVCache:
    """The same cache with so many prompt columns; the new ones come last and are not valid."""
    extra = columns - cache.prompt_valid.shape[COLUMNS[cache.prompt_lanes].valid]
    if not extra:
        return cache
    return _changed(cache, _PROMPTS, COLUMNS, lambda array, axis: _padded(array, extra, axis))


def branch(cache: KVCache, n: int) -> KVCache:
    """Every row becomes n rows: row r is copied to rows r*n .. r*n+n-1; the prompts stay as they are."""
    return _changed(cache, _OWN, ROWS, lambda array, axis: jnp.repeat(array, n, axis=axis)).placed()


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
        k, v, valid = _copy_rows(arrays, ROWS[cache.lanes], source, destination, count)
    else:
        k, v, valid = _copy_rows_on_mesh(cache.mesh, arrays, source, destination, count)
    return dataclasses.replace(cache, k=k, v=v, valid=valid)


_Arrays = tuple[Layered, Layered, jax.Array]  # k, v, valid


def _copy_rows(
    arrays: _Arrays, axis: Axis, source: jax.Array, destination: jax.Array, count: jax.Array
) -> _Arrays:
    def copy_row(array: jax.Array, axis: int, i: jax.Array) -> jax.Array:
        row = lax.dynamic_slice_in_dim(array, source[i], 1, axis)
        return lax.dynamic_update_slice_in_dim(array, row, destination[i], axis)

    def body(i: jax.Array, arrays: _Arrays) -> _Arrays:
        k, v, valid = (
            jax.tree.map(lambda array, at=at: copy_row(array, at, i), stack)
            for stack, at in zip(arrays, axis)
        )
        return k, v, valid

    return lax.fori_loop(0, count, body, arrays)


def _copy_rows_on_mesh(
    mesh: Mesh, arrays: _Arrays, source: jax.Array, destination: jax.Array, count: jax.Array
) -> _Arrays:
    """Each device copies among its own rows: a copy by global index would gather the cache on every device."""

    def placed(field: str, stack: Layered) -> Any:
        return jax.tree.map(lambda array: named_sharding(mesh, AXES[field], array.shape).spec, stack)

    specs = tuple(map(placed, ("k", "v", "valid"), arrays))
    valid = specs[2]
    split = (valid[0],) if isinstance(valid[0], str) else tuple(valid[0] or ())

    def local(arrays: _Arrays, source: jax.Array, destination: jax.Array, count: jax.Array) -> _Arrays:
        rows = arrays[2].shape[0]
        first = lax.axis_index(split) * rows if split else 0
        mine = (destination >= first) & (destination < first + rows)
        # A copy that is another device's becomes, here, one of row 0 onto itself.
        source, destination = (jnp.where(mine, index - first, 0) for index in (source, destination))
        return _copy_rows(arrays, ROWS[False], source, destination, count)

    none = PartitionSpec()
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(specs, none, none, none), out_specs=specs, check_vma=False
    )
    return run(arrays, source, destination, count)


def ring_source(iteration: jax.Array, size: int, larger: int) -> tuple[jax.Array, jax.Array]:
    """Where each place of a larger ring finds its content in the smaller one that it replaces.

    In a ring of n places, iteration i is stored in place i % n, over what was there before.

    Args:
      iteration: scalar int32, how many iterations have been stored.
      size: places of the ring that exists.
      larger: places of the new one, more than `size`.

    Returns:
      [larger] int32 places of the smaller ring, and [larger] bool: whether the smaller ring still holds the
      iteration.
    """
    newest = iteration - 1
    # The latest iteration that belongs in each new place, negative where none came so far.
    latest = newest - (newest - jnp.arange(larger, dtype=jnp.int32)) % larger
    return latest % size, (latest >= 0) & (latest > newest - size)


def grow(cache: KVCache, capacity: int, iteration: jax.Array | None = None) -> KVCache:
    """More columns for the rows, `capacity` in all; a cache that is already as large is returned as it is.

    Args:
      cache: S columns.
      capacity: columns of the new cache.
      iteration: None: the new columns come last, and are empty. Scalar int32, how many columns were written
        so far: the columns are a ring, and each moves to its place in the larger ring.
    """
    extra = capacity - cache.capacity
    if extra <= 0:
        return cache
    if iteration is None:
        return _changed(cache, _OWN, COLUMNS, lambda array, axis: _padded(array, extra, axis)).placed()
    source, held = ring_source(iteration, cache.capacity, capacity)
    moved = _changed(cache, _OWN, COLUMNS, lambda array, axis: jnp.take(array, source, axis=axis))
    valid = moved.valid & (held[:, None] if cache.lanes else held)
    return dataclasses.replace(moved, valid=valid).placed()


def load_prompt(cache: KVCache, queued: KVCache, prompt: jax.Array, entry: jax.Array) -> KVCache:
    """Overwrites one prompt with prompt `entry` of `queued`, and empties its rows (both scalar int32)."""
    one = _changed(
        queued, _PROMPTS, ROWS, lambda array, axis: lax.dynamic_slice_in_dim(array, entry, 1, axis)
    )
    if cache.prompt_lanes:
        one = with_prompt_lanes(one)
    if cache.apart:
        one = with_layers_apart(one)
    axis, branches = ROWS[cache.prompt_lanes], cache.branches

    def put(arrays: Any, sources: Any, at: jax.Array, axis: int) -> Any:
        return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, at, axis), arrays, sources)

    empty = jnp.zeros((cache.capacity, branches) if cache.lanes else (branches, cache.capacity), jnp.bool_)
    return dataclasses.replace(
        cache,
        prompt_k=put(cache.prompt_k, one.prompt_k, prompt, axis.k),
        prompt_v=put(cache.prompt_v, one.prompt_v, prompt, axis.v),
        prompt_valid=put(cache.prompt_valid, one.prompt_valid, prompt, axis.valid),
        valid=put(cache.valid, empty, prompt * branches, ROWS[cache.lanes].valid),
    )


def concatenate(caches: Sequence[KVCache]) -> KVCache:
    """One cache of several with equal columns, branches and layouts: their prompts and rows, in order."""
    first = caches[0]
    axis, prompt_axis = ROWS[first.lanes], ROWS[first.prompt_lanes]

    def joined(field: str, axis: int) -> Any:
        parts = [getattr(cache, field) for cache in caches]
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=axis), *parts)

    return KVCache(
        prompt_k=joined("prompt_k", prompt_axis.k),
        prompt_v=joined("prompt_v", prompt_axis.v),
        prompt_valid=joined("prompt_valid", prompt_axis.valid),
        k=joined("k", axis.k),
        v=joined("v", axis.v),
        valid=joined("valid", axis.valid),
        lanes=first.lanes,
        prompt_lanes=first.prompt_lanes,
        mesh=first.mesh,
    )


def take_prompts(cache: KVCache, prompts: jax.Array) -> KVCache:
    """Gathers prompts [n] with all their rows into a new cache: a copy, for use between decode loops."""
    branches = cache.branches
    return _gather(cache, prompts, (prompts[:, None] * branches + jnp.arange(branches)).reshape(-1))


def split_rows(cache: KVCache, rows: jax.Array) -> KVCache:
    """Gathers rows [n] into a new cache of n prompts: each row gets a copy of its prompt to itself."""
    return _gather(cache, rows // cache.branches, rows)


def _gather(cache: KVCache, prompts: jax.Array, rows: jax.Array) -> KVCache:
    cache = _changed(cache, _PROMPTS, ROWS, lambda array, axis: jnp.take(array, prompts, axis=axis))
    return _changed(cache, _OWN, ROWS, lambda array, axis: jnp.take(array, rows, axis=axis)).placed()


def _changed(
    cache: KVCache, part: str, axes: dict[bool, Axis], change: Callable[[jax.Array, int], jax.Array]
) -> KVCache:
    """The cache with `change(array, its axis)` done to `k`, `v` and `valid` of one part.

    Args:
      cache: any layout.
      part: `_OWN` or `_PROMPTS`.
      axes: `ROWS` or `COLUMNS`.
      change: is given an array and the index of that axis in it.
    """
    axis = axes[cache.prompt_lanes if part == _PROMPTS else cache.lanes]
    places = {f"{part}k": axis.k, f"{part}v": axis.v, f"{part}valid": axis.valid}
    changed: dict[str, Any] = {
        name: jax.tree.map(lambda array, at=at: change(array, at), getattr(cache, name))
        for name, at in places.items()
    }
    return dataclasses.replace(cache, **changed)


def _padded(array: jax.Array, extra: int, axis: int) -> jax.Array:
    return jnp.pad(array, [(0, extra if i == axis else 0) for i in range(array.ndim)])
