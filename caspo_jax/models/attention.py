"""Grouped-query attention: over a whole sequence, and of one new token over the cache."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.models.cache import KVCache

# Finite, so that a padded query (which attends to nothing) yields a harmless mean and no NaN.
_MASKED = -1e30
# Into how many parts a cache is cut at most, and columns a part at least.
_MAX_PARTS = 4
_MIN_PART = 32
# Columns that a block of lanes holds: fewer rescale too often, more win nothing (measured on a CPU).
_BLOCK = 4


def precision(dtype: jax.typing.DTypeLike) -> lax.Precision:
    """HIGHEST for float32 operands (no TF32, no bf16 passes); bf16 operands need no more than the default."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v with float32 scores; query heads share their group's keys and values.

    Args:
      q: [B, T, H, D].
      k: [B, S, G, D], H a multiple of G.
      v: [B, S, G, D].
      mask: [B, T, S] bool, what each query may see.

    Returns:
      [B, T, H, D] in q's dtype.
    """
    batch, length, heads, dim = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, dim)
    scores = jnp.einsum(
        "btgqd,bsgd->bgqts", q, k, precision=precision(q.dtype), preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, _MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum(
        "bgqts,bsgd->btgqd",
        probabilities,
        v,
        precision=precision(v.dtype),
        preferred_element_type=jnp.float32,
    )
    return mixed.reshape(batch, length, heads, dim).astype(q.dtype)


def attend_cache(q: jax.Array, cache: KVCache, layer: jax.Array, last: jax.Array) -> jax.Array:
    """Attention of one query a row over its prompt and over the valid columns of its own, in one layer's cache.

    The K rows of a prompt read it in one product. Of the rows' own columns only the leading part that holds `last`
    is read, in whole parts of the capacity: a search whose buffers are half empty does half the work.

    Args:
      q: [R, H, D].
      cache: R rows, P prompt columns, S columns.
      layer: scalar int32.
      last: scalar int32, the last column that was ever written.

    Returns:
      [R, H, D] in q's dtype.
    """
    rows, heads, dim = q.shape
    groups = cache.prompt_k.shape[2]
    grouped = q.reshape(rows, groups, heads // groups, dim)
    if cache.lanes:
        return _attend_lanes(grouped, cache, layer, last).reshape(rows, heads, dim)
    capacity = cache.capacity
    parts = max(1, min(_MAX_PARTS, capacity // _MIN_PART))
    part = -(-capacity // parts)
    widths = [min(capacity, part * (i + 1)) for i in range(parts)]
    branches = [functools.partial(_attend_columns, width) for width in widths]
    operands = (grouped, cache, layer)
    with jax.named_scope("cache_columns"):
        mixed = lax.switch(last // part, branches, *operands) if parts > 1 else branches[0](*operands)
    return mixed.reshape(rows, heads, dim)


def _attend_columns(columns: int, q: jax.Array, cache: KVCache, layer: jax.Array) -> jax.Array:
    """`attend_cache` of q [R, G, J, D] over the prompt and the first `columns` columns of the rows."""
    rows, groups, _, dim = q.shape
    start, shape = (layer, 0, 0, 0, 0), (1, rows, groups, columns, dim)
    keys, values = (lax.dynamic_slice(x, start, shape)[0] for x in (cache.k, cache.v))
    prompt_scores = _prompt_scores(q, cache, layer)
    scores = _product("rgqd,rgsd->rgqs", q, keys)
    scores = jnp.where(cache.valid[:, None, None, :columns], scores * dim**-0.5, _MASKED)
    scores = jnp.concatenate([prompt_scores, scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    length = prompt_scores.shape[-1]
    mixed = _prompt_mixed(weights[..., :length], cache, layer)
    return (mixed + _product("rgqs,rgsd->rgqd", weights[..., length:], values)).astype(q.dtype)


def _attend_lanes(q: jax.Array, cache: KVCache, layer: jax.Array, last: jax.Array) -> jax.Array:
    """`attend_cache` of q [R, G, J, D] over a cache of lanes: the softmax goes on from block to block of columns.

    With the largest score so far m, z = sum e^(s - m) and a = sum e^(s - m) v, a block's scores change (m, z, a) only
    by a factor and a term each. The prompt is the first block.
    """
    rows, groups, shared, dim = q.shape
    lanes, width = rows * groups, min(_BLOCK, cache.capacity)
    prompt_scores = _prompt_scores(q, cache, layer)
    top = jnp.max(prompt_scores, axis=-1, initial=_MASKED)
    weights = jnp.exp(prompt_scores - top[..., None])
    mixed = _prompt_mixed(weights.astype(q.dtype), cache, layer)

    def to_lanes(x: jax.Array) -> list[jax.Array]:  # [R, G, J, ...] -> J times [..., R * G]
        return [jnp.moveaxis(x[:, :, j].reshape(lanes, *x.shape[3:]), 0, -1) for j in range(shared)]

    queries = to_lanes(q.astype(jnp.float32) * dim**-0.5)
    start = tuple(zip(to_lanes(top), to_lanes(jnp.sum(weights, axis=-1)), to_lanes(mixed)))

    def column_of(array: jax.Array, at: jax.Array) -> jax.Array:
        x = lax.dynamic_slice(array, (layer, at, 0, 0, 0), (1, 1, dim, rows, groups))
        return x.reshape(dim, lanes).astype(jnp.float32)

    def block(i: jax.Array, carry: Any) -> Any:
        # The last block may begin before its turn; what was counted already is left out.
        places = [jnp.minimum(i * width, cache.capacity - width) + j for j in range(width)]
        seen = [
            lax.dynamic_index_in_dim(cache.valid, at, keepdims=False) & (at >= i * width) for at in places
        ]
        seen = [jnp.broadcast_to(x[:, None], (rows, groups)).reshape(lanes) for x in seen]
        after = []
        # A head at a time: XLA's CPU reduces the leading axis of a matrix at full speed, a middle axis very slowly.
        for query, (top, total, mixed) in zip(queries, carry):
            scores = [_lane_sums(query * column_of(cache.k, at)) for at in places]
            scores = [jnp.where(x, score, _MASKED) for x, score in zip(seen, scores)]
            higher = functools.reduce(jnp.maximum, scores, top)
            factor = jnp.exp(top - higher)
            block_weights = [jnp.exp(score - higher) for score in scores]
            mixed = mixed * factor
            for at, weight in zip(places, block_weights):
                mixed += weight * column_of(cache.v, at)
            after.append((higher, total * factor + sum(block_weights), mixed))
        return tuple(after)

    carry = lax.fori_loop(0, last // width + 1, block, start)
    mixed = jnp.stack([jnp.moveaxis(mixed / total, -1, 0) for _, total, mixed in carry], axis=1)
    return mixed.reshape(rows, groups, shared, dim).astype(q.dtype)


def _lane_sums(x: jax.Array) -> jax.Array:
    """[D, lanes] -> [lanes].

    XLA's CPU hands a plain sum to a library, and copies what it sums out of the cache first. One that it does not
    recognise stays in a single loop with the products: a step of 1,280 rows took 38 instead of 45 ms.
    """
    return lax.reduce(x, jnp.zeros((), x.dtype), lambda a, b: jnp.where(jnp.isnan(a), a, a + b), (0,))


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, precision=precision(y.dtype), preferred_element_type=jnp.float32)


def _prompt_scores(q: jax.Array, cache: KVCache, layer: jax.Array) -> jax.Array:
    """Scaled and masked scores [R, G, J, P] float32 of q [R, G, J, D]; the K rows of a prompt in one product."""
    rows, _, shared, dim = q.shape
    keys = lax.dynamic_index_in_dim(cache.prompt_k, layer, keepdims=False)
    scores = _product("bgnd,bgpd->bgnp", _by_prompt(q, len(cache.prompt_valid)), keys)
    scores = jnp.where(cache.prompt_valid[:, None, None], scores * dim**-0.5, _MASKED)
    return _by_row(scores, rows, shared)


def _prompt_mixed(weights: jax.Array, cache: KVCache, layer: jax.Array) -> jax.Array:
    """What weights [R, G, J, P] take from the prompts' values: [R, G, J, D] float32."""
    rows, _, shared, _ = weights.shape
    values = lax.dynamic_index_in_dim(cache.prompt_v, layer, keepdims=False)
    mixed = _product("bgnp,bgpd->bgnd", _by_prompt(weights, len(cache.prompt_valid)), values)
    return _by_row(mixed, rows, shared)


def _by_prompt(x: jax.Array, prompts: int) -> jax.Array:
    """[R, G, J, ...] -> [B, G, K * J, ...]."""
    _, groups, shared, last = x.shape
    return jnp.moveaxis(x.reshape(prompts, -1, groups, shared, last), 1, 2).reshape(prompts, groups, -1, last)


def _by_row(x: jax.Array, rows: int, shared: int) -> jax.Array:
    """[B, G, K * J, ...] -> [R, G, J, ...]."""
    prompts, groups, _, last = x.shape
    return jnp.moveaxis(x.reshape(prompts, groups, -1, shared, last), 2, 1).reshape(
        rows, groups, shared, last
    )
