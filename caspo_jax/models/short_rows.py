"""Attention within rows of some thousand tokens: dense, causal blocks of queries, scores never kept.

Queries go by in a few blocks, each against the keys up to its own end, so that half of the square is never computed. The
backward pass computes the scores again from the log-sum-exp: the head dimension is small, and scores that were kept
would be most of a layer's memory. As many rows go together as the platform has room for a block's scores, on a CPU in its
cache.

Source: FlashAttention's backward pass, arXiv 2205.14135.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from caspo_jax.models.precision import LOWEST, product
from caspo_jax.models.remat import attended
from caspo_jax.sharding import platform_of

_QUERIES = 128  # a block; on a GPU of an eighth of the row, if that is more
_GPU_BLOCKS = 8
# Entries of a block's scores held at once: 4 MiB on a CPU, 512 MiB on a GPU.
_SCORES = {"cpu": 1 << 20, "gpu": 1 << 27}

Array = jax.Array


def attend_short(q: Array, k: Array, v: Array, visible_until: Array, *, mesh: Mesh | None = None) -> Array:
    """softmax(q k^T / sqrt(D)) v, where query q sees key k exactly if k <= q < visible_until[k].

    Args:
      q: [B, T, H, D].
      k: [B, T, G, D], H a multiple of G.
      v: [B, T, G, D].
      visible_until: [B, T] int32.
      mesh: devices that rows are split over; they then all go together.

    Returns:
      [B, T, H, D] in q's dtype; entries of queries that see nothing mean nothing. Scores and sums are float32.
    """
    batch, length, heads, dim = q.shape
    groups = k.shape[2]
    together, platform = batch, platform_of(mesh)
    count = max(_QUERIES, math.ceil(length / _GPU_BLOCKS)) if platform == "gpu" else _QUERIES
    if mesh is None and platform in _SCORES:
        fitting = max(1, _SCORES[platform] // (heads * min(length, count) * length))
        together = math.gcd(batch, 1 << (fitting.bit_length() - 1))
    grouped = q.reshape(batch, length, groups, heads // groups, dim).transpose(0, 2, 3, 1, 4)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    mixed = _attend(grouped, k, v, visible_until, together, count)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q: Array, k: Array, v: Array, until: Array, together: int, count: int) -> Array:
    """q [B, G, J, T, D], k and v [B, G, T, D], until [B, T]: J queries a key head.

    So many rows at once go together, in blocks of `count` queries.
    """
    return _forward(q, k, v, until, together, count)[0]


def _forward(
    q: Array, k: Array, v: Array, until: Array, together: int, count: int
) -> tuple[Array, tuple[Array, ...]]:
    outputs = _some_at_once(functools.partial(_forward_rows, count), together, q, k, v, until)
    mixed, logsumexp = (attended(x) for x in outputs)
    return mixed, (q, k, v, until, mixed, logsumexp)


def _forward_rows(count: int, q: Array, k: Array, v: Array, until: Array) -> tuple[Array, Array]:
    outputs, logsumexps = [], []
    for block in _blocks(q.shape[3], count):
        queries, end = q[..., block, :], block.stop
        query, key = np.arange(block.start, end)[:, None], np.arange(end)
        seen = ((key <= query) & (query < until[:, None, :end]))[:, None, None]  # [B, 1, 1, C, S]
        scores = product("bgjqd,bgkd->bgjqk", queries, k[:, :, :end]) * q.shape[-1] ** -0.5
        scores = jnp.where(seen, scores, LOWEST)
        top = jnp.max(scores, axis=-1)
        weights = jnp.exp(scores - top[..., None])
        total = jnp.sum(weights, axis=-1)
        mixed = product("bgjqk,bgkd->bgjqd", weights.astype(v.dtype), v[:, :, :end])
        outputs.append((mixed / total[..., None]).astype(q.dtype))
        logsumexps.append(top + jnp.log(total))
    return jnp.concatenate(outputs, axis=3), jnp.concatenate(logsumexps, axis=3)


def _backward(
    together: int, count: int, residuals: tuple[Array, ...], upstream: Array
) -> tuple[Array, Array, Array, None]:
    """With P the softmax: dV = P^T dO, dS = P (dO V^T - rowsum(dO O)), dQ = dS K, dK = dS^T Q, P recomputed."""
    q, k, v, until, mixed, logsumexp = residuals
    inner = jnp.sum(upstream.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1)
    inner, logsumexp = (_by_block(x, count) for x in (inner, logsumexp))
    rows = functools.partial(_backward_rows, count)
    d_q, d_k, d_v = _some_at_once(rows, together, q, k, v, until, logsumexp, inner, upstream)
    return d_q, d_k, d_v, None


def _backward_rows(
    most: int, q: Array, k: Array, v: Array, until: Array, logsumexp: Array, inner: Array, upstream: Array
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v; `logsumexp` and `inner` come `_by_block`."""
    # Keys first in everything of a block's size, [S, N] for its N = J * C queries: no product then wants one of them
    # transposed, which XLA's CPU does by a copy. What stands beside them has the same N in the same order, ready made: an
    # index that must be computed, by a division for every score, keeps a CPU from vector instructions (six times as long).
    batch, groups, shared, length, dim = q.shape
    scale = dim**-0.5
    d_q = []
    d_k, d_v = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for block in _blocks(length, most):
        end, count = block.stop, block.stop - block.start
        queries, outer = (x[..., block, :].reshape(batch, groups, shared * count, dim) for x in (q, upstream))
        columns = slice(shared * block.start, shared * end)
        log_z, offset = (x[:, :, None, columns] for x in (logsumexp, inner))
        keys, values = k[:, :, :end], v[:, :, :end]
        query, key = np.tile(np.arange(block.start, end, dtype=np.int32), shared), np.arange(end)[:, None]
        seen = ((key <= query) & (query < until[:, :end, None]))[:, None]  # [B, 1, S, N]
        scores = product("bgsd,bgnd->bgsn", keys, queries) * scale - log_z
        softmax = jnp.exp(jnp.where(seen, scores, LOWEST))
        d_softmax = product("bgsd,bgnd->bgsn", values, outer)
        d_scores = (softmax * (d_softmax - offset) * scale).astype(q.dtype)
        d_v = d_v.at[:, :, :end].add(product("bgsn,bgnd->bgsd", softmax.astype(v.dtype), outer))
        d_k = d_k.at[:, :, :end].add(product("bgsn,bgnd->bgsd", d_scores, queries))
        turned = product("bgds,bgsn->bgdn", jnp.swapaxes(keys, 2, 3), d_scores)
        d_queries = turned.reshape(batch, groups, dim, shared, count)
        d_q.append(jnp.moveaxis(d_queries, 2, -1).astype(q.dtype))
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype)


_attend.defvjp(_forward, _backward)


def _some_at_once(rows: Callable[..., Any], together: int, *arrays: Array) -> Any:
    """`rows(*arrays)` over the leading axis, so many entries at a time."""
    batch = arrays[0].shape[0]
    if together == batch:
        return rows(*arrays)
    cut = tuple(x.reshape(batch // together, together, *x.shape[1:]) for x in arrays)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), lax.map(lambda some: rows(*some), cut))


def _blocks(length: int, count: int) -> Iterator[slice]:
    for start in range(0, length, count):
        yield slice(start, min(start + count, length))


def _by_block(x: Array, count: int) -> Array:
    """[B, G, J, T] -> [B, G, J * T]: blocks of `count` queries one after the other, in each the J heads'."""
    batch, groups, _, length = x.shape
    return jnp.concatenate([x[..., b].reshape(batch, groups, -1) for b in _blocks(length, count)], axis=-1)
