"""Log-probs and entropies from hidden states, without ever holding [B, T, V]."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh

from caspo_jax.confidence.token import TokenStats, token_stats
from caspo_jax.errors import UserError
from caspo_jax.models.precision import LOWEST, product
from caspo_jax.sharding import gathered, named_sharding, platform_of

Array = jax.Array
# What the forward pass returns: its results, and the residuals that the backward pass reads.
_Kept = tuple[tuple[Array, Array], tuple[Array | None, ...]]

# Logits that a device holds at once, at most. On a CPU products gain nothing from chunks beyond about 2**23
# float32 (32 MiB). Elsewhere every chunk reads the head from memory anew, which with few tokens takes longer
# than their products.
CHUNK_LOGITS = {"cpu": 2**23}
CHUNK_LOGITS_ELSEWHERE = 2**25

_HEAD, _GATHERED_HEAD, _LOGITS = ("vocab", "embed"), ("vocab", None), ("batch", None, "vocab")


def chunked_stats(
    hidden: Array,
    unembedding: Array,
    targets: Array,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[Array, Array]:
    """Log-prob of each target and entropy of its distribution, straight from the hidden states.

    log p_t = x_{t, y_t} - logsumexp_v x_tv and H_t = logsumexp_v x_tv - sum_v p_tv x_tv with
    x_t = h_t W^T, computed chunk by chunk over the tokens; the products accumulate in float32 whatever the
    operands' dtype. The gradients are analytic, d log p = (1[v = y] - p_v) and dH = -p_v (log p_v + H),
    recomputed chunk by chunk, so that neither pass holds the logits of more than one chunk.

    Args:
      hidden: [..., T, E] after the final norm.
      unembedding: [V, E].
      targets: [..., T] integers in [0, V).
      chunk: tokens of the T axis at once (default: so many that a device holds about 2**23 logits, on accelerators
        2**25; when everything fits, one chunk, whose logits are then kept for the backward pass).
      mesh: devices that the arrays are split over by the rules of `caspo_jax.sharding`; then `hidden` must
        have three axes, and the call be under jit.

    Returns:
      (logprob, entropy), each [..., T] float32, nats; differentiable (reverse mode) in hidden and
      unembedding.

    Raises:
      UserError: shapes that do not match, chunk < 1.
    """
    _check_shapes(hidden, unembedding, targets)
    rows = hidden.reshape(math.prod(hidden.shape[:-2]), *hidden.shape[-2:])
    flat_targets = targets.reshape(rows.shape[:2])
    per_chunk = _chunk_tokens(rows.shape, unembedding.shape[0], chunk, mesh)
    operand = jnp.promote_types(hidden.dtype, unembedding.dtype)
    unembedding = _head(unembedding, mesh)
    logprob, entropy = _stats(rows.astype(operand), unembedding.astype(operand), flat_targets, per_chunk)
    return logprob.reshape(targets.shape), entropy.reshape(targets.shape)


def hidden_token_stats(
    hidden: Array,
    unembedding: Array,
    targets: Array,
    fields: tuple[str, ...] | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> TokenStats:
    """TokenStats [B, T] of final states, chunk by chunk over the tokens; not for differentiation.

    Args:
      hidden: [B, T, E] after the final norm.
      unembedding: [V, E].
      targets: [B, T] integers, what the states predict.
      fields: names of the statistics, default all.
      chunk, mesh: see chunked_stats.
    """
    return _by_chunk(
        lambda logits, target: token_stats(logits, target, fields), hidden, unembedding, targets, chunk, mesh
    )


def hidden_stats_and_kl(
    hidden: Array,
    unembedding: Array,
    targets: Array,
    reference: Array,
    fields: tuple[str, ...] | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[TokenStats, Array]:
    """`hidden_token_stats`, and KL(p_t || q) = sum_v p_tv (log p_tv - log q_v) [B, T], in nats.

    Args:
      hidden, unembedding, targets, fields, chunk, mesh: see hidden_token_stats.
      reference: [V] f32, log q.
    """

    def read(logits: Array, target: Array) -> tuple[TokenStats, Array]:
        logp = jax.nn.log_softmax(logits, axis=-1)
        p = jnp.exp(logp)
        divergence = jnp.sum(jnp.where(p > 0, p * (logp - reference), 0.0), axis=-1)
        return token_stats(logits, target, fields), divergence

    return _by_chunk(read, hidden, unembedding, targets, chunk, mesh)


def _by_chunk(
    read: Callable[[Array, Array], Any],
    hidden: Array,
    unembedding: Array,
    targets: Array,
    chunk: int | None,
    mesh: Mesh | None,
) -> Any:
    """Applies `read`, (logits [B, C, V], targets [B, C]) -> tree of [B, C], to all chunks: tree of [B, T]."""
    per_chunk = _chunk_tokens(hidden.shape, unembedding.shape[0], chunk, mesh)
    operand = jnp.promote_types(hidden.dtype, unembedding.dtype)
    chunks = (_split(hidden.astype(operand), per_chunk), _split(targets, per_chunk))
    weight = _head(unembedding, mesh).astype(operand)
    found = lax.map(lambda piece: read(_logits(piece[0], weight), piece[1]), chunks)
    return jax.tree.map(lambda leaf: _join(leaf, hidden.shape[1]), found)


def _check_shapes(hidden: Array, unembedding: Array, targets: Array) -> None:
    if hidden.ndim < 2 or unembedding.ndim != 2 or hidden.shape[-1] != unembedding.shape[-1]:
        raise UserError(
            f"hidden of shape {hidden.shape} and unembedding of shape {unembedding.shape}: "
            "expected [..., T, E] and [V, E]"
        )
    if targets.shape != hidden.shape[:-1]:
        raise UserError(f"targets of shape {targets.shape} do not match hidden of shape {hidden.shape}")


def _head(unembedding: Array, mesh: Mesh | None) -> Array:
    """The head [V, E], gathered over fsdp before the loop over chunks: else it is gathered anew in every chunk."""
    return unembedding if mesh is None else gathered(mesh, unembedding, _HEAD, _GATHERED_HEAD)


def _chunk_tokens(shape: tuple[int, ...], vocab: int, chunk: int | None, mesh: Mesh | None) -> int:
    """Tokens of a chunk of rows of `shape` [B, T, E], about `chunk` if it is given."""
    batch, length = shape[0], max(shape[1], 1)
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk = {chunk}: give the number of tokens at once, at least 1")
    if chunk is None:
        column = (batch, 1, vocab)
        held = column if mesh is None else named_sharding(mesh, _LOGITS, column).shard_shape(column)
        most = CHUNK_LOGITS.get(platform_of(mesh), CHUNK_LOGITS_ELSEWHERE)
        chunk = max(most // max(math.prod(held), 1), 1)
    count = math.ceil(length / min(chunk, length))
    return math.ceil(length / count)  # as many chunks, of sizes as even as possible: the least padding


def _split(x: Array, size: int) -> Array:
    """[B, T, ...] -> [N, B, size, ...], zero-padded at the end."""
    batch, length = x.shape[:2]
    count = max(math.ceil(length / size), 1)
    x = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)


def _join(x: Array, length: int) -> Array:
    """[N, B, size, ...] -> [B, T, ...]."""
    count, batch, size = x.shape[:3]
    return jnp.moveaxis(x, 0, 1).reshape(batch, count * size, *x.shape[3:])[:, :length]


def _logits(hidden: Array, unembedding: Array) -> Array:
    """[B, C, V] float32 of states [B, C, E] and the head [V, E]."""
    return product("bte,ve->btv", hidden, unembedding)


def _forward_chunk(logits: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Logits [B, C, V] and targets [B, C] -> log-prob, entropy and log-sum-exp, [B, C] each."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    z = logits - top
    e = jnp.exp(z)
    total = jnp.sum(e, axis=-1)
    log_total = jnp.log(total)
    entropy = log_total - jnp.sum(jnp.where(e > 0, e * z, 0.0), axis=-1) / total
    picked = jnp.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
    return picked - log_total, entropy, top[..., 0] + log_total


def _backward_chunk(
    logits: Array,
    targets: Array,
    log_z: Array,
    entropy: Array,
    d_logprob: Array | None,
    d_entropy: Array | None,
) -> Array:
    """Gradient of d_logprob * log p_y + d_entropy * H with respect to the logits, [B, C, V].

    It is d_logprob (1[v = y] - p_v) - d_entropy p_v (log p_v + H).

    Args:
      logits: [B, C, V].
      targets: [B, C].
      log_z: [B, C] log-sum-exp of the logits.
      entropy: [B, C].
      d_logprob: [B, C], or None for zeros.
      d_entropy: [B, C], or None for zeros.
    """
    logp = logits - log_z[..., None]
    p = jnp.exp(logp)
    gradient = jnp.zeros_like(p)
    if d_logprob is not None:
        column = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        hit = (column == targets[..., None]).astype(p.dtype)
        gradient = d_logprob[..., None] * (hit - p)
    if d_entropy is not None:
        # The floor keeps 0 * -inf out where a logit is -inf.
        gradient -= d_entropy[..., None] * p * (jnp.maximum(logp, LOWEST) + entropy[..., None])
    return gradient


def _gradients(hidden: Array, unembedding: Array, d_logits: Array) -> tuple[Array, Array]:
    """Gradients of states [B, C, E] and, in float32, of the head [V, E], from those of the logits [B, C, V]."""
    d_logits = d_logits.astype(hidden.dtype)
    d_hidden = product("btv,ve->bte", d_logits, unembedding)
    return d_hidden.astype(hidden.dtype), product("btv,bte->ve", d_logits, hidden)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _stats(hidden: Array, unembedding: Array, targets: Array, per_chunk: int) -> tuple[Array, Array]:
    """`chunked_stats` of states [B, T, E] and a head [V, E] of one dtype, `per_chunk` tokens at a time."""
    return _run_forward(hidden, unembedding, targets, per_chunk)[0]


def _stats_forward(hidden: Any, unembedding: Any, targets: Any, per_chunk: int) -> _Kept:
    """`_run_forward` with arguments unwrapped: under `symbolic_zeros`, `custom_vjp` passes (value, perturbed)."""
    return _run_forward(hidden.value, unembedding.value, targets.value, per_chunk)


def _run_forward(hidden: Array, unembedding: Array, targets: Array, per_chunk: int) -> _Kept:
    """Log-probs and entropies [B, T], and the residuals; these hold the logits if there is only one chunk."""
    length = hidden.shape[1]
    if per_chunk >= length:
        logits = _logits(hidden, unembedding)
        logprob, entropy, log_z = _forward_chunk(logits, targets)
    else:
        logits = None

        def one_chunk(piece):
            return _forward_chunk(_logits(piece[0], unembedding), piece[1])

        pieces = (_split(hidden, per_chunk), _split(targets, per_chunk))
        logprob, entropy, log_z = (_join(leaf, length) for leaf in lax.map(one_chunk, pieces))
    return (logprob, entropy), (hidden, unembedding, targets, logits, log_z, entropy)


def _stats_backward(
    per_chunk: int, residuals: tuple[Any, ...], cotangents: tuple[Any, Any]
) -> tuple[Array, Array, None]:
    """Gradients of the states and of the head, chunk by chunk; that of the head is summed in float32."""
    hidden, unembedding, targets, logits, log_z, entropy = residuals
    # Where a loss reads log-probs alone, the entropy's cotangent is symbolically zero: as None it costs
    # nothing.
    per_token = (targets, log_z, entropy, *(None if _is_zero(ct) else ct for ct in cotangents))
    if logits is not None:
        d_logits = _backward_chunk(logits, *per_token)
        d_hidden, d_unembedding = _gradients(hidden, unembedding, d_logits)
        return d_hidden, d_unembedding.astype(unembedding.dtype), None

    def one_chunk(accumulated, piece):
        h, rest = piece[0], piece[1:]
        d_h, d_w = _gradients(h, unembedding, _backward_chunk(_logits(h, unembedding), *rest))
        return accumulated + d_w, d_h

    start = jnp.zeros(unembedding.shape, jnp.float32)
    pieces = jax.tree.map(lambda leaf: _split(leaf, per_chunk), (hidden, *per_token))
    d_unembedding, d_hidden = lax.scan(one_chunk, start, pieces)
    return _join(d_hidden, hidden.shape[1]), d_unembedding.astype(unembedding.dtype), None


def _is_zero(cotangent: Any) -> bool:
    return isinstance(cotangent, SymbolicZero)


_stats.defvjp(_stats_forward, _stats_backward, symbolic_zeros=True)
