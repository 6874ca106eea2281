"""Statistics of recorded tokens that the traces do not carry, by one teacher-forced pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.confidence import TokenStats, hidden_stats_and_kl, hidden_token_stats
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
def _statistics(
    graphdef: Any,
    params: Any,
    ids: jax.Array,
    mask: jax.Array,
    fields: tuple[str, ...],
    reference: jax.Array | None = None,
) -> tuple[TokenStats, jax.Array | None]:
    model = nnx.merge(graphdef, params)
    read = model.hidden_states(ids, mask=mask), model.unembedding(), jnp.roll(ids, -1, axis=1)
    found: tuple[TokenStats, jax.Array | None]
    if reference is None:
        found = hidden_token_stats(*read, fields), None
    else:
        found = hidden_stats_and_kl(*read, reference, fields)
    return jax.tree.map(lambda x: x[:, :-1], found)  # the last token predicts nothing


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
    found = _each(traces, batch_size, lambda *batch: _statistics(graphdef, params, *batch, tuple(fields)))
    return [stats for stats, _ in found]


def statistics_and_kl(
    model: Any, traces: Sequence[Trace], fields: tuple[str, ...], context: int, *, batch_size: int = 64
) -> tuple[list[TokenStats], list[np.ndarray]]:
    """`token_statistics`, and from the same pass KL(p_t || q) [T] of each emitted token's distribution p_t, nats.

    Args:
      model: the Decoder that wrote the traces.
      traces: with prompt_ids and token_ids, neither empty.
      fields: TokenStats fields to compute.
      context: the token that q = p(. | context) is conditioned on, beginning-of-sequence in KAPPA.
      batch_size: rows on the device at once.
    """
    graphdef, params = nnx.split(model)
    reference = jax.nn.log_softmax(model(jnp.asarray([[context, context]]))[0, 0])
    found = _each(
        traces, batch_size, lambda *batch: _statistics(graphdef, params, *batch, tuple(fields), reference)
    )
    return [stats for stats, _ in found], [np.maximum(divergence, 0.0) for _, divergence in found]


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
