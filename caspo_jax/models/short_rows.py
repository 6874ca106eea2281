"""Attention within rows of some thousand tokens: dense, causal blocks of queries, scores never kept.

The queries of a row are cut into a few blocks, and each block is multiplied with the keys up to its own end,
so that most of the upper half of the score matrix is never computed. The backward pass recomputes the softmax
from the log-sum-exp: that is cheap since the head dimension is small, and stored scores would be most of a
layer's memory. Rows are computed together as far as the scores of one block fit: into the cache of a CPU,
into a share of a GPU's memory.

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

_QUERIES = 128  # queries a block; on a GPU an eighth of the row, if that is more
_GPU_BLOCKS = 8
# Scores (float32) of one block of all rows that are computed together, at most: 4 MiB on a CPU, 512 MiB on a
# GPU.
_SCORES = {"cpu": 1 << 20, "gpu": 1 << 27}

Array = jax.Array


def attend_short(q: Array, k: Array, v: Array, visible_until: Array, *, mesh: Mesh | None = None) -> Array:
    """softmax(q k^T / sqrt(D)) v, where query q sees key k exactly if k <= q < visible_until[k].

    Args:
      q: [B, T, H, D].
      k: [B, T, G, D], H a multiple of G.
      v: [B, T, G, D].
      visible_until: [B, T] int32.
      mesh: devices that rows are split over; if given, all rows are computed together.

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

    `together` rows are computed at once, in blocks of `count` queries.
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
    """Gradients of q, k and v, a block of `most` queries at a time; `logsumexp` and `inner` come `_by_block`.

    Matrices of a block's size are [S, N], keys first, for S keys and the block's N = J * C queries: then no
    product needs one of them transposed, for which XLA's CPU backend would copy it. Everything that varies
    with the query is laid out in the order of N beforehand (hence `_by_block` and `np.tile`): computing its
    index takes a division for every score, which keeps a CPU from vector instructions (six times as long).
    """
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
    """`rows(*arrays)`, computed for `together` entries of the leading axis at a time."""
    batch = arrays[0].shape[0]
    if together == batch:
        return rows(*arrays)
    cut = tuple(x.reshape(batch // together, together, *x.shape[1:]) for x in arrays)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), lax.map(lambda some: rows(*some), cut))


def _blocks(length: int, count: int) -> Iterator[slice]:
    for start in range(0, length, count):
        yield slice(start, min(start + count, length))


def _by_block(x: Array, count: int) -> Array:
    """[B, G, J, T] -> [B, G, J * T]: block after block of `count` queries, within a block head after head."""
    batch, groups, _, length = x.shape
    return jnp.concatenate([x[..., b].reshape(batch, groups, -1) for b in _blocks(length, count)], axis=-1)
