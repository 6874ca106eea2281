"""Log-prob and entropy sums over the tokens of a step, without the logits of anything else (`scored_stats`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.errors import UserError
from caspo_jax.models.eager import compiled_when_eager
from caspo_jax.models.remat import Remat
from caspo_jax.sharding import mesh_of, place, whole
from caspo_jax.training.scored_stats import scored_stats
from caspo_jax.types import PairBatch, StepRows, TreeBatch

Array = jax.Array


class StepSums(NamedTuple):
    """What a row's step sums to."""

    logprob: Array  # [R] float32, nats; differentiable
    entropy: Array  # [R] float32, nats; no gradient
    tokens: Array  # [R] float32, how many tokens


@compiled_when_eager("chunk", "remat")
def step_sums(model: Any, rows: StepRows, chunk: int | None = None, remat: Remat = "none") -> StepSums:
    """Sums over each row's step of the log-prob of its tokens and of the entropy that they were drawn with.

    `logprob = sum_t m_t log pi(y_t | y_<t)`, `entropy = sum_t m_t H(pi(. | y_<t))`, `tokens = sum_t m_t`. A
    row's first token has no prediction and counts nowhere. An empty mask sums to 0.

    Args:
      model: has `hidden_states(token_ids, mask=)` -> `[R, T, E]` and `unembedding()` -> `[V, E]`.
      rows: `[R, T]` token ids, their mask, and the mask of the step's tokens.
      chunk: step tokens a row whose logits are held at once; default: by the vocabulary (`scored_stats`).
      remat: what the backward pass recomputes, see `Decoder.hidden_states`; with `none` the logits too are kept where
        they are few (`scored_stats`).
    """
    options = {"remat": remat} if remat != "none" else {}
    hidden = model.hidden_states(rows.token_ids, mask=rows.mask, **options)[:, :-1]
    targets, step_mask = rows.token_ids[:, 1:], rows.step_mask[:, 1:].astype(bool)
    tokens = jnp.sum(step_mask, axis=1, dtype=jnp.float32)
    mesh = mesh_of(model)
    if mesh is not None:
        order = jnp.argsort(~step_mask, axis=1, stable=True)
        hidden = jnp.take_along_axis(hidden, order[:, :, None], axis=1)
        targets, step_mask = (jnp.take_along_axis(x, order, axis=1) for x in (targets, step_mask))
    logprob, entropy = scored_stats(
        hidden, model.unembedding(), targets, step_mask, chunk, mesh, keep=remat == "none"
    )
    return StepSums(jnp.sum(logprob, axis=1), jnp.sum(entropy, axis=1), tokens)


@compiled_when_eager("chunk", "remat")
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
    logprob, entropy = scored_stats(
        hidden, model.unembedding(), batch.target, batch.target_mask, chunk, mesh, keep=remat == "none"
    )
    items = 2 * batch.weight.shape[1] + batch.verified.shape[1]

    def total(values: Array, slots: Array, owners: Array) -> Array:
        return jax.ops.segment_sum(values[slots], owners, items + 1)[:items]

    ones = jnp.ones(logprob.shape, jnp.float32)
    return StepSums(
        *(jax.vmap(total)(x, batch.member_slot, batch.member_item) for x in (logprob, entropy, ones))
    )


def check_batch(batch: PairBatch) -> None:
    """Refuses arrays that do not fit each other: padded or broadcast, they would give another loss without a word.

    In a program only shapes are looked at, which costs it nothing; outside of one also the steps' masks.

    Raises:
      UserError: names the array and both shapes, or the rows whose step holds padding.
    """
    for side in ("chosen", "rejected", "verified"):
        rows = getattr(batch, side)
        if rows is None:
            continue
        ids = f"{side}.token_ids"
        _same_shape(f"{side}.mask", rows.mask, ids, np.shape(rows.token_ids))
        _same_shape(f"{side}.step_mask", rows.step_mask, ids, np.shape(rows.token_ids))
        masks = (rows.mask, rows.step_mask)
        if any(isinstance(m, jax.core.Tracer) or not getattr(m, "is_fully_addressable", True) for m in masks):
            continue
        real, step = (np.asarray(mask, bool) for mask in masks)
        if (step & ~real).any():
            raise UserError(f"{side}.step_mask marks tokens that {side}.mask calls padding")
    for name in ("weight", "reference_chosen", "reference_rejected"):
        _same_shape(name, getattr(batch, name), "rows of chosen", np.shape(batch.chosen.token_ids)[:1])


def _same_shape(name: str, given: Any, beside: str, shape: tuple[int, ...]) -> None:
    if np.shape(given) != shape:
        raise UserError(f"{name} of shape {np.shape(given)} does not match {beside} of shape {shape}")


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
    0 (to float32 rounding) and the sigmoid term is log 2. Where the loss has verified steps in rows beside the pairs'
    (`pack="rows"`), its batch is a larger one: log 2 to 1e-4 in bfloat16.

    Args:
      model: the frozen reference, usually the policy at the round's start.
      batch: its reference fields are ignored.
      chunk: as in `step_sums`.

    Returns:
      Two float32 arrays of as many entries as `batch.weight`; 0 for padding.
    """
    if isinstance(batch, PairBatch):
        check_batch(batch)
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
    if isinstance(batches, PairBatch):
        raise UserError("reference_logprobs takes a list of batches, not one batch")
    for batch in batches:
        columns: Any = batch_reference(model, batch, chunk=chunk)  # NumPy, kept on the host
        filled.append(dataclasses.replace(batch, reference_chosen=columns[0], reference_rejected=columns[1]))
    return filled
