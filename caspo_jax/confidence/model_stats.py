"""Log-probs, entropies and statistics of given tokens under a model, without ever holding [B, T, V]."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from caspo_jax.confidence.chunked import chunked_stats, hidden_token_stats
from caspo_jax.confidence.token import TokenStats
from caspo_jax.errors import UserError


def token_logprobs(
    model: Any, token_ids: jax.Array, mask: jax.Array | None = None, *, chunk: int | None = None
) -> jax.Array:
    """Teacher-forced log-prob of every token but the first; entry t scores token t + 1.

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
    unembedding = model.unembedding()
    hidden, targets, real, known = _shifted(model, token_ids, mask, len(unembedding))
    # Clipped: gathering takes an id below 0 from the vocabulary's end.
    logprob, entropy = chunked_stats(hidden, unembedding, jnp.clip(targets, 0, len(unembedding) - 1), chunk)
    logprob = jnp.where(known[:, 1:], logprob[:, :-1], jnp.nan)
    entropy = jnp.where(known[:, :-1], entropy[:, :-1], jnp.nan)
    return jnp.where(real, logprob, 0.0), jnp.where(real, entropy, 0.0)


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
    unembedding = model.unembedding()
    hidden, targets, _, _ = _shifted(model, token_ids, mask, len(unembedding))
    stats = hidden_token_stats(hidden, unembedding, targets, fields, chunk)
    return jax.tree.map(lambda leaf: leaf[:, :-1], stats)


def _shifted(model, token_ids, mask, vocab):
    """States, what they predict, where both tokens are real [B, T-1], and where all real tokens so far are known [B, T]."""
    token_ids = jnp.asarray(token_ids)
    if token_ids.ndim != 2 or token_ids.shape[1] < 2:
        raise UserError(f"token_ids of shape {token_ids.shape}: log-probs need [B, T] with T >= 2")
    real = jnp.ones(token_ids.shape, bool) if mask is None else jnp.asarray(mask, bool)
    if real.shape != token_ids.shape:
        raise UserError(f"mask of shape {real.shape} does not match token_ids of shape {token_ids.shape}")
    known = ~real | ((token_ids >= 0) & (token_ids < vocab))
    if not isinstance(known, jax.core.Tracer) and not bool(jnp.all(known)):
        raise UserError(
            f"token_ids hold an id outside the vocabulary [0, {vocab}); leave labels such as -100 out by the mask"
        )
    hidden = model.hidden_states(token_ids, mask=real)
    # The last column predicts nothing; keeping it keeps T as it is, and so the chunks even.
    targets = jnp.roll(token_ids, -1, axis=1)
    return hidden, targets, real[:, :-1] & real[:, 1:], jnp.cumsum(~known, axis=1) == 0
