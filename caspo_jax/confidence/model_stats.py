"""Log-probs, entropies and statistics of given tokens under a model, without ever holding [B, T, V]."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from caspo_jax.confidence.chunked import chunked_stats, hidden_token_stats
from caspo_jax.confidence.token import TokenStats
from caspo_jax.errors import UserError
from caspo_jax.models.eager import compiled_when_eager
from caspo_jax.models.inputs import checked_inputs
from caspo_jax.sharding import mesh_of


def token_logprobs(
    model: Any, token_ids: jax.Array, mask: jax.Array | None = None, *, chunk: int | None = None
) -> jax.Array:
    """Teacher-forced log-prob of every token but the first; entry t scores token t + 1.

    Called outside of jit with a Decoder, it runs as one program, compiled once for each shape. To
    differentiate it, put `nnx.jit` around the gradient.

    Args:
      model: anything with `hidden_states(token_ids, mask=mask) -> [B, T, E]` and `unembedding() -> [V, E]`.
      token_ids: [B, T] integers.
      mask: [B, T] bool, real tokens (padding on either side); default all.
      chunk: see chunked_stats.

    Returns:
      [B, T-1] float32, nats; 0 where token t or token t + 1 is not real. Works under nnx.value_and_grad. Under jit an
      entry is NaN where a real token up to t + 1 is outside the vocabulary.

    Raises:
      UserError: shapes that do not match; and, on concrete arrays (outside jit), a real token outside the vocabulary.

    >>> from caspo_jax.models import load_pretrained
    >>> from caspo_jax.tasks import get_task
    >>> model, _ = load_pretrained(get_task("graph").policy_path)
    >>> logprobs = token_logprobs(model, jnp.array([[5, 6, 7]]))
    >>> logprobs.shape, bool((logprobs < 0).all())
    ((1, 2), True)
    """
    return token_logprobs_and_entropy(model, token_ids, mask, chunk=chunk)[0]


def token_logprobs_and_entropy(
    model: Any, token_ids: jax.Array, mask: jax.Array | None = None, *, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """As token_logprobs, with the entropy of the distribution that predicted each token: two [B, T-1]."""
    return _logprobs_and_entropy(model, *_checked(model, token_ids, mask), chunk=chunk)


@compiled_when_eager("chunk")
def _logprobs_and_entropy(
    model: Any, token_ids: jax.Array, real: jax.Array, *, chunk: int | None
) -> tuple[jax.Array, jax.Array]:
    unembedding = model.unembedding()
    vocab = len(unembedding)
    # Clipped: gathering takes an id below 0 from the vocabulary's end.
    targets = jnp.clip(_following(token_ids), 0, vocab - 1)
    hidden = model.hidden_states(token_ids, mask=real)
    logprob, entropy = chunked_stats(hidden, unembedding, targets, chunk, mesh_of(model))
    # False from the first real token outside the vocabulary on: all later predictions depend on it.
    known = jnp.cumsum(real & ~_inside(token_ids, vocab), axis=1) == 0
    logprob = jnp.where(known[:, 1:], logprob[:, :-1], jnp.nan)
    entropy = jnp.where(known[:, :-1], entropy[:, :-1], jnp.nan)
    both = real[:, :-1] & real[:, 1:]
    return jnp.where(both, logprob, 0.0), jnp.where(both, entropy, 0.0)


def model_token_stats(
    model: Any,
    token_ids: jax.Array,
    mask: jax.Array | None = None,
    fields: tuple[str, ...] | None = None,
    *,
    chunk: int | None = None,
) -> TokenStats:
    """Teacher-forced TokenStats [B, T-1] of given tokens, chunk by chunk; entry t describes token t + 1.

    For reports that compare every named confidence on given traces; not for differentiation (use
    token_logprobs). Entries where token t or t + 1 is not real are meaningless: carry the mask.
    """
    return _token_stats(model, *_checked(model, token_ids, mask), fields, chunk=chunk)


@compiled_when_eager("fields", "chunk")
def _token_stats(
    model: Any, token_ids: jax.Array, real: jax.Array, fields: tuple[str, ...] | None, *, chunk: int | None
) -> TokenStats:
    hidden = model.hidden_states(token_ids, mask=real)
    targets = _following(token_ids)
    stats = hidden_token_stats(hidden, model.unembedding(), targets, fields, chunk, mesh_of(model))
    return jax.tree.map(lambda leaf: leaf[:, :-1], stats)


def _checked(model: Any, token_ids: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Token ids [B, T] int32, and which of them are real [B, T] bool; outside of a trace the ids are checked."""
    token_ids, mask = checked_inputs(token_ids, mask=mask)
    if token_ids.shape[1] < 2:
        raise UserError(f"token_ids of shape {token_ids.shape}: log-probs need [B, T] with T >= 2")
    token_ids = token_ids.astype(jnp.int32)  # int8 or int16 might not hold V, to compare with
    real = jnp.ones(token_ids.shape, bool) if mask is None else mask.astype(bool)
    vocab = jax.eval_shape(model.unembedding).shape[0]
    known = ~real | _inside(token_ids, vocab)
    if not isinstance(known, jax.core.Tracer) and not bool(jnp.all(known)):
        raise UserError(
            f"token_ids hold an id outside the vocabulary [0, {vocab}); leave labels such as -100 out by the mask"
        )
    return token_ids, real


def _inside(token_ids: jax.Array, vocab: int) -> jax.Array:
    return (token_ids >= 0) & (token_ids < vocab)


def _following(token_ids: jax.Array) -> jax.Array:
    """The token that follows each, [B, T]. The last column predicts nothing; it stays so that chunks are even."""
    return jnp.roll(token_ids, -1, axis=1)
