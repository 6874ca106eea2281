"""Confidence from hidden states: the `hidden` estimator of faithful confidence (RCC)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from caspo_jax.errors import UserError
from caspo_jax.models.precision import product

# An attention weight so little below mu counts as mu: with two identical tokens and mu = 1/2 it is mu but for
# rounding. In float64 on the host, in float32 on the device.
_TIE, _TIE_DEVICE = 1e-12, 1e-6


def rcc(
    hidden: Any,
    prompt_length: int,
    step_lengths: Sequence[int],
    top1_prob: Any,
    mu: float = 0.5,
    delta: float = 0.4,
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Step and running confidence of one trace from its last-layer hidden states.

    With E_i the states of step i and E_{-1} those of the prompt: A = softmax_rows(E_{i-1} E_i^T / sqrt(E)),
    W = 1[A >= mu], r = W c_i with c_i the top-1 probabilities of step i's tokens, q_i = mean of the
    non-zero r (0 if none); p_0 = q_0, p_i = delta q_i + (1 - delta) p_{i-1}. The trace's score is p[-1].

    Args:
      hidden: [P + R, E] states of the last layer, prompt then response. As published they are taken
        *before* the final norm (`hidden_states(..., final_norm=False)`); the estimator depends on their scale.
      prompt_length: P.
      step_lengths: [S] tokens of each step, in order, summing to R.
      top1_prob: [R] probability of the most likely token at each response token (not the sampled one's).
      mu: threshold on the attention weights, in [0, 1].
      delta: weight of the newest step in the running confidence, in [0, 1].

    Returns:
      (q, p), NumPy float64 [S] each; (None, None) if the prompt is empty, for q_0 is then undefined.

    Raises:
      UserError: lengths that do not add up, an empty step, mu or delta outside [0, 1].

    Source: arXiv 2606.03969. Blocks are step by step: no T x T matrix is built.

    >>> hidden = np.eye(4)[[0, 1, 1, 2]] * 8.0  # a prompt of two tokens, two steps of one
    >>> q, p = rcc(hidden, 2, [1, 1], np.array([0.9, 0.5]))
    >>> q.round(2).tolist(), p.round(2).tolist()  # p_1 = 0.4 q_1 + 0.6 p_0
    ([0.9, 0.5], [0.9, 0.74])
    """
    check_rcc_settings(mu, delta)
    states = np.asarray(hidden, dtype=np.float64)
    top1 = np.asarray(top1_prob, dtype=np.float64)
    lengths = [int(n) for n in step_lengths]
    _check(states, prompt_length, lengths, top1)
    if prompt_length == 0:
        return None, None
    ends = np.cumsum([prompt_length, *lengths])
    scale = 1.0 / np.sqrt(states.shape[1])
    q = np.zeros(len(lengths))
    p = np.zeros(len(lengths))
    previous = states[:prompt_length]
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        current = states[start:end]
        scores = previous @ current.T * scale
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        r = (weights >= mu - _TIE) @ top1[start - prompt_length : end - prompt_length]
        q[i] = r[r != 0].mean() if np.any(r != 0) else 0.0
        p[i] = q[i] if i == 0 else delta * q[i] + (1.0 - delta) * p[i - 1]
        previous = current
    return q, p


def check_rcc_settings(mu: jax.Array | float, delta: jax.Array | float) -> None:
    """Refuses mu or delta outside [0, 1]; traced values are not checked.

    Raises:
      UserError: mu or delta outside [0, 1], or NaN.
    """
    for name, value in (("mu", mu), ("delta", delta)):
        if not isinstance(value, jax.core.Tracer) and not 0.0 <= value <= 1.0:
            raise UserError(f"rcc: {name} = {value}: give a number in [0, 1]")


def _check(states: np.ndarray, prompt_length: int, lengths: list[int], top1: np.ndarray) -> None:
    if states.ndim != 2 or prompt_length < 0 or prompt_length > len(states):
        raise UserError(
            f"rcc: hidden of shape {states.shape} and prompt_length {prompt_length}: expected [P + R, E]"
        )
    if any(n < 1 for n in lengths):
        raise UserError(f"rcc: step_lengths {lengths} contain an empty step: remove it")
    response = len(states) - prompt_length
    if sum(lengths) != response or top1.shape != (response,):
        raise UserError(
            f"rcc: hidden has {response} response tokens, step_lengths sum to {sum(lengths)} and top1_prob has "
            f"shape {top1.shape}; all three must agree"
        )


def rcc_batch(
    hidden: jax.Array,
    top1_prob: jax.Array,
    bounds: jax.Array,
    mu: jax.Array | float = 0.5,
    delta: jax.Array | float = 0.4,
    *,
    block: int = 128,
) -> tuple[jax.Array, jax.Array]:
    """`rcc` of many traces at once, on the device, in float32.

    Neighbouring steps are compared in tiles of `block` x `block` tokens, with a running maximum and sum
    for the softmax: memory is B block (block + E), whatever the length of steps and traces.

    Args:
      hidden: [B, T, E] last-layer states, prompt then response, padding on the right.
      top1_prob: [B, T] probability of the most likely token at each token; those of the prompt are not read.
      bounds: [B, S + 2] int32, ascending: the prompt is tokens [bounds[0], bounds[1]), step i is
        [bounds[i + 1], bounds[i + 2]). Steps that a row does not have are empty, at its end.
      mu: threshold on the attention weights, in [0, 1].
      delta: weight of the newest step in the running confidence, in [0, 1].
      block: tokens of a tile's side.

    Returns:
      (q, p), [B, S] float32 each; NaN where a row has no such step, and everywhere in a row whose prompt is
      empty.

    Raises:
      UserError: mu or delta outside [0, 1].

    Source: arXiv 2606.03969.
    """
    check_rcc_settings(mu, delta)
    return _rcc_batch(hidden, top1_prob, bounds, mu, delta, block)


@functools.partial(jax.jit, static_argnames="block")
def _rcc_batch(
    hidden: jax.Array,
    top1_prob: jax.Array,
    bounds: jax.Array,
    mu: jax.Array | float,
    delta: jax.Array | float,
    block: int,
) -> tuple[jax.Array, jax.Array]:
    batch, length, width = hidden.shape
    states = hidden.astype(jnp.float32)
    side = jnp.arange(block)

    def take(start: jax.Array, end: jax.Array, tile: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One tile of the tokens [start, end) of each row: states [B, block, E], which exist, their indices."""
        index = start[:, None] + tile * block + side
        inside = index < end[:, None]
        index = jnp.minimum(index, length - 1)
        return jnp.take_along_axis(states, index[..., None], axis=1), inside, index

    def tiles(start: jax.Array, end: jax.Array) -> jax.Array:
        """How many tiles cover [start, end) in every row."""
        return jnp.max((end - start + block - 1) // block)

    def step_q(i: jax.Array) -> jax.Array:
        """q [B] of step i: rows of A are tokens of the step before, columns are tokens of step i."""
        before, start, end = bounds[:, i], bounds[:, i + 1], bounds[:, i + 2]

        def scores(queries: jax.Array, tile: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Scores [B, block, block] of queries against a tile of step i (-inf beyond it); the tile's indices."""
            keys, inside, index = take(start, end, tile)
            dots = product("bqe,bke->bqk", queries, keys)
            return jnp.where(inside[:, None], dots / jnp.sqrt(jnp.float32(width)), -jnp.inf), index

        def row_tile(tile: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            """Adds a tile of rows of A to (sum of the non-zero r, how many there are), [B] each."""
            queries, real, _ = take(before, start, tile)

            def normaliser(column: jax.Array, carry: tuple[jax.Array, jax.Array]):
                """The running maximum and sum of the softmax after one more tile of columns."""
                top, total = carry
                found, _ = scores(queries, column)
                higher = jnp.maximum(top, jnp.max(found, axis=-1))
                shift = jnp.where(jnp.isfinite(higher), higher, 0.0)
                rescaled = total * jnp.exp(top - shift)
                return higher, rescaled + jnp.sum(jnp.exp(found - shift[..., None]), axis=-1)

            empty = jnp.full((batch, block), -jnp.inf), jnp.zeros((batch, block))
            top, total = lax.fori_loop(0, tiles(start, end), normaliser, empty)
            top = jnp.where(jnp.isfinite(top), top, 0.0)

            def reach(column: jax.Array, r: jax.Array) -> jax.Array:
                """r of the rows after one more tile of columns: the top-1 probabilities where A reaches mu."""
                found, index = scores(queries, column)
                weights = jnp.exp(found - top[..., None]) / jnp.maximum(total, 1e-37)[..., None]
                hit = jnp.isfinite(found) & (weights >= mu - _TIE_DEVICE)
                confidence = jnp.take_along_axis(top1_prob.astype(jnp.float32), index, axis=1)
                return r + jnp.sum(jnp.where(hit, confidence[:, None], 0.0), axis=-1)

            r = lax.fori_loop(0, tiles(start, end), reach, jnp.zeros((batch, block)))
            counts = real & (r != 0)
            return sums[0] + jnp.sum(jnp.where(counts, r, 0.0), axis=-1), sums[1] + jnp.sum(counts, axis=-1)

        zero = jnp.zeros(batch), jnp.zeros(batch, jnp.int32)
        total, count = lax.fori_loop(0, tiles(before, start), row_tile, zero)
        q = jnp.where(count > 0, total / jnp.maximum(count, 1), 0.0)
        return jnp.where((end > start) & (bounds[:, 1] > bounds[:, 0]), q, jnp.nan)

    steps = bounds.shape[1] - 2
    q = lax.map(step_q, jnp.arange(steps))  # [S, B]

    def running(p: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, q_i = item
        p = jnp.where(i == 0, q_i, delta * q_i + (1.0 - delta) * p)
        return p, p

    _, p = lax.scan(running, jnp.zeros(batch), (jnp.arange(steps), q))
    return q.T, p.T
