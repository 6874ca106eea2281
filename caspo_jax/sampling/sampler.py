"""Logits -> tokens: uniforms inverted through the cumulative weights, no sort of the vocabulary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.sampling.config import SampleConfig

Draw = Callable[[jax.Array | int], jax.Array]  # attempt, counted from 0 -> [R] uniforms in [0, 1)

TOP_K_BLOCK = 64  # the largest weights are looked for in blocks of so many
TOP_P_ATTEMPTS = 8  # top-p draws so often before it searches the border
HALVINGS = 7  # of that search, between two looks whether it is over
ONE = 0x3F800000  # bits of 1.0


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What is compiled: which filters run. Their numbers are dynamic, save top_k, which is a shape."""

    greedy: bool = False
    top_k: int = 0
    top_p: bool = False
    min_p: bool = False

    @classmethod
    def of(cls, config: SampleConfig) -> Sampler:
        """The filters that the config switches on."""
        return cls(config.temperature == 0, config.top_k, config.top_p < 1, config.min_p > 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SampleKnobs:
    """The numbers of the filters; changing them compiles nothing."""

    temperature: Any  # scalar f32, > 0
    top_p: Any  # scalar f32
    min_p: Any  # scalar f32

    @classmethod
    def of(cls, config: SampleConfig) -> SampleKnobs:
        """The numbers of a config."""
        return cls(
            *(jnp.asarray(x, jnp.float32) for x in (config.temperature or 1.0, config.top_p, config.min_p))
        )


def sample(sampler: Sampler, knobs: SampleKnobs, logits: jax.Array, draw: Draw) -> jax.Array:
    """Draws one token a row.

    With weights w_v = exp((x_v - max x) / temperature), the filters keep w_v >= w_min, where w_min is the largest of:
    the top_k-th weight; the top-p border among what top-k kept; min_p (the largest weight is 1). Without top-p the token
    is the first whose cumulative kept weight exceeds uniform * total; for top-p see `_draw_top_p`.

    Args:
      sampler: which filters run.
      knobs: their numbers.
      logits: [R, V] f32.
      draw: attempt, a scalar int32 from 0 on -> [R] f32 uniforms in [0, 1), independent between attempts.

    Returns:
      [R] int32. Greedy ties go to the lower id.
    """
    if sampler.greedy:
        return _first_largest(logits)
    scale = 1.0 / knobs.temperature
    weights = jnp.exp((logits - jnp.max(logits, axis=-1, keepdims=True)) * scale)
    if 0 < sampler.top_k < weights.shape[-1]:
        weights = _at_least(weights, _largest(weights, sampler.top_k)[:, -1])
    probable = _at_least(weights, knobs.min_p) if sampler.min_p else weights
    if sampler.top_p:
        return _draw_top_p(weights, probable, knobs.top_p, draw)
    return inverse_cdf(probable, draw(0))


def _draw_top_p(weights: jax.Array, probable: jax.Array, top_p: jax.Array, draw: Draw) -> jax.Array:
    """[R] draws from the tokens in `probable` [R, V] that are in the nucleus of `weights` [R, V], by rejection.

    Whether one given token is in the nucleus takes one sum; the border takes a search. So tokens are drawn from all of
    `probable` until each row has one in the nucleus, which is every draw with a chance of about `top_p` or more. What is
    accepted is distributed as if the rest had been cut off first. Rows that `TOP_P_ATTEMPTS` draws leave without a token
    get their border searched.
    """
    target = top_p * jnp.sum(weights, axis=-1)
    blocks = _cdf_blocks(probable)

    def attempt(carry: tuple) -> tuple:
        count, token, found = carry
        drawn = _inverted(*blocks, draw(count))
        return count + 1, jnp.where(found, token, drawn), found | in_nucleus(weights, target, drawn)

    rows = len(weights)
    start = (jnp.int32(0), jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool))
    with jax.named_scope("top_p_attempts"):
        _, token, found = lax.while_loop(
            lambda carry: (carry[0] < TOP_P_ATTEMPTS) & ~jnp.all(carry[2]), attempt, start
        )

    def searched(_) -> jax.Array:
        return inverse_cdf(_at_least(probable, top_p_floor(weights, target)), draw(TOP_P_ATTEMPTS))

    with jax.named_scope("top_p_search"):
        return jnp.where(found, token, lax.cond(jnp.all(found), lambda _: token, searched, None))


def in_nucleus(weights: jax.Array, target: jax.Array, token: jax.Array) -> jax.Array:
    """[R] whether the weights above that of token [R] sum to less than `target` [R]; weights [R, V]."""
    own = jnp.take_along_axis(weights, token[:, None], axis=-1)
    return _mass(weights, weights > own) < target


def _at_least(weights: jax.Array, floor: jax.Array) -> jax.Array:
    """Weights [R, V], zero where below the floor, a scalar or [R]."""
    return jnp.where(weights >= jnp.reshape(floor, (-1, 1)), weights, 0.0)


def _largest(weights: jax.Array, k: int) -> jax.Array:
    """[R, k] the k largest of each row, descending.

    They are in the k blocks with the largest maxima: of a large vocabulary only the maxima and those blocks are ordered,
    which takes 0.11 instead of 0.34 ms on a CPU for k 20, 0.37 instead of 0.49 ms for k 64 (8 rows, V 32,768).
    """
    if weights.shape[-1] > 2 * k * TOP_K_BLOCK:
        blocked = _in_blocks(weights, TOP_K_BLOCK)
        chosen = _top(jnp.max(blocked, axis=-1), k)[1]
        weights = jnp.take_along_axis(blocked, chosen[:, :, None], axis=1).reshape(len(weights), -1)
    return _top(weights, k)[0]


def _top(x: jax.Array, k: int) -> list[jax.Array]:
    # Without barriers later slices merge into it, and XLA CPU then sorts the whole vocabulary. One round both results ends
    # the process where XLA splits the rows over CPU devices (its TopkDecomposer, jax 0.10 to 0.12).
    return [lax.optimization_barrier(found) for found in lax.top_k(x, k)]


def _in_blocks(weights: jax.Array, size: int) -> jax.Array:
    """[R, V] -> [R, blocks, size], zeros at the end."""
    blocks = math.ceil(weights.shape[-1] / size)
    missing = blocks * size - weights.shape[-1]
    return jnp.pad(weights, [(0, 0), (0, missing)]).reshape(len(weights), blocks, size)


def top_p_floor(weights: jax.Array, target: jax.Array) -> jax.Array:
    """[R] the largest w with sum of the weights >= w at least `target` [R]; weights [R, V] in [0, 1].

    By halving a range of float bit patterns: those of non-negative floats are ordered as the floats are, so 31 halvings
    are exact. It is over as soon as one weight is left between the bounds; more precisely, when the weights above the
    smallest one kept do not reach the target, that one is the answer. Some 20 halvings do for most rows.
    """

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # `low` keeps the target's mass, `high` does not
        middle = low + (high - low) // 2
        enough = _mass(weights, weights >= _as_floats(middle)[:, None]) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    def body(carry: tuple) -> tuple:
        low, high = lax.fori_loop(0, HALVINGS, lambda _, bounds: halve(bounds), carry[:2], unroll=True)
        least = jnp.min(jnp.where(weights >= _as_floats(low)[:, None], weights, jnp.inf), axis=-1)
        found = (_mass(weights, weights > least[:, None]) < target) | (high - low <= 1)
        return low, high, jnp.where(found, least, 0.0), found

    # Where rounding leaves the total short of the target, the smallest weight: everything is kept.
    low = lax.bitcast_convert_type(jnp.min(weights, axis=-1), jnp.int32)
    start = (low, jnp.full_like(low, ONE + 1), jnp.zeros_like(target), jnp.zeros(target.shape, bool))
    return lax.while_loop(lambda carry: ~jnp.all(carry[3]), body, start)[2]


def _mass(weights: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(kept, weights, 0.0), axis=-1)


def _as_floats(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def _first_largest(x: jax.Array) -> jax.Array:
    """[R] argmax; two plain reductions, which a CPU does eight times faster than its argmax."""
    size = x.shape[-1]
    largest = x == jnp.max(x, axis=-1, keepdims=True)
    first = jnp.min(jnp.where(largest, lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1), size), axis=-1)
    return jnp.minimum(first, size - 1)  # a row with a NaN has no largest


def inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """[R] the first index whose cumulative weight exceeds uniform * total; never one of weight 0.

    Two levels: the block is found by the cumulative block sums, the token inside it, so that a large vocabulary is
    summed once and scanned never.
    """
    return _inverted(*_cdf_blocks(weights), uniform)


def _cdf_blocks(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[R, blocks, tokens of one] and their sums [R, blocks], about as many blocks as tokens in one: short to scan."""
    blocked = _in_blocks(weights, 1 << (weights.shape[-1].bit_length() // 2))
    return blocked, jnp.sum(blocked, axis=-1)


def _inverted(blocked: jax.Array, sums: jax.Array, uniform: jax.Array) -> jax.Array:
    ends = jnp.cumsum(sums, axis=-1)
    target = uniform * ends[:, -1]
    block = _first_above(sums, target)
    start = jnp.where(
        block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], axis=-1)[:, 0], 0.0
    )
    inside = jnp.take_along_axis(blocked, block[:, None, None], axis=1)[:, 0]
    return block * blocked.shape[-1] + _first_above(inside, target - start)


def _first_above(weights: jax.Array, target: jax.Array) -> jax.Array:
    """[R] first index with cumulative weight > target; where its weight is 0, the next positive one, at the end the last.

    Rounding may leave the target past the end, and cumulative sums, made in tiles, may fall by their last bits.
    """
    size = weights.shape[-1]
    index = jnp.sum(jnp.cumsum(weights, axis=-1) <= target[:, None], axis=-1, dtype=jnp.int32)
    place = lax.broadcasted_iota(jnp.int32, weights.shape, weights.ndim - 1)
    # Forwards from the index, then backwards.
    order = jnp.where(place >= index[:, None], place, 2 * size - place)
    best = jnp.min(jnp.where(weights > 0, order, 2 * size), axis=-1)
    return jnp.where(best < size, best, 2 * size - best)
