"""Attention a block at a time: exact, with memory linear in the length, forward and backward.

What a query may see is one number a key (`visible_until`), so no mask of all pairs exists: key k is seen by the queries
q with k <= q < visible_until[k]. For a plain sequence that is the length (0 in padding), for token trees in preorder the
end of the key's subtree. Blocks that nobody in the batch may see are skipped.

Source: online softmax, Milakov & Gimelshein arXiv 1805.02867; FlashAttention arXiv 2205.14135.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from caspo_jax.models.precision import LOWEST, product
from caspo_jax.models.remat import attended
from caspo_jax.models.short_rows import attend_short
from caspo_jax.sharding import platform_of

BLOCK = 256
# Rows of up to so many tokens are attended over by `attend_short`, whose few blocks are written out: that
# costs less than a loop over blocks. The limit is higher on a GPU, where the host decides in every trip of a
# loop whether to skip a block, and every kernel goes through memory.
_LONGEST_SHORT = {"gpu": 4096}
_ELSEWHERE = 1024

Array = jax.Array


def attend_self(
    q: jax.Array, k: jax.Array, v: jax.Array, visible_until: jax.Array, *, mesh: Mesh | None = None
) -> jax.Array:
    """Attention within rows, where query q sees key k exactly if k <= q < visible_until[k].

    Short rows go through `attend_short`, long ones through `attend_blockwise`.

    Args:
      q: [B, T, H, D].
      k: [B, T, G, D].
      v: [B, T, G, D].
      visible_until: [B, T] int32: the length for plain sequences, the end of a key's subtree for trees, 0 in padding.
      mesh: devices that rows are split over.

    Returns:
      [B, T, H, D] in q's dtype; entries at padding mean nothing.
    """
    if written_out(q.shape[1], platform_of(mesh)):
        return attend_short(q, k, v, visible_until, mesh=mesh)
    return attend_blockwise(q, k, v, visible_until)


def written_out(length: int, platform: str) -> bool:
    """Whether rows of so many tokens are attended over without a loop over blocks (`attend_short`)."""
    return length <= _LONGEST_SHORT.get(platform, _ELSEWHERE)


def attend_blockwise(q: Array, k: Array, v: Array, visible_until: Array, block: int = BLOCK) -> Array:
    """softmax(q k^T / sqrt(D)) v, where query q sees key k exactly if k <= q < visible_until[k].

    Args:
      q: [B, T, H, D].
      k: [B, T, G, D], H a multiple of G.
      v: [B, T, G, D].
      visible_until: [B, T] int32.
      block: queries and keys a block.

    Returns:
      [B, T, H, D] in q's dtype; 0 where a query sees nothing. Scores and sums are float32.
    """
    batch, length, heads, dim = q.shape
    groups = k.shape[2]
    block = min(block, length)
    padding = -length % block

    def cut(x: Array) -> Array:
        """[B, T, ...] -> [N, B, block, ...]."""
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, block, *x.shape[2:]), 1, 0)

    mixed = _attend(
        cut(q.reshape(batch, length, groups, heads // groups, dim)), cut(k), cut(v), cut(visible_until)
    )
    return jnp.moveaxis(mixed, 0, 1).reshape(batch, -1, heads, dim)[:, :length]


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, until: Array) -> Array:
    """q [N, B, C, G, J, D], k and v [N, B, C, G, D], until [N, B, C]: N blocks of C tokens, J queries a key head."""
    return _forward(q, k, v, until)[0]


def _forward(q: Array, k: Array, v: Array, until: Array) -> tuple[Array, tuple[Array, ...]]:
    """The result, and what the backward pass needs; an online softmax over the blocks of keys."""
    count, batch, block, groups, shared, dim = q.shape

    def queries(i: Array) -> tuple[Array, Array]:
        def keys(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, mixed = carry  # [B, G, J, C], [B, G, J, C], [B, G, J, C, D]
            scores, seen = _scores(q[i], k[j], until[j], i, j)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            shrink = jnp.exp(top - new_top)
            weights = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0.0)
            mixed = mixed * shrink[..., None] + product("bgjqk,bkgd->bgjqd", weights.astype(v.dtype), v[j])
            return new_top, total * shrink + jnp.sum(weights, axis=-1), mixed

        shape = (batch, groups, shared, block)
        start = (jnp.full(shape, LOWEST), jnp.zeros(shape), jnp.zeros((*shape, dim)))
        with jax.named_scope("attention_blocks"):
            top, total, mixed = lax.fori_loop(0, i + 1, _where_seen(until, i, keys), start)
        some = total > 0
        total = jnp.where(some, total, 1.0)
        mixed = jnp.where(some[..., None], mixed / total[..., None], 0.0)
        return jnp.moveaxis(mixed, 3, 1).astype(q.dtype), top + jnp.log(total)

    outputs = lax.map(queries, jnp.arange(count))
    mixed, logsumexp = (attended(x) for x in outputs)  # [N, B, C, G, J, D], [N, B, G, J, C]
    return mixed, (q, k, v, until, mixed, logsumexp)


def _backward(residuals: tuple[Array, ...], upstream: Array) -> tuple[Array, Array, Array, None]:
    """With P the softmax: dV = P^T dO, dS = P (dO V^T - rowsum(dO O)), dQ = dS K, dK = dS^T Q, P recomputed."""
    q, k, v, until, mixed, logsumexp = residuals
    count = q.shape[0]
    scale = q.shape[-1] ** -0.5
    inner = jnp.sum(upstream.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1)
    inner = jnp.moveaxis(inner, 2, -1)  # [N, B, G, J, C]

    def keys(carry: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
        def queries(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = sums
            scores, seen = _scores(q[i], k[j], until[j], i, j)
            softmax = jnp.where(seen, jnp.exp(scores - logsumexp[i][..., None]), 0.0)
            d_v = d_v + product("bgjqk,bqgjd->bkgd", softmax.astype(v.dtype), upstream[i])
            d_softmax = product("bqgjd,bkgd->bgjqk", upstream[i], v[j])
            d_scores = (softmax * (d_softmax - inner[i][..., None]) * scale).astype(q.dtype)
            d_k = d_k + product("bgjqk,bqgjd->bkgd", d_scores, q[i])
            return d_q.at[i].add(product("bgjqk,bkgd->bqgjd", d_scores, k[j])), d_k, d_v

        def maybe(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            return lax.cond(jnp.any(until[j] > i * q.shape[2]), queries, lambda _, s: s, i, sums)

        start = (carry, jnp.zeros(k.shape[1:], jnp.float32), jnp.zeros(v.shape[1:], jnp.float32))
        with jax.named_scope("attention_blocks"):
            d_q, d_k, d_v = lax.fori_loop(j, count, maybe, start)
        return d_q, (d_k, d_v)

    d_q, (d_k, d_v) = lax.scan(keys, jnp.zeros(q.shape, jnp.float32), jnp.arange(count))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _where_seen(until: Array, i: Array, body: Callable) -> Callable:
    """The body of a loop over key blocks j, skipped where no query from block i on sees a key of block j."""
    block = until.shape[2]

    def maybe(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        return lax.cond(jnp.any(until[j] > i * block), body, lambda _, c: c, j, carry)

    return maybe


def _scores(q: Array, k: Array, until: Array, i: Array, j: Array) -> tuple[Array, Array]:
    """Scores [B, G, J, C, C] of query block i against key block j, and which of them are seen [B, 1, 1, C, C]."""
    block = q.shape[1]
    query = i * block + jnp.arange(block)[:, None]
    key = j * block + jnp.arange(block)
    seen = ((key <= query) & (query < until[:, None, :]))[:, None, None]
    scores = product("bqgjd,bkgd->bgjqk", q, k) * q.shape[-1] ** -0.5
    return jnp.where(seen, scores, LOWEST), seen
