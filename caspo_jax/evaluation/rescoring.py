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
from caspo_jax.padding import groups, padded_rows, width
from caspo_jax.sharding import batch_ways, mesh_of, to_host
from caspo_jax.types import Trace

BUCKET = 32  # the least step of the numbers of tokens of rows and of outputs
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

_Batch = tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[int]]


@functools.partial(jax.jit, static_argnames=("graphdef", "fields"))
def _statistics(
    graphdef: Any,
    params: Any,
    ids: jax.Array,
    mask: jax.Array,
    places: jax.Array,
    fields: tuple[str, ...],
    reference: jax.Array | None = None,
) -> tuple[TokenStats, jax.Array | None]:
    """Of the tokens at `places` [R, N] of rows ids [R, T]: what the states before them say, [R, N]."""
    model = nnx.merge(graphdef, params)
    hidden = jnp.take_along_axis(model.hidden_states(ids, mask=mask), places[..., None] - 1, axis=1)
    read = hidden, model.unembedding(), jnp.take_along_axis(ids, places, axis=1)
    if reference is None:
        return hidden_token_stats(*read, fields, mesh=mesh_of(model)), None
    return hidden_stats_and_kl(*read, reference, fields, mesh=mesh_of(model))


@functools.partial(jax.jit, static_argnames="graphdef")
def _after(graphdef: Any, params: Any, token: jax.Array) -> jax.Array:
    """[V] log-probs of what follows one token alone."""
    return jax.nn.log_softmax(nnx.merge(graphdef, params)(token[None, None])[0, 0])


def token_statistics(
    model: Any,
    traces: Sequence[Trace],
    fields: tuple[str, ...] = ALL_FIELDS,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], Any] | None = None,
) -> list[TokenStats]:
    """TokenStats [T] (host, float64) of the emitted tokens of each trace; T tokens, one entry each.

    Equal to what the sampler saw up to float error: the distribution at temperature 1 that predicted the token.

    Args:
      model: the Decoder that wrote the traces.
      traces: with prompt_ids and token_ids, neither empty.
      fields: TokenStats fields to compute.
      batch_size: rows on the device at once, of long ones fewer.
      progress: called with (traces done, traces in all).
    """
    graphdef, params = nnx.split(model)
    batches = _batches(traces, batch_size, batch_ways(mesh_of(model)))
    found = _each(
        traces, batches, lambda *batch: _statistics(graphdef, params, *batch, tuple(fields)), progress
    )
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
      batch_size: rows on the device at once, of long ones fewer.
    """
    graphdef, params = nnx.split(model)
    reference = _after(graphdef, params, np.int32(context))
    batches = _batches(traces, batch_size, batch_ways(mesh_of(model)))
    found = _each(
        traces, batches, lambda *batch: _statistics(graphdef, params, *batch, tuple(fields), reference)
    )
    return [stats for stats, _ in found], [np.maximum(divergence, 0.0) for _, divergence in found]


def _each(
    traces: Sequence[Trace],
    batches: Iterator[_Batch],
    read: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    progress: Callable[[int, int], Any] | None = None,
) -> list[Any]:
    """What `read`, (ids [R, T], mask [R, T], places [R, N]) -> tree of [R, N], says of each trace's tokens.

    Host arrays [tokens of the trace], float64.
    """
    found: dict[int, Any] = {}
    for ids, mask, places, part in batches:
        arrays = to_host(read(ids, mask, places))
        for row, i in enumerate(part):
            at = row, slice(len(traces[i].token_ids))
            found[i] = jax.tree.map(lambda x, at=at: np.asarray(x[at], np.float64), arrays)
        if progress is not None:
            progress(len(found), len(traces))
    return [found[i] for i in range(len(traces))]


def _length(trace: Trace) -> int:
    return len(trace.prompt_ids) + len(trace.token_ids)


def _batches(traces: Sequence[Trace], batch_size: int, ways: int) -> Iterator[_Batch]:
    """(token ids [R, T], mask [R, T], places of the outputs' tokens [R, N], which traces).

    Those of one length go together; R and N are the same for all batches of one T.
    """
    parts = groups([_length(trace) for trace in traces], BUCKET, batch_size, ways)
    room: dict[int, int] = {}
    for columns, _, part in parts:
        room[columns] = max(room.get(columns, 0), *(width(len(traces[i].token_ids), BUCKET) for i in part))
    for columns, most, part in parts:
        rows = most if len(parts) > 1 else len(part)
        whole = [(*traces[i].prompt_ids, *traces[i].token_ids) for i in part]
        ids, mask = padded_rows(whole, columns, rows)
        places = np.ones((rows, min(room[columns], columns)), np.int32)
        for row, i in enumerate(part):
            tokens = len(traces[i].token_ids)
            places[row, :tokens] = len(traces[i].prompt_ids) + np.arange(tokens)
        yield ids, mask, places, part
