"""Grouped-query attention of one new token a row over the cache.

Axes in this module: R = B * K rows (K rows of each of B prompts), H = G * J query heads (J of them share each
of G key heads), D head dimensions, P prompt columns, S columns of the rows' own. One attention goes over both
parts:

    scores = q [prompt_k, k] / sqrt(D), `LOWEST` where not valid        [R, H, P + S]
    result = softmax(scores) [prompt_v, v]                              [R, H, D]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.models.cache import COLUMNS, KVCache, Layered, layer_of
from caspo_jax.models.precision import LOWEST, product
from caspo_jax.sharding import platform_of

# `attend_cache` reads a row's columns in whole parts: at most so many, and none narrower than this.
_MAX_PARTS = 4
_MIN_PART = 32
# Columns that `_over_lanes` takes in at once. With fewer it rescales its sums too often, with more it was no
# faster (measured on a CPU).
_BLOCK = 4


def attend_cache(q: jax.Array, cache: KVCache, layer: int | jax.Array, last: jax.Array) -> jax.Array:
    """Attention of one query a row over its prompt and over the valid columns of its own, in one layer's cache.

    The K rows of a prompt read it in one product. Of the rows' own columns only the leading ones up to `last`
    are read, rounded up to whole parts of the capacity: a search whose buffers are half empty does half the
    work. The exception is a GPU with layers apart, which reads all columns.

    Args:
      q: [R, H, D], rotated.
      cache: R rows, P prompt columns, S columns.
      layer: scalar int32; an int where layers are apart.
      last: scalar int32, the highest column that was ever written.

    Returns:
      [R, H, D] in q's dtype.
    """
    rows, heads, dim = q.shape
    groups = cache.groups
    grouped = q.reshape(rows, groups, heads // groups, dim)
    if cache.lanes:
        return _attend_lanes(grouped, cache, layer, last).reshape(rows, heads, dim)
    capacity = cache.capacity
    # On a GPU the host picks the branch of a switch, for which it would wait in every layer of every token.
    on_gpu = platform_of(cache.mesh) == "gpu"
    parts = 1 if cache.apart and on_gpu else max(1, min(_MAX_PARTS, capacity // _MIN_PART))
    part = math.ceil(capacity / parts)
    widths = [min(capacity, part * (i + 1)) for i in range(parts)]
    branches = [functools.partial(_attend_columns, width, layer) for width in widths]
    operands = (grouped, cache)
    with jax.named_scope("cache_columns"):
        mixed = lax.switch(last // part, branches, *operands) if parts > 1 else branches[0](*operands)
    return mixed.reshape(rows, heads, dim)


def _attend_columns(columns: int, layer: int | jax.Array, q: jax.Array, cache: KVCache) -> jax.Array:
    """`attend_cache` of q [R, G, J, D] over the prompt and the first `columns` columns of the rows."""
    dim = q.shape[-1]

    def leading(stack: Layered, axis: int) -> jax.Array:
        array, at = layer_of(stack, layer)
        size = [1, *array.shape[1:]]
        size[axis] = columns
        return lax.dynamic_slice(array, (at, 0, 0, 0, 0), size)[0]

    keys, values = leading(cache.k, COLUMNS[False].k), leading(cache.v, COLUMNS[False].v)
    prompt_scores = _prompt_scores(q, cache, layer)
    scores = product("rgqd,rgds->rgqs", q, keys)
    scores = jnp.where(cache.valid[:, None, None, :columns], scores * dim**-0.5, LOWEST)
    scores = jnp.concatenate([prompt_scores, scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    length = prompt_scores.shape[-1]
    mixed = _prompt_mixed(weights[..., :length], cache, layer)
    return (mixed + product("rgqs,rgsd->rgqd", weights[..., length:], values)).astype(q.dtype)


class _Softmax(NamedTuple):
    """The running sums of an online softmax over scores s with values v, of one query in each of W lanes."""

    top: jax.Array  # [W] float32, m: the largest score so far
    total: jax.Array  # [W] float32, sum of e^(s - m)
    mixed: jax.Array  # [D, W] float32, sum of e^(s - m) v


def _attend_lanes(q: jax.Array, cache: KVCache, layer: int | jax.Array, last: jax.Array) -> jax.Array:
    """`attend_cache` of q [R, G, J, D] over a cache of lanes: first the prompts, then the rows' own columns."""
    rows, groups, shared, dim = q.shape
    prompts, branches = cache.prompts, cache.branches
    scaled = q.astype(jnp.float32) * dim**-0.5
    if cache.prompt_lanes:
        held = jnp.any(cache.prompt_valid, axis=1)
        longest = jnp.max(jnp.where(held, jnp.arange(1, len(held) + 1), 0))
        queries = _to_lanes(_by_prompt(scaled, prompts))
        empty = jnp.zeros(prompts * groups)
        # In the loops below, a masked column adds e^0 while m is still `LOWEST`; the first valid one scales
        # that to 0.
        start = [_Softmax(empty + LOWEST, empty, jnp.zeros_like(query)) for query in queries]
        found = _over_lanes(
            queries, cache.prompt_k, cache.prompt_v, cache.prompt_valid, layer, longest, start
        )

        def by_row(*of_prompts: jax.Array) -> jax.Array:
            """K arrays [..., B * G], one for each branch -> [..., R * G]."""
            x = jnp.stack(of_prompts, axis=-2).reshape(*of_prompts[0].shape[:-1], branches, prompts, groups)
            return jnp.moveaxis(x, -3, -2).reshape(*x.shape[:-3], rows * groups)

        # The K * J queries of a prompt and key head stand branch by branch: j::J are those of query j in
        # every branch.
        start = [jax.tree.map(by_row, *found[j::shared]) for j in range(shared)]
    else:
        scores = _prompt_scores(q, cache, layer)
        top = jnp.max(scores, axis=-1, keepdims=True, initial=LOWEST)
        weights = jnp.exp(scores - top)
        mixed = _prompt_mixed(weights.astype(q.dtype), cache, layer)
        parts = zip(_to_lanes(top), _to_lanes(jnp.sum(weights, axis=-1, keepdims=True)), _to_lanes(mixed))
        start = [_Softmax(top[0], total[0], mixed) for top, total, mixed in parts]
    found = _over_lanes(_to_lanes(scaled), cache.k, cache.v, cache.valid, layer, last + 1, start)
    mixed = jnp.stack([jnp.moveaxis(x.mixed / x.total, -1, 0) for x in found], axis=1)
    return mixed.reshape(rows, groups, shared, dim).astype(q.dtype)


def _to_lanes(x: jax.Array) -> list[jax.Array]:
    """[A, G, N, D] -> N arrays [D, A * G], one for each query of a row (or prompt) and key head."""
    return [jnp.moveaxis(x[:, :, n].reshape(-1, x.shape[-1]), 0, -1) for n in range(x.shape[2])]


def _over_lanes(
    queries: Sequence[jax.Array],
    k: Layered,
    v: Layered,
    valid: jax.Array,
    layer: int | jax.Array,
    count: jax.Array,
    start: Sequence[_Softmax],
) -> Sequence[_Softmax]:
    """Goes on with the online softmax of each query over the leading columns, a block of columns at a time.

    A block with scores s moves the maximum from m to m' = max(m, s), and with f = e^(m - m'):
    total' = f total + sum of e^(s - m'), mixed' = f mixed + sum of e^(s - m') v.

    Args:
      queries: N arrays [D, W] float32, scaled by 1 / sqrt(D).
      k: [L, S, D, A, G], A rows or prompts, A * G = W lanes.
      v: [L, S, D, A, G].
      valid: [S, A] bool.
      layer: scalar int32; an int where layers are apart.
      count: scalar int32, how many leading columns are read.
      start: of each query, the softmax over the columns that came before these.

    Returns:
      Of each query, the softmax over both.
    """
    columns, groups = len(valid), layer_of(k, 0)[0].shape[-1]
    width = min(_BLOCK, columns)

    def column_of(stack: Layered, at: jax.Array) -> jax.Array:
        array, place = layer_of(stack, layer)
        x = lax.dynamic_slice(array, (place, at, 0, 0, 0), (1, 1, *array.shape[2:]))
        return x.reshape(array.shape[2], -1).astype(jnp.float32)

    def block(i: jax.Array, so_far: Sequence[_Softmax]) -> list[_Softmax]:
        # Where the last block would go beyond the columns, it begins earlier; columns already counted are
        # left out.
        places = [jnp.minimum(i * width, columns - width) + j for j in range(width)]
        seen = [lax.dynamic_index_in_dim(valid, at, keepdims=False) & (at >= i * width) for at in places]
        seen = [jnp.broadcast_to(x[:, None], (*x.shape, groups)).reshape(-1) for x in seen]
        after = []
        # Query by query rather than as one array [D, N, W]: XLA's CPU backend reduces the leading axis of a
        # matrix at full speed but a middle axis very slowly, and each core would read all lanes.
        for query, before in zip(queries, so_far, strict=True):
            scores = [_lane_sums(query * column_of(k, at)) for at in places]
            scores = [jnp.where(x, score, LOWEST) for x, score in zip(seen, scores)]
            top = functools.reduce(jnp.maximum, scores, before.top)
            factor = jnp.exp(before.top - top)
            weights = [jnp.exp(score - top) for score in scores]
            mixed = before.mixed * factor
            for at, weight in zip(places, weights):
                mixed += weight * column_of(v, at)
            after.append(_Softmax(top, before.total * factor + sum(weights), mixed))
        return after

    return lax.fori_loop(0, -(-count // width), block, list(start))


def _lane_sums(x: jax.Array) -> jax.Array:
    """The sum over the leading axis, [D, W] -> [W], in a form that XLA's CPU backend fuses with its input.

    A plain sum it hands to a library, for which it first copies the columns out of the cache. It does not
    recognise this reduction as a sum (NaN stays NaN, so the results are the same): a step of 1,280 rows took
    38 instead of 45 ms.
    """
    return lax.reduce(x, jnp.zeros((), x.dtype), lambda a, b: jnp.where(jnp.isnan(a), a, a + b), (0,))


def _prompt_scores(q: jax.Array, cache: KVCache, layer: int | jax.Array) -> jax.Array:
    """Scaled and masked scores [R, G, J, P] float32 of q [R, G, J, D], a prompt's K rows in one product."""
    rows, _, shared, dim = q.shape
    keys = lax.dynamic_index_in_dim(*layer_of(cache.prompt_k, layer), keepdims=False)
    scores = product("bgnd,bgdp->bgnp", _by_prompt(q, cache.prompts), keys)
    scores = jnp.where(cache.prompt_valid[:, None, None], scores * dim**-0.5, LOWEST)
    return _by_row(scores, rows, shared)


def _prompt_mixed(weights: jax.Array, cache: KVCache, layer: int | jax.Array) -> jax.Array:
    """The sums of the prompts' values with weights [R, G, J, P]: [R, G, J, D] float32."""
    rows, _, shared, _ = weights.shape
    values = lax.dynamic_index_in_dim(*layer_of(cache.prompt_v, layer), keepdims=False)
    mixed = product("bgnp,bgpd->bgnd", _by_prompt(weights, cache.prompts), values)
    return _by_row(mixed, rows, shared)


def _by_prompt(x: jax.Array, prompts: int) -> jax.Array:
    """[R, G, J, ...] -> [B, G, K * J, ...]."""
    _, groups, shared, last = x.shape
    return jnp.moveaxis(x.reshape(prompts, -1, groups, shared, last), 1, 2).reshape(prompts, groups, -1, last)


def _by_row(x: jax.Array, rows: int, shared: int) -> jax.Array:
    """[B, G, K * J, ...] -> [R, G, J, ...]."""
    prompts, groups, _, last = x.shape
    by_branch = jnp.moveaxis(x.reshape(prompts, groups, -1, shared, last), 2, 1)
    return by_branch.reshape(rows, groups, shared, last)
