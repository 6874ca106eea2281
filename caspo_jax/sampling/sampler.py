"""Logits -> tokens: one uniform a row, inverted through the truncated distribution, no sort of the vocabulary."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.sampling.config import SampleConfig

BLOCK = 256  # the inverse CDF looks at sums of so many tokens first
TOP_P_CANDIDATES = 64  # top-p looks at so many most probable tokens before it searches all
ONE = 0x3F800000  # bits of 1.0
HALVINGS = 7  # of top-p's search, between two looks whether it is over
NARROW_BLOCK = 64  # tokens of the blocks that searches for large weights narrow down to
NARROW_BLOCKS = 64  # so many at most in top-p's search


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


def sample(sampler: Sampler, knobs: SampleKnobs, logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws one token a row.

    With weights w_v = exp((x_v - max x) / temperature), the filters keep w_v >= w_min, where w_min is the largest of:
    the top_k-th weight; the top-p border among what top-k kept; min_p (the largest weight is 1). The token is the
    first whose cumulative kept weight exceeds uniform * total.

    Args:
      sampler: which filters run.
      knobs: their numbers.
      logits: [R, V] f32.
      uniform: [R] f32 in [0, 1).

    Returns:
      [R] int32. Greedy ties go to the lower id.
    """
    if sampler.greedy:
        return _first_largest(logits)
    scale = 1.0 / knobs.temperature
    weights = jnp.exp((logits - jnp.max(logits, axis=-1, keepdims=True)) * scale)
    floor = weight_floor(sampler, knobs, weights)
    if floor is not None:
        weights = jnp.where(weights >= floor[:, None], weights, 0.0)
    return inverse_cdf(weights, uniform)


def weight_floor(sampler: Sampler, knobs: SampleKnobs, weights: jax.Array) -> jax.Array | None:
    """[R] the smallest weight that the filters keep, None without a filter; weights [R, V] in [0, 1], maximum 1."""
    vocab = weights.shape[-1]
    floor = None
    if 0 < sampler.top_k < vocab:
        floor = _largest(weights, sampler.top_k)[:, -1]
    if sampler.top_p:
        kept = weights if floor is None else jnp.where(weights >= floor[:, None], weights, 0.0)
        border = top_p_floor(kept, knobs.top_p)
        floor = border if floor is None else jnp.maximum(floor, border)
    if sampler.min_p:
        floor = jnp.maximum(0.0 if floor is None else floor, knobs.min_p)
        floor = jnp.broadcast_to(floor, weights.shape[:1])
    return floor


def _largest(weights: jax.Array, k: int) -> jax.Array:
    """[R, k] the k largest of each row, descending.

    They are in the k blocks with the largest maxima: of a large vocabulary only the maxima and those blocks are ordered,
    which takes 0.11 instead of 0.34 ms on a CPU for k 20, 0.37 instead of 0.49 ms for k 64 (8 rows, V 32,768).
    """
    if weights.shape[-1] > 2 * k * NARROW_BLOCK:
        blocked = _in_blocks(weights)
        weights = _take_blocks(blocked, jnp.max(blocked, axis=-1), k)
    return _top(weights, k)[0]


def _top(x: jax.Array, k: int) -> list[jax.Array]:
    # Without the barrier later slices merge into it, and XLA CPU then sorts the whole vocabulary.
    return lax.optimization_barrier(lax.top_k(x, k))


def _in_blocks(weights: jax.Array) -> jax.Array:
    """[R, V] -> [R, blocks, NARROW_BLOCK], zeros at the end."""
    blocks = -(-weights.shape[-1] // NARROW_BLOCK)
    missing = blocks * NARROW_BLOCK - weights.shape[-1]
    return jnp.pad(weights, [(0, 0), (0, missing)]).reshape(len(weights), blocks, NARROW_BLOCK)


def _take_blocks(blocked: jax.Array, score: jax.Array, count: int) -> jax.Array:
    """[R, count * NARROW_BLOCK] the blocks of each row with the largest scores [R, blocks]."""
    chosen = _top(score, count)[1]
    return jnp.take_along_axis(blocked, chosen[:, :, None], axis=1).reshape(len(blocked), -1)


def top_p_floor(weights: jax.Array, top_p: jax.Array) -> jax.Array:
    """[R] the largest w with sum of the weights >= w at least top_p of all; weights [R, V] in [0, 1].

    Found among the most probable candidates where their mass suffices. A row where it does not, or where it plainly cannot,
    sends all rows through a search.
    """
    target = top_p * jnp.sum(weights, axis=-1)
    count = min(TOP_P_CANDIDATES, weights.shape[-1])

    def candidates(_) -> tuple[jax.Array, jax.Array]:
        head = _largest(weights, count)
        enough = jnp.cumsum(head, axis=-1) >= target[:, None]
        border = jnp.take_along_axis(head, jnp.argmax(enough, axis=-1)[:, None], axis=-1)[:, 0]
        return border, ~jnp.any(enough, axis=-1)

    if weights.shape[-1] <= TOP_P_CANDIDATES:
        border, short = candidates(None)
        # Rounding alone can leave the total short of the target: keep everything then.
        return jnp.where(short, 0.0, border)
    hopeless = jnp.any(target > count)  # no weight is above 1
    nothing = (jnp.zeros_like(target), jnp.ones(target.shape, bool))
    border, short = lax.cond(hopeless, lambda _: nothing, candidates, None)
    with jax.named_scope("top_p_search"):
        found = lax.cond(jnp.any(short), lambda _: _mass_floor(weights, target), lambda _: border, None)
    return jnp.where(short, found, border)


def _mass_floor(weights: jax.Array, target: jax.Array) -> jax.Array:
    """[R] the largest w with sum of the weights >= w at least `target` [R], by halving a range of float bit patterns.

    Bit patterns of non-negative floats are ordered as the floats are, so 31 halvings are exact; some 20 do for most rows.
    When about as many halvings were done as make `NARROW_BLOCKS` weights of a vocabulary, few are left between the
    bounds, and the rest looks only at the blocks of tokens that hold them: an eighth of a vocabulary of 32,768, where a
    CPU takes 1.2 instead of 1.8 ms. Rows with weights in too many blocks (ties) send all rows through the search of all.
    """
    # Where rounding leaves the total short of the target, the smallest weight: everything is kept.
    low = lax.bitcast_convert_type(jnp.min(weights, axis=-1), jnp.int32)
    bounds = (low, jnp.full_like(low, ONE + 1))
    above = jnp.zeros_like(target)
    vocab = weights.shape[-1]
    if vocab <= NARROW_BLOCKS * NARROW_BLOCK:
        return _halved_floor(weights, above, target, bounds)
    halve = functools.partial(_halve, weights, above, target)
    wide = (vocab // NARROW_BLOCKS).bit_length() + 2  # weights are not spread evenly over the range: two more
    bounds = lax.fori_loop(0, wide, lambda _, bounds: halve(bounds), bounds)
    low_weight, high_weight = (_as_floats(bound)[:, None] for bound in bounds)
    between = jnp.where((weights >= low_weight) & (weights < high_weight), weights, 0.0)
    blocked = _in_blocks(between)
    largest = jnp.max(blocked, axis=-1)  # 0 where a block holds none, or none but zeros

    def narrow(_) -> jax.Array:
        few = _take_blocks(blocked, largest, NARROW_BLOCKS)
        floor = _halved_floor(few, _mass(weights, weights >= high_weight), target, bounds)
        return jnp.minimum(floor, jnp.max(few, axis=-1))  # sums in another order may lead past the last one

    fits = jnp.all(jnp.sum(largest > 0, axis=-1) <= NARROW_BLOCKS)
    return lax.cond(fits, narrow, lambda _: _halved_floor(weights, above, target, bounds), None)


def _halved_floor(
    weights: jax.Array, above: jax.Array, target: jax.Array, bounds: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """`_mass_floor` by halving `bounds`, where `above` [R] is what tokens that are not in `weights` add to every sum.

    Over as soon as one weight is left between the bounds; more precisely, when the weights above the smallest one kept
    do not reach the target, that one is the answer.
    """
    halve = functools.partial(_halve, weights, above, target)

    def body(carry: tuple) -> tuple:
        low, high = lax.fori_loop(0, HALVINGS, lambda _, bounds: halve(bounds), carry[:2], unroll=True)
        least = jnp.min(jnp.where(weights >= _as_floats(low)[:, None], weights, jnp.inf), axis=-1)
        found = (above + _mass(weights, weights > least[:, None]) < target) | (high - low <= 1)
        return low, high, jnp.where(found, least, 0.0), found

    start = (*bounds, jnp.zeros_like(target), jnp.zeros(target.shape, bool))
    return lax.while_loop(lambda carry: ~jnp.all(carry[3]), body, start)[2]


def _halve(
    weights: jax.Array, above: jax.Array, target: jax.Array, bounds: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Half the range of bit patterns [R]: `low` keeps the target's mass, `high` does not."""
    low, high = bounds
    middle = low + (high - low) // 2
    enough = above + _mass(weights, weights >= _as_floats(middle)[:, None]) >= target
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)


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
    rows, vocab = weights.shape
    if vocab <= 2 * BLOCK:
        return _first_above(weights, uniform * jnp.sum(weights, axis=-1))
    blocks = -(-vocab // BLOCK)
    blocked = jnp.pad(weights, [(0, 0), (0, blocks * BLOCK - vocab)]).reshape(rows, blocks, BLOCK)
    sums = jnp.sum(blocked, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    target = uniform * ends[:, -1]
    block = _first_above(sums, target)
    start = jnp.where(
        block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], axis=-1)[:, 0], 0.0
    )
    inside = jnp.take_along_axis(blocked, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + _first_above(inside, target - start)


def _first_above(weights: jax.Array, target: jax.Array) -> jax.Array:
    """[R] first index with cumulative weight > target; rounding past the end gives the last positive weight."""
    size = weights.shape[-1]
    index = jnp.sum(jnp.cumsum(weights, axis=-1) <= target[:, None], axis=-1)
    last = size - 1 - jnp.argmax(jnp.flip(weights > 0, axis=-1), axis=-1)
    return jnp.minimum(index, last).astype(jnp.int32)
