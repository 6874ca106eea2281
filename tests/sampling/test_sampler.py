"""Draws against exact distributions; truncated supports against sorted NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from caspo_jax.sampling.sampler import (
    BLOCK,
    NARROW_BLOCK,
    NARROW_BLOCKS,
    TOP_P_CANDIDATES,
    SampleKnobs,
    Sampler,
    _largest,
    inverse_cdf,
    sample,
    top_p_floor,
    weight_floor,
)


def assert_exact_floor(weights, top_p):
    """Each row's floor is one of its weights: those from it on reach `top_p` of the mass, those above it do not."""
    floor = np.asarray(jax.jit(top_p_floor)(jnp.asarray(weights), jnp.float32(top_p)))
    for row, value in zip(weights, floor, strict=True):
        mass = row.astype(np.float64)
        assert value in row
        assert mass[row >= value].sum() >= top_p * mass.sum() * (1 - 1e-6)
        assert mass[row > value].sum() < top_p * mass.sum() * (1 + 1e-6)


def knobs(temperature=1.0, top_p=1.0, min_p=0.0):
    return SampleKnobs(*(jnp.float32(x) for x in (temperature, top_p, min_p)))


def kept(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The filters one after the other on sorted probabilities, in float64."""
    p = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    keep = np.ones(len(p), bool)
    if 0 < top_k < len(p):
        keep &= p >= np.sort(p)[-top_k]
    if top_p < 1:
        order = np.argsort(-np.where(keep, p, 0.0), kind="stable")
        mass = np.cumsum(np.where(keep, p, 0.0)[order])
        border = order[np.argmax(mass >= top_p * mass[-1])]
        keep &= p >= p[border]
    return keep & (p >= min_p)


FILTERS = [
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 7, "top_p": 0.8},
    {"top_p": 0.95, "min_p": 0.05, "temperature": 1.7},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "temperature": 0.6},
]


@pytest.mark.parametrize("vocab", [23, 700])
@pytest.mark.parametrize("options", FILTERS)
def test_truncated_support_is_exact(options, vocab):
    logits = np.random.default_rng(0).normal(size=(64, vocab)).astype(np.float32) * 2
    sampler = Sampler(
        top_k=options.get("top_k", 0), top_p=options.get("top_p", 1) < 1, min_p=options.get("min_p", 0) > 0
    )
    k = knobs(**{n: v for n, v in options.items() if n != "top_k"})

    @jax.jit
    def keeps(logits):
        weights = jnp.exp((logits - logits.max(-1, keepdims=True)) / k.temperature)
        return weights >= weight_floor(sampler, k, weights)[:, None]

    got = np.asarray(keeps(logits))
    for row, mask in zip(logits, got, strict=True):
        np.testing.assert_array_equal(mask, kept(row, **options))


def test_top_p_searches_beyond_its_candidates():
    flat = np.random.default_rng(1).uniform(0.9, 1.0, (4, 40 * TOP_P_CANDIDATES)).astype(np.float32)
    assert_exact_floor(flat, 0.5)


@pytest.mark.parametrize("scale, top_p", [(0.3, 0.9), (1.0, 0.5), (3.0, 0.999), (3.0, 0.3)])
def test_top_p_is_exact_on_flat_and_peaked_rows(scale, top_p):
    """Rows that are settled after different numbers of halvings, among them one of ties and one with zeros."""
    logits = np.random.default_rng(9).normal(size=(6, 20 * TOP_P_CANDIDATES)).astype(np.float32) * scale
    logits[1] = np.round(logits[1])
    logits[2, 100:] = -np.inf
    logits[3] = 0.0
    weights = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float32)
    assert_exact_floor(weights, top_p)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_largest_of_a_large_vocabulary_are_those_of_a_sort(k):
    rng = np.random.default_rng(11)
    weights = rng.uniform(size=(6, 2 * 20 * NARROW_BLOCK + 5)).astype(np.float32)
    weights[1] = np.sort(weights[1])
    weights[2] = np.round(weights[2], 1)
    weights[3, 2:] = 0
    weights[4, :-2] = 0
    got = np.asarray(jax.jit(_largest, static_argnums=1)(jnp.asarray(weights), k))
    np.testing.assert_array_equal(got, -np.sort(-weights, axis=-1)[:, :k])


@pytest.mark.parametrize("scale, top_p", [(0.3, 0.9), (1.0, 0.99), (3.0, 0.9)])
@pytest.mark.parametrize("tied", [False, True])
def test_top_p_is_exact_where_the_search_narrows_to_blocks(scale, top_p, tied):
    """And where it cannot, because a row of ties has the border in every block."""
    vocab = 2 * NARROW_BLOCKS * NARROW_BLOCK + 37
    logits = np.random.default_rng(10).normal(size=(5, vocab)).astype(np.float32) * scale
    logits[1, 3000:] = -np.inf
    logits[2, :] = np.sort(logits[2])  # the border is in few blocks
    if tied:
        logits[3] = np.round(logits[3] / scale)
        logits[4] = 0.0
    weights = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float32)
    assert_exact_floor(weights, top_p)


def test_ties_at_the_border_are_kept():
    weights = jnp.asarray([[1.0, 0.5, 0.5, 0.5, 0.1]])
    assert float(weight_floor(Sampler(top_k=2), knobs(), weights)[0]) == 0.5
    assert float(top_p_floor(weights, jnp.float32(0.5))[0]) == 0.5


@pytest.mark.parametrize("vocab", [11, 2 * BLOCK + 37])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_k": 6}, {"top_p": 0.8, "min_p": 0.03}])
def test_draws_follow_the_truncated_distribution(options, vocab):
    rows = 10_000
    logits = np.random.default_rng(3).normal(size=vocab).astype(np.float32)
    sampler = Sampler(
        top_k=options.get("top_k", 0), top_p=options.get("top_p", 1) < 1, min_p=options.get("min_p", 0) > 0
    )
    k = knobs(**{n: v for n, v in options.items() if n != "top_k"})
    uniform = jax.random.uniform(jax.random.key(5), (rows,))
    draw = jax.jit(lambda x, u: sample(sampler, k, jnp.broadcast_to(x, (rows, vocab)), u))
    counts = np.bincount(np.asarray(draw(logits, uniform)), minlength=vocab)
    p = np.exp(logits.astype(np.float64) / options.get("temperature", 1.0)) * kept(logits, **options)
    p /= p.sum()
    assert (counts[p == 0] == 0).all()
    common = p * rows >= 5
    observed, expected = counts[common], p[common] * rows
    rest = (counts[~common].sum(), rows - expected.sum())
    if rest[1] >= 5:
        observed, expected = np.append(observed, rest[0]), np.append(expected, rest[1])
    expected *= observed.sum() / expected.sum()
    assert len(observed) >= 2
    assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("vocab", [9, 3 * BLOCK])
def test_inverse_cdf_never_draws_weight_zero(vocab):
    weights = np.random.default_rng(4).uniform(size=(500, vocab)).astype(np.float32)
    weights[:, ::2] = 0
    weights[:, -3:] = 0
    uniform = np.concatenate([np.zeros(250), np.full(250, 1 - 2**-24)]).astype(np.float32)
    token = np.asarray(jax.jit(inverse_cdf)(jnp.asarray(weights), jnp.asarray(uniform)))
    assert (weights[np.arange(500), token] > 0).all()
    assert (token[:250] == 1).all()


def test_inverse_cdf_in_blocks_agrees_with_one_cumulative_sum():
    weights = np.random.default_rng(6).exponential(size=(300, 5 * BLOCK + 3))
    uniform = np.random.default_rng(7).uniform(size=300)
    cumulative = np.cumsum(weights, axis=-1)
    expected = np.sum(cumulative <= (uniform * cumulative[:, -1])[:, None], axis=-1)
    got = np.asarray(
        jax.jit(inverse_cdf)(jnp.asarray(weights, jnp.float32), jnp.asarray(uniform, jnp.float32))
    )
    assert (got == expected).mean() > 0.98  # the rest: rounding beside a border
    assert (np.abs(got - expected) <= 1).all()


def test_greedy_takes_the_first_of_equals():
    logits = jnp.asarray([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]])
    assert sample(Sampler(greedy=True), knobs(), logits, jnp.zeros(2)).tolist() == [1, 0]
    wide = np.random.default_rng(8).integers(0, 3, (50, 301)).astype(np.float32)
    assert (
        sample(Sampler(greedy=True), knobs(), jnp.asarray(wide), jnp.zeros(50)).tolist()
        == wide.argmax(1).tolist()
    )


@pytest.mark.parametrize("sampler", [Sampler(top_k=20), Sampler(top_p=True), Sampler(top_k=20, top_p=True)])
def test_no_filter_sorts_the_vocabulary(sampler):
    shapes = jax.ShapeDtypeStruct((4, 32000), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)
    draw = jax.jit(lambda logits, uniform: sample(sampler, knobs(0.7, 0.9), logits, uniform))
    assert " sort(" not in draw.lower(*shapes).compile().as_text()
