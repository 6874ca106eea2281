"""Log-prob and entropy sums over the tokens of a step, without the logits of anything else.

The loss looks at a step's tokens alone, and a step is a small part of its row. So the hidden states of the step
tokens are moved to the front of their row, and the head runs over columns in chunks, as many as the longest
step needs: a loop of dynamic trip count, with its own reverse pass. At most `[R, chunk, V]` logits exist.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from caspo_jax.confidence import token_stats
from caspo_jax.models.decoder import Remat
from caspo_jax.sharding import constrain, mesh_of, place, whole
from caspo_jax.types import PairBatch, StepRows, TreeBatch

Array = jax.Array

_HEAD_ELEMENTS = 1 << 25  # logits a device holds at once when no chunk is given (128 MiB of float32)
_MAX_CHUNK = 32

# Logical axes of the head's arrays on a mesh.
_SPLIT_HEAD = ("head_vocab", None)  # [V, E]
_SPLIT_LOGITS = ("replica", None, "head_vocab")  # [R, chunk, V]
_SHARED_ROWS = ("replica", None, None)  # [R, chunk, E]
_ROWS = ("batch", None, None)


class StepSums(NamedTuple):
    """What a row's step sums to."""

    logprob: Array  # [R] float32, nats; differentiable
    entropy: Array  # [R] float32, nats; no gradient
    tokens: Array  # [R] float32, how many tokens


def step_sums(model: Any, rows: StepRows, chunk: int | None = None, remat: Remat = "none") -> StepSums:
    """Sums over each row's step of the log-prob of its tokens and of the entropy that they were drawn with.

    `logprob = sum_t m_t log pi(y_t | y_<t)`, `entropy = sum_t m_t H(pi(. | y_<t))`, `tokens = sum_t m_t`. A
    row's first token has no prediction and counts nowhere. An empty mask sums to 0.

    Args:
      model: has `hidden_states(token_ids, mask=)` -> `[R, T, E]` and `unembedding()` -> `[V, E]`.
      rows: `[R, T]` token ids, their mask, and the mask of the step's tokens.
      chunk: columns of step tokens whose logits are held at once; default: about 2^25 logits, at most 32.
      remat: what the backward pass recomputes, see `Decoder.hidden_states`.
    """
    options = {"remat": remat} if remat != "none" else {}
    hidden = model.hidden_states(rows.token_ids, mask=rows.mask, **options)[:, :-1]
    targets, step_mask = rows.token_ids[:, 1:], rows.step_mask[:, 1:]
    order = jnp.argsort(~step_mask, axis=1, stable=True)
    hidden = jnp.take_along_axis(hidden, order[:, :, None], axis=1)
    targets = jnp.take_along_axis(targets, order, axis=1)
    kept = jnp.take_along_axis(step_mask, order, axis=1)
    logprob, entropy = _slot_stats(hidden, model.unembedding(), targets, kept, chunk, mesh_of(model))
    tokens = jnp.sum(step_mask, axis=1, dtype=jnp.float32)
    return StepSums(jnp.sum(logprob, axis=1), jnp.sum(entropy, axis=1), tokens)


def tree_sums(model: Any, batch: TreeBatch, chunk: int | None = None, remat: Remat = "none") -> StepSums:
    """Sums over the items of packed trees: what `step_sums` gives for their rows, each shared token read once.

    Args:
      model: its `hidden_states` takes `subtree_end=` beside `positions=`.
      batch: R rows of T tokens.
      chunk: as in `step_sums`.
      remat: as in `step_sums`.

    Returns:
      Arrays `[R, 2P + V]`: chosen, rejected and verified items.
    """
    options = {"remat": remat} if remat != "none" else {}
    hidden = model.hidden_states(
        batch.token_ids, batch.positions, batch.subtree_end > 0, subtree_end=batch.subtree_end, **options
    )
    hidden = jnp.take_along_axis(hidden, batch.predictor[:, :, None], axis=1)
    mesh = mesh_of(model)
    logprob, entropy = _slot_stats(hidden, model.unembedding(), batch.target, batch.target_mask, chunk, mesh)
    items = 2 * batch.weight.shape[1] + batch.verified.shape[1]

    def total(values: Array, slots: Array, owners: Array) -> Array:
        return jax.ops.segment_sum(values[slots], owners, items + 1)[:items]

    ones = jnp.ones(logprob.shape, jnp.float32)
    return StepSums(
        *(jax.vmap(total)(x, batch.member_slot, batch.member_item) for x in (logprob, entropy, ones))
    )


def head_chunk(rows: int, vocab: int, slots: int, chunk: int | None = None, devices: int = 1) -> int:
    """Columns of step tokens whose logits the devices hold at once, of `slots` in each of so many rows."""
    if chunk is None:
        chunk = _HEAD_ELEMENTS * devices // (rows * vocab)
    return max(1, min(chunk, _MAX_CHUNK, slots))


def _slot_stats(
    hidden: Array, unembedding: Array, targets: Array, mask: Array, chunk: int | None, mesh: Mesh | None
) -> tuple[Array, Array]:
    """Log-prob and entropy (no gradient) [R, S] of left-packed slots, from the states [R, S, E] that predict them."""
    slots = hidden.shape[1]
    chunk = head_chunk(hidden.shape[0], unembedding.shape[0], slots, chunk, 1 if mesh is None else mesh.size)
    widen = -slots % chunk
    hidden, targets, mask = (
        jnp.pad(a, ((0, 0), (0, widen)) + ((0, 0),) * (a.ndim - 2)) for a in (hidden, targets, mask)
    )
    # On a mesh the head is split by vocabulary over all devices that share rows, and their states are gathered a chunk
    # at a time: no device ever holds the head, or the head's gradient, whole.
    unembedding = constrain(mesh, unembedding, _SPLIT_HEAD, uneven=True)
    logprob, entropy = _masked_head(hidden, unembedding, targets, mask, chunk, mesh)
    return logprob[:, :slots], jax.lax.stop_gradient(entropy[:, :slots])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _masked_head(
    hidden: Array, unembedding: Array, targets: Array, mask: Array, chunk: int, mesh: Mesh | None
) -> tuple[Array, Array]:
    """Log-prob and entropy `[R, S]` of left-packed step tokens; 0 where the mask is False.

    hidden `[R, S, E]`, unembedding `[V, E]`, targets and mask `[R, S]` with every row's True entries first,
    S a multiple of chunk. The entropy has no gradient.
    """
    return _head_forward(hidden, unembedding, targets, mask, chunk, mesh)[0]


def _head_forward(
    hidden: Array, unembedding: Array, targets: Array, mask: Array, chunk: int, mesh: Mesh | None
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    def body(i: Array, outputs: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        states = _states(hidden, i, chunk, mesh)
        logits = _logits(states, unembedding, mesh)
        stats = token_stats(logits, _columns(targets, i, chunk), ("logprob", "entropy", "logsumexp"))
        keep = _columns(mask, i, chunk)
        values = (jnp.asarray(value) for value in (stats.logprob, stats.entropy, stats.logsumexp))
        new = (jnp.where(keep, value, 0) for value in values)
        return tuple(  # type: ignore[return-value]
            jax.lax.dynamic_update_slice_in_dim(old, value, i * chunk, axis=1)
            for old, value in zip(outputs, new)
        )

    empty = jnp.zeros(targets.shape, jnp.float32)
    with jax.named_scope("head_chunks"):
        logprob, entropy, logsumexp = jax.lax.fori_loop(0, _trips(mask, chunk), body, (empty, empty, empty))
    return (logprob, entropy), (hidden, unembedding, targets, mask, logsumexp)


def _head_backward(
    chunk: int, mesh: Mesh | None, residuals: tuple[Array, ...], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    """d logprob / d logits = onehot(target) - softmax, a chunk at a time."""
    hidden, unembedding, targets, mask, logsumexp = residuals
    upstream = jnp.where(mask, cotangents[0], 0)

    def body(i: Array, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
        d_hidden, d_unembedding = gradients
        states = _states(hidden, i, chunk, mesh)
        logits = _logits(states, unembedding, mesh)
        softmax = jnp.exp(logits - _columns(logsumexp, i, chunk)[..., None])
        ids = jnp.arange(unembedding.shape[0], dtype=targets.dtype)
        onehot = _columns(targets, i, chunk)[..., None] == ids
        d_logits = _columns(upstream, i, chunk)[..., None] * (onehot - softmax)
        d_logits = d_logits.astype(states.dtype)
        d_states = constrain(mesh, _einsum("rcv,ve->rce", d_logits, unembedding), _ROWS)
        d_hidden = jax.lax.dynamic_update_slice_in_dim(
            d_hidden, d_states.astype(d_hidden.dtype), i * chunk, axis=1
        )
        d_head = _einsum("rcv,rce->ve", d_logits, states)
        return d_hidden, constrain(mesh, d_unembedding + d_head, _SPLIT_HEAD, uneven=True)

    zeros = (jnp.zeros_like(hidden), jnp.zeros(unembedding.shape, jnp.float32))
    with jax.named_scope("head_chunks"):
        d_hidden, d_unembedding = jax.lax.fori_loop(0, _trips(mask, chunk), body, zeros)
    return d_hidden, d_unembedding.astype(unembedding.dtype), None, None


_masked_head.defvjp(_head_forward, _head_backward)


def _trips(mask: Array, chunk: int) -> Array:
    return (jnp.max(jnp.sum(mask, axis=1, dtype=jnp.int32)) + chunk - 1) // chunk


def _columns(array: Array, i: Array, chunk: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, i * chunk, chunk, axis=1)


def _states(hidden: Array, i: Array, chunk: int, mesh: Mesh | None) -> Array:
    # Placed as it is first: the compiler would otherwise gather all columns in every trip, and cut the chunk from them.
    columns = constrain(mesh, _columns(hidden, i, chunk), _ROWS)
    return constrain(mesh, columns, _SHARED_ROWS)


def _logits(states: Array, unembedding: Array, mesh: Mesh | None) -> Array:
    return constrain(mesh, _einsum("rce,ve->rcv", states, unembedding), _SPLIT_LOGITS, uneven=True)


def _einsum(spec: str, left: Array, right: Array) -> Array:
    # float32 means full precision on every backend; half precision accumulates in float32.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    right = right.astype(left.dtype)
    return jnp.einsum(spec, left, right, precision=precision, preferred_element_type=jnp.float32)


def concatenate_rows(*groups: StepRows) -> StepRows:
    """Stack groups of rows `[R_i, T_i]` into one `[sum R_i, max T_i]`, padding on the right."""
    width = max(group.token_ids.shape[1] for group in groups)

    def stack(name: str) -> Array:
        arrays = [jnp.asarray(getattr(group, name)) for group in groups]
        return jnp.concatenate([jnp.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays])

    return StepRows(stack("token_ids"), stack("mask"), stack("step_mask"))


@functools.partial(jax.jit, static_argnames=("graphdef", "chunk"))
def _tree_logprobs(graphdef: Any, state: Any, batch: TreeBatch, chunk: int | None) -> Array:
    model = nnx.merge(graphdef, state)
    sums = tree_sums(model, batch, chunk)
    return whole(mesh_of(model), sums.logprob[:, : 2 * batch.weight.shape[1]])


@functools.partial(jax.jit, static_argnames=("graphdef", "chunk"))
def _pair_logprobs(
    graphdef: Any, state: Any, chosen: StepRows, rejected: StepRows, chunk: int | None
) -> Array:
    model = nnx.merge(graphdef, state)
    sums = step_sums(model, concatenate_rows(chosen, rejected), chunk)
    return whole(mesh_of(model), sums.logprob.reshape(2, -1))


def batch_reference(
    model: Any, batch: PairBatch | TreeBatch, *, chunk: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The reference's log-prob sums of the chosen and the rejected steps of a batch, in the order of its weights.

    Runs the same program over the same rows as the loss, so that at the first update the policy's log-ratios are
    0 (to float32 rounding) and the sigmoid term is log 2.

    Args:
      model: the frozen reference, usually the policy at the round's start.
      batch: its reference fields are ignored.
      chunk: as in `step_sums`.

    Returns:
      Two float32 arrays of as many entries as `batch.weight`; 0 for padding.
    """
    graphdef, state = nnx.split(model)
    batch = place(mesh_of(model), batch)
    if isinstance(batch, TreeBatch):
        both = np.asarray(_tree_logprobs(graphdef, state, batch, chunk))
        pairs = batch.weight.shape[1]
        return both[:, :pairs].reshape(-1), both[:, pairs:].reshape(-1)
    chosen, rejected = np.asarray(_pair_logprobs(graphdef, state, batch.chosen, batch.rejected, chunk))
    return chosen, rejected


def reference_logprobs(
    model: Any, batches: Iterable[PairBatch], *, chunk: int | None = None
) -> list[PairBatch]:
    """The batches with the reference's log-prob sums of both steps filled in; once a round, before training.

    Args:
      model: the frozen reference, usually the policy at the round's start.
      batches: `PairBatch`es of `[B, T]` rows; their reference fields are ignored and replaced.
      chunk: as in `step_sums`.

    Returns:
      New batches whose `reference_chosen`, `reference_rejected` are `[B]` float32 NumPy arrays; 0 for padding.
    """
    filled = []
    for batch in batches:
        chosen, rejected = batch_reference(model, batch, chunk=chunk)
        filled.append(
            PairBatch(
                chosen=batch.chosen,
                rejected=batch.rejected,
                weight=batch.weight,
                reference_chosen=chosen,  # type: ignore[arg-type]  # NumPy, kept on the host
                reference_rejected=rejected,  # type: ignore[arg-type]
                verified=batch.verified,
            )
        )
    return filled
