"""Log-probs and entropies of left-packed tokens, forward and backward, the logits a block at a time.

The states are cut into chunks, as many as they fill: a loop of dynamic trip count, with its own reverse pass. Within a
chunk the vocabulary goes by in blocks that stay in the processor's cache, the sums carried from block to block (online
softmax, Milakov and Gimelshein arXiv 1805.02867). At most `[chunk, block]` logits exist, beside those that are kept for
the reverse pass.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh

from caspo_jax.models.precision import LOWEST, product
from caspo_jax.sharding import constrain, platform_of

Array = jax.Array

# Logical axes of the head's arrays on a mesh.
SPLIT_HEAD = ("head_vocab", None)  # [V, E]
_SPLIT_LOGITS = ("head_vocab", "replica", None)  # [V, R, chunk]
_SHARED_ROWS = ("replica", None, None)  # [R, chunk, E]
_ROWS = ("batch", None, None)


@dataclasses.dataclass(frozen=True)
class HeadCut:
    """How states and vocabulary go by in `masked_head`."""

    chunk: int  # columns of states whose logits are held at once
    block: int  # rows of the unembedding that they meet at once; V on a mesh
    mesh: Mesh | None = None  # devices that the arrays are split over
    keep: bool = False  # R * S * V float32 logits for the backward pass, which else computes them again


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def masked_head(
    hidden: Array, unembedding: Array, targets: Array, mask: Array, cut: HeadCut
) -> tuple[Array, Array]:
    """Log-prob and entropy `[R, S]` of left-packed step tokens; 0 where the mask is False.

    Args:
      hidden: [R, S, E], S a multiple of `cut.chunk`.
      unembedding: [V, E].
      targets: [R, S].
      mask: [R, S], every row's True entries first.
      cut: how it goes by.

    Returns:
      Two [R, S] float32, nats; the entropy has no gradient.
    """
    return _forward(hidden, unembedding, targets, mask, dataclasses.replace(cut, keep=False))[0]


def _forward(
    hidden: Array, unembedding: Array, targets: Array, mask: Array, cut: HeadCut
) -> tuple[tuple[Array, Array], tuple[Array | None, ...]]:
    chunk, block, mesh, vocab = cut.chunk, cut.block, cut.mesh, unembedding.shape[0]

    def body(i: Array, carry: Any) -> Any:
        *outputs, kept = carry
        states = _states(hidden, i, chunk, mesh)
        wanted = _columns(targets, i, chunk)

        def over_block(start: Array, weight: Array, fresh: Array | None, carry: Any) -> Any:
            top, total, moment, picked, kept = carry
            logits = _logits(weight, states, mesh)
            if kept is not None:
                kept = lax.dynamic_update_slice(kept, logits[None], (i, start, 0, 0))
            here = (wanted >= start) & (wanted < start + block)
            at = jnp.clip(wanted - start, 0, block - 1)[None]
            found = jnp.take_along_axis(logits, at, axis=0)[0]
            if fresh is not None:
                logits = jnp.where(fresh[:, None, None], logits, -jnp.inf)
            new_top = jnp.maximum(top, jnp.max(logits, axis=0))
            shrink = jnp.exp(top - new_top)
            shifted = logits - new_top
            e = jnp.exp(shifted)
            # sum e^z z moves with the maximum like this; where e is 0, z may be -inf.
            moment = shrink * (moment + total * (top - new_top))
            moment += jnp.sum(jnp.where(e > 0, e * shifted, 0.0), axis=0)
            total = shrink * total + jnp.sum(e, axis=0)
            return new_top, total, moment, jnp.where(here, found, picked), kept

        zero = jnp.zeros(wanted.shape, jnp.float32)
        first = (jnp.full(wanted.shape, LOWEST), zero, zero, jnp.full(wanted.shape, jnp.nan), kept)
        top, total, moment, picked, kept = _over_vocabulary(unembedding, block, over_block, first)
        log_total = jnp.log(total)
        real = _columns(mask, i, chunk)
        logprob, entropy = (
            jnp.where(real, value, 0) for value in (picked - top - log_total, log_total - moment / total)
        )
        outputs = [
            lax.dynamic_update_slice_in_dim(old, value, i * chunk, axis=1)
            for old, value in zip(outputs, (logprob, entropy, top + log_total))
        ]
        return (*outputs, kept)

    assert mesh is None or block == vocab
    empty = jnp.zeros(targets.shape, jnp.float32)
    rows, slots = targets.shape
    kept = jnp.zeros((slots // chunk, vocab, rows, chunk), jnp.float32) if cut.keep else None
    with jax.named_scope("head_chunks"):
        logprob, entropy, logsumexp, kept = lax.fori_loop(
            0, _trips(mask, chunk), body, (empty, empty, empty, kept)
        )
    return (logprob, entropy), (hidden, unembedding, targets, mask, logsumexp, kept)


class _Read(NamedTuple):
    """What the backward pass reads in every block."""

    hidden: Array  # [R, S, E]
    targets: Array  # [R, S]
    mask: Array  # [R, S]
    logsumexp: Array  # [R, S]
    upstream: Array  # [R, S] gradient of the log-probs, 0 where the mask is False
    kept: Array | None  # [S / chunk, V, R, chunk] logits


def _backward(
    cut: HeadCut, residuals: tuple[Any, ...], cotangents: tuple[Any, Any]
) -> tuple[Array | None, Array | None, None, None]:
    """d logprob / d logits = onehot(target) - softmax, a block at a time; the logits are computed again unless kept."""
    hidden, unembedding, targets, mask, logsumexp, kept, trained = residuals
    if isinstance(cotangents[0], SymbolicZero):
        return None, None, None, None
    read = _Read(hidden, targets, mask, logsumexp, jnp.where(mask, cotangents[0], 0), kept)
    rows, slots, width = hidden.shape
    whole = cut.block == unembedding.shape[0]
    parts = (slots // cut.chunk, width, rows, cut.chunk)
    d_hidden = jnp.zeros_like(hidden) if whole else jnp.zeros(parts, jnp.float32)
    d_unembedding = None if whole or trained is None else jnp.zeros(unembedding.shape, jnp.float32)
    # The vocabulary outside, the states inside: a block of the head is cut and turned once, its gradient written once.
    over_block = functools.partial(_block_gradients, cut, read, trained is not None, whole)
    d_hidden, d_unembedding = _over_vocabulary(unembedding, cut.block, over_block, (d_hidden, d_unembedding))
    if not whole:  # [S / chunk, E, R, chunk] -> [R, S, E]
        d_hidden = jnp.transpose(d_hidden, (2, 0, 3, 1)).reshape(hidden.shape).astype(hidden.dtype)
    return d_hidden, None if d_unembedding is None else d_unembedding.astype(unembedding.dtype), None, None


def _block_gradients(
    cut: HeadCut,
    read: _Read,
    trained: bool,
    whole: bool,
    start: Array,
    weight: Array,
    fresh: Array | None,
    gradients: tuple[Array, Array | None],
) -> tuple[Array, Array | None]:
    """Adds what one block of the vocabulary gives to the states' gradient, and writes its part of the head's if trained."""
    chunk, block, mesh = cut.chunk, cut.block, cut.mesh
    on_cpu = platform_of(mesh) == "cpu"
    rows, _, width = read.hidden.shape
    # Left to itself XLA folds this into the product, which then is a quarter slower on a CPU than with the copy.
    turned = lax.optimization_barrier(weight.T) if on_cpu else None
    ids = (start + jnp.arange(block, dtype=read.targets.dtype))[:, None, None]

    # The width first in the states' gradient, as the vocabulary in the logits: no product then wants the logits'
    # gradient transposed, which is worth a third of the whole on a CPU.
    def body(i: Array, gradients: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        d_hidden, d_weight = gradients
        states = _states(read.hidden, i, chunk, mesh)
        wanted, log_z, factor = (_columns(x, i, chunk) for x in (read.targets, read.logsumexp, read.upstream))
        if read.kept is None:
            logits = _logits(weight, states, mesh)
        else:
            logits = lax.dynamic_slice(read.kept, (i, start, 0, 0), (1, block, *wanted.shape))[0]
        d_logits = factor * ((wanted == ids) - jnp.exp(logits - log_z))
        if fresh is not None:
            d_logits = jnp.where(fresh[:, None, None], d_logits, 0)
        d_logits = d_logits.astype(states.dtype)
        # Elsewhere it is turned here: outside of the loop that would be a copy.
        left = weight.T if turned is None else turned
        # As matrices: a CPU has no product of bfloat16 over the first axis of more.
        part = product("ev,vn->en", left.astype(d_logits.dtype), d_logits.reshape(block, -1))
        d_states = part.reshape(width, rows, chunk)
        if whole:
            d_states = constrain(mesh, jnp.moveaxis(d_states, 0, -1), _ROWS).astype(d_hidden.dtype)
            d_hidden = lax.dynamic_update_slice_in_dim(d_hidden, d_states, i * chunk, axis=1)
        else:
            d_hidden = d_hidden.at[i].add(d_states)
        if d_weight is not None:
            d_weight += product("vrc,rce->ve", d_logits, states)
            d_weight = constrain(mesh, d_weight, SPLIT_HEAD, uneven=True)
        return d_hidden, d_weight

    d_hidden, d_unembedding = gradients
    d_weight = jnp.zeros(weight.shape, jnp.float32) if trained else None
    with jax.named_scope("head_chunks"):
        d_hidden, d_weight = lax.fori_loop(0, _trips(read.mask, chunk), body, (d_hidden, d_weight))
    if whole or d_weight is None:
        return d_hidden, d_weight
    assert d_unembedding is not None
    d_weight += lax.dynamic_slice_in_dim(d_unembedding, start, block)
    return d_hidden, lax.dynamic_update_slice_in_dim(d_unembedding, d_weight, start, axis=0)


def _forward_to_differentiate(
    hidden: Any, unembedding: Any, targets: Any, mask: Any, cut: HeadCut
) -> tuple[tuple[Array, Array], tuple[Array | None, ...]]:
    """`_forward` of what `custom_vjp` hands over; the last residual is None where the head is frozen."""
    outputs, residuals = _forward(hidden.value, unembedding.value, targets.value, mask.value, cut)
    return outputs, (*residuals, jnp.zeros(()) if unembedding.perturbed else None)


masked_head.defvjp(_forward_to_differentiate, _backward, symbolic_zeros=True)


def _over_vocabulary(
    unembedding: Array,
    block: int,
    over_block: Callable[[Array, Array, Array | None, Any], Any],
    carry: Any,
) -> Any:
    """`over_block(start, weight [block, E], fresh [block], carry)` for one block of the vocabulary after the other.

    The last block may begin before its turn; `fresh` is False for what was counted already, None if nothing was.
    """
    vocab = unembedding.shape[0]
    if block == vocab:
        return over_block(jnp.zeros((), jnp.int32), unembedding, None, carry)

    def step(j: Array, carry: Any) -> Any:
        start = jnp.minimum(j * block, vocab - block)
        weight = lax.dynamic_slice_in_dim(unembedding, start, block)
        fresh = None if vocab % block == 0 else start + jnp.arange(block) >= j * block
        return over_block(start, weight, fresh, carry)

    return lax.fori_loop(0, math.ceil(vocab / block), step, carry)


def _trips(mask: Array, chunk: int) -> Array:
    return (jnp.max(jnp.sum(mask, axis=1, dtype=jnp.int32)) + chunk - 1) // chunk


def _columns(array: Array, i: Array, chunk: int) -> Array:
    return lax.dynamic_slice_in_dim(array, i * chunk, chunk, axis=1)


def _states(hidden: Array, i: Array, chunk: int, mesh: Mesh | None) -> Array:
    # Placed as it is first: the compiler would otherwise gather all columns in every trip, and cut the chunk from them.
    columns = constrain(mesh, _columns(hidden, i, chunk), _ROWS)
    return constrain(mesh, columns, _SHARED_ROWS)


def _logits(weight: Array, states: Array, mesh: Mesh | None) -> Array:
    """[block, R, chunk] float32 of a block of the head [block, E] and states [R, chunk, E]."""
    logits = product("ve,rce->vrc", weight.astype(states.dtype), states)
    return constrain(mesh, logits, _SPLIT_LOGITS, uneven=True)
