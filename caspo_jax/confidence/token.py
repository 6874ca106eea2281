"""Logits -> per-token statistics, in one pass over the vocabulary."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from caspo_jax.errors import UserError

TOP_K = (5, 20)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStats:
    """What one token's distribution says, in nats at temperature 1; fields not asked for are None.

    Attributes:
      entropy: [...] f32, -sum_v p_v log p_v, in [0, ln V].
      logprob: [...] f32, log-prob of the emitted token.
      top1_id: [...] int32, the most probable token (ties: the lower id).
      top2_id: [...] int32, the runner-up; -1 if V = 1.
      top1_logprob: [...] f32.
      top2_logprob: [...] f32, -inf if there is no second finite logit.
      mean_top5_logprob: [...] f32, mean over the top min(5, finite) tokens.
      mean_top20_logprob: [...] f32, mean over the top min(20, finite) tokens.
      uniform_kl: [...] f32, KL(uniform || p) over the finite support, >= 0.
      logsumexp: [...] f32, log sum_v exp(logit_v).
    """

    entropy: jax.Array | None = None  # [...] f32
    logprob: jax.Array | None = None  # [...] f32
    top1_id: jax.Array | None = None  # [...] int32
    top2_id: jax.Array | None = None  # [...] int32
    top1_logprob: jax.Array | None = None  # [...] f32
    top2_logprob: jax.Array | None = None  # [...] f32
    mean_top5_logprob: jax.Array | None = None  # [...] f32
    mean_top20_logprob: jax.Array | None = None  # [...] f32
    uniform_kl: jax.Array | None = None  # [...] f32
    logsumexp: jax.Array | None = None  # [...] f32


TOKEN_FIELDS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(TokenStats))
_TOP2_FIELDS = {"top1_id", "top2_id", "top2_logprob"}
_TOPK_FIELDS = {"mean_top5_logprob", "mean_top20_logprob"}


def token_stats(
    logits: jax.Array | np.ndarray,
    token_ids: jax.Array | np.ndarray | None = None,
    fields: Iterable[str] | None = None,
) -> TokenStats:
    """Statistics of each token's temperature-1, full-vocabulary distribution.

    With m = max_v x_v and z = x - m: s = sum e^z, logsumexp = m + log s, H = log s - (sum e^z z) / s,
    log p_v = z_v - log s, KL(uniform || p) = log s - mean_{finite} z - log n_finite. All in float32,
    whatever the input's dtype; a logit of -inf has probability 0 and contributes nothing.

    Nothing is shifted: `logits[..., t, :]` is what `token_ids[..., t]` was drawn from.

    Args:
      logits: [..., V], any float dtype.
      token_ids: [...] integers, the emitted tokens; may be None if `logprob` is not asked for.
      fields: names of the TokenStats fields to compute (default all that the arguments allow). Asking
        for `entropy` and `logprob` alone skips the top-k work, which costs more than everything else.

    Returns:
      TokenStats of float32 arrays [...]. Under jit a row of nothing but -inf (or with NaN or +inf) and a
      token id outside the vocabulary give NaN.

    Raises:
      UserError: unknown field, shapes that do not match; and, on concrete arrays (outside jit), a row
        of nothing but -inf, a row with NaN or +inf, a token id outside the vocabulary.

    >>> stats = token_stats(np.log([[0.5, 0.25, 0.25]]), np.array([0]), fields=("entropy", "logprob"))
    >>> [round(float(x), 4) for x in (stats.entropy[0], stats.logprob[0])]  # nats
    [1.0397, -0.6931]
    """
    wanted = _wanted_fields(fields, token_ids is not None)
    logits = jnp.asarray(logits)
    token_ids = None if token_ids is None else jnp.asarray(token_ids)
    shape = logits.shape
    if not shape or shape[-1] == 0:
        raise UserError(f"token_stats: logits of shape {shape} have no vocabulary axis; give [..., V]")
    if token_ids is not None and token_ids.shape != shape[:-1]:
        raise UserError(
            f"token_stats: token_ids of shape {token_ids.shape} do not match "
            f"logits of shape {shape}; give token_ids of shape {shape[:-1]}"
        )
    if token_ids is not None and token_ids.size and not jnp.issubdtype(token_ids.dtype, jnp.integer):
        raise UserError(f"token_stats: token_ids must be integers, not {token_ids.dtype}")
    if isinstance(logits, jax.core.Tracer) or isinstance(token_ids, jax.core.Tracer):
        return _token_stats(logits, token_ids, wanted)
    stats, finite, in_range = _checked_token_stats(logits, token_ids, wanted)
    if not bool(finite):
        raise UserError(
            f"token_stats: a row of the logits {shape} holds nothing but -inf, or a NaN or +inf; "
            "its distribution is undefined"
        )
    if not bool(in_range):
        raise UserError(f"token_stats: token_ids hold an id outside the vocabulary [0, {shape[-1]})")
    return stats


def _wanted_fields(fields: Iterable[str] | None, has_ids: bool) -> tuple[str, ...]:
    if fields is None:
        return tuple(name for name in TOKEN_FIELDS if has_ids or name != "logprob")
    asked = {fields} if isinstance(fields, str) else set(fields)
    unknown = sorted(asked - set(TOKEN_FIELDS))
    if unknown:
        raise UserError(f"token_stats: unknown field {unknown[0]!r}; choose from {', '.join(TOKEN_FIELDS)}")
    if "logprob" in asked and not has_ids:
        raise UserError("token_stats: field 'logprob' needs token_ids")
    return tuple(name for name in TOKEN_FIELDS if name in asked)


def _token_stats(logits, token_ids, fields: tuple[str, ...]) -> TokenStats:
    """The computation itself: pure, for use under jit."""
    x = jnp.asarray(logits).astype(jnp.float32)
    vocab = x.shape[-1]
    top = jnp.max(x, axis=-1, keepdims=True)
    z = x - top
    e = jnp.exp(z)
    total = jnp.sum(e, axis=-1)
    log_total = jnp.log(total)
    out: dict[str, jax.Array] = {}
    if "entropy" in fields:
        # Where e is 0, z may be -inf: it is replaced by 0, so that 0 log 0 = 0 and the gradient is 0 too.
        out["entropy"] = log_total - jnp.sum(e * jnp.where(e > 0, z, 0.0), axis=-1) / total
    if "logprob" in fields:
        ids = jnp.asarray(token_ids).astype(jnp.int32)  # int8 or int16 might not hold V, to compare with
        picked = jnp.take_along_axis(x, jnp.clip(ids, 0, vocab - 1)[..., None], axis=-1) - top
        inside = (ids >= 0) & (ids < vocab)
        out["logprob"] = jnp.where(inside, picked[..., 0] - log_total, jnp.nan)
    if "top1_logprob" in fields:
        out["top1_logprob"] = -log_total
    if "uniform_kl" in fields:
        finite = x > -jnp.inf
        support = jnp.sum(finite, axis=-1)
        # Divided by V before the sum, since a sum of logits of -3e38 would overflow.
        mean = jnp.sum(jnp.where(finite, z * (1.0 / vocab), 0.0), axis=-1) * (vocab / support)
        out["uniform_kl"] = jnp.maximum(log_total - mean - jnp.log(support.astype(jnp.float32)), 0.0)
    if "logsumexp" in fields:
        out["logsumexp"] = top[..., 0] + log_total
    if _TOPK_FIELDS.intersection(fields):
        out |= _top_k_fields(x, top, log_total)
    elif _TOP2_FIELDS.intersection(fields):
        out |= _top_two_fields(x, top, log_total)
    return TokenStats(**{name: out[name] for name in fields})


def _top_two_fields(x, top, log_total) -> dict[str, jax.Array]:
    """The ids of the top two and the runner-up's log-prob, by masked reductions.

    On a CPU that is three times as fast as argmax, and as fast as top_k.
    """
    vocab = x.shape[-1]
    column = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    first = jnp.min(jnp.where(x == top, column, vocab), axis=-1)
    rest = jnp.where(column == first[..., None], -jnp.inf, x)
    second_value = jnp.max(rest, axis=-1, keepdims=True)
    # The first column is excluded by index: where all else is -inf, `rest == -inf` holds there too.
    is_second = (rest == second_value) & (column != first[..., None])
    second = jnp.min(jnp.where(is_second, column, vocab), axis=-1)
    return {
        "top1_id": jnp.where(first < vocab, first, 0),
        "top2_id": jnp.where(second < vocab, second, -1),
        "top2_logprob": second_value[..., 0] - top[..., 0] - log_total,
    }


def _top_k_fields(x, top, log_total) -> dict[str, jax.Array]:
    """The ids of the top two, the runner-up's log-prob, and the mean log-probs of the top 5 and 20, by one top_k."""
    lead, vocab = x.shape[:-1], x.shape[-1]
    # -0.0 becomes 0.0: they tie, but top_k would order them by sign.
    operand = jnp.where(x == 0, 0.0, x).reshape(-1, vocab)
    # XLA's CPU backend turns top_k into a full sort (100 times as slow) unless it stands alone: with a 2-D
    # operand, and behind barriers, so that no later slice is merged into it. A single barrier around both
    # results crashes XLA.
    values, ids = map(lax.optimization_barrier, lax.top_k(operand, min(TOP_K[-1], vocab)))
    values, ids = (found.reshape(*lead, found.shape[-1]) for found in (values, ids))
    logprobs = values - top - log_total[..., None]
    out: dict[str, jax.Array] = {}
    for k in TOP_K:
        finite = values[..., :k] > -jnp.inf
        # Divided by k before the sum, as in uniform_kl, since a sum of logits of -3e38 would overflow.
        mean = jnp.sum(jnp.where(finite, logprobs[..., :k] * (1.0 / k), 0.0), axis=-1)
        out[f"mean_top{k}_logprob"] = mean * (k / jnp.sum(finite, axis=-1))
    out["top1_id"] = ids[..., 0]
    if vocab > 1:
        out["top2_id"], out["top2_logprob"] = ids[..., 1], logprobs[..., 1]
    else:
        out["top2_id"] = jnp.full(lead, -1, jnp.int32)
        out["top2_logprob"] = jnp.full(lead, -jnp.inf, jnp.float32) + log_total
    return out


@functools.partial(jax.jit, static_argnames="fields")
def _checked_token_stats(logits, token_ids, fields: tuple[str, ...]):
    """The statistics, whether every row has a distribution, and whether every id is inside the vocabulary."""
    # A row has a distribution if its log-sum-exp is finite, which is computed for that also where nobody asks
    # for it.
    stats = _token_stats(logits, token_ids, tuple(dict.fromkeys((*fields, "logsumexp"))))
    log_z = stats.logsumexp
    if "logsumexp" not in fields:
        stats = dataclasses.replace(stats, logsumexp=None)
    finite = jnp.all(jnp.isfinite(cast(jax.Array, log_z)))
    in_range = jnp.bool_(True)
    if token_ids is not None:
        ids = token_ids.astype(jnp.int32)
        in_range = jnp.all((ids >= 0) & (ids < logits.shape[-1]))
    return stats, finite, in_range
