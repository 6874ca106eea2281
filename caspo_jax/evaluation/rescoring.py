"""Statistics of recorded tokens that the traces do not carry, by one teacher-forced pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.confidence import TokenStats, model_token_stats
from caspo_jax.sharding import to_host
from caspo_jax.types import Trace

BUCKET = 64  # row lengths are rounded up to a multiple of this, so that few shapes are compiled
ALL_FIELDS = (
    "entropy",
    "logprob",
    "top1_logprob",
    "top2_logprob",
    "mean_top5_logprob",
    "mean_top20_logprob",
    "uniform_kl",
    "logsumexp",
)


@functools.partial(jax.jit, static_argnames=("graphdef", "fields"))
def _statistics(graphdef: Any, params: Any, ids: jax.Array, mask: jax.Array, fields: tuple[str, ...]):
    return model_token_stats(nnx.merge(graphdef, params), ids, mask, fields)


@functools.partial(jax.jit, static_argnames="graphdef")
def _cross_entropy(graphdef: Any, params: Any, ids: jax.Array, mask: jax.Array, reference: jax.Array):
    model = nnx.merge(graphdef, params)
    return -jnp.einsum("btv,v->bt", jax.nn.softmax(model(ids, mask=mask), axis=-1), reference)[:, :-1]


def token_statistics(
    model: Any,
    traces: Sequence[Trace],
    fields: tuple[str, ...] = ALL_FIELDS,
    *,
    batch_size: int = 64,
) -> list[TokenStats]:
    """TokenStats [T] (host, float64) of the emitted tokens of each trace; T tokens, one entry each.

    Equal to what the sampler saw up to float error: the distribution at temperature 1 that predicted the token.

    Args:
      model: the Decoder that wrote the traces.
      traces: with prompt_ids and token_ids, neither empty.
      fields: TokenStats fields to compute.
      batch_size: rows on the device at once.
    """
    graphdef, params = nnx.split(model)
    return _each(
        traces, batch_size, lambda ids, mask: _statistics(graphdef, params, ids, mask, tuple(fields))
    )


def reference_kl(
    model: Any, traces: Sequence[Trace], context: int, *, batch_size: int = 64
) -> list[np.ndarray]:
    """KL(p_t || q) [T] of each emitted token's distribution p_t to q = p(. | context), nats.

    Args:
      model: the Decoder that wrote the traces.
      traces: with prompt_ids and token_ids; their `entropy` is read.
      context: the token that q is conditioned on, beginning-of-sequence in KAPPA.
      batch_size: rows on the device at once.
    """
    graphdef, params = nnx.split(model)
    reference = jax.nn.log_softmax(model(jnp.asarray([[context, context]]))[0, 0])
    cross = _each(
        traces, batch_size, lambda ids, mask: _cross_entropy(graphdef, params, ids, mask, reference)
    )
    return [np.maximum(x - np.asarray(t.entropy), 0.0) for x, t in zip(cross, traces, strict=True)]


def _each(
    traces: Sequence[Trace], batch_size: int, read: Callable[[np.ndarray, np.ndarray], Any]
) -> list[Any]:
    """What `read`, (ids [R, T], mask [R, T]) -> tree of [R, T - 1], says of each trace's tokens: host, float64."""
    found: dict[int, Any] = {}
    for ids, mask, part in _batches(traces, batch_size):
        arrays = to_host(read(ids, mask))
        for row, i in enumerate(part):
            at = row, _span(traces[i])
            found[i] = jax.tree.map(lambda x, at=at: np.asarray(x[at], np.float64), arrays)
    return [found[i] for i in range(len(traces))]


def _span(trace: Trace) -> slice:
    return slice(len(trace.prompt_ids) - 1, len(trace.prompt_ids) + len(trace.token_ids) - 1)


def _length(trace: Trace) -> int:
    return len(trace.prompt_ids) + len(trace.token_ids)


def _batches(
    traces: Sequence[Trace], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Sequence[int]]]:
    """(token ids [R, T], mask [R, T], which traces), those of one length together; R is the same for every batch."""
    order = sorted(range(len(traces)), key=lambda i: _length(traces[i]))
    for start in range(0, len(traces), batch_size):
        part = order[start : start + batch_size]
        longest = _length(traces[part[-1]])
        shape = (batch_size if len(traces) > batch_size else len(part), -(-longest // BUCKET) * BUCKET)
        ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        mask[:, :2] = True  # rows that only fill up the batch
        for row, i in enumerate(part):
            whole = [*traces[i].prompt_ids, *traces[i].token_ids]
            ids[row, : len(whole)] = whole
            mask[row] = np.arange(shape[1]) < len(whole)
        yield ids, mask, part
