"""Draws against exact distributions; truncated supports against sorted NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from caspo_jax.sampling import SampleConfig
from caspo_jax.sampling import sampler as sampler_module
from caspo_jax.sampling.keys import fold_in
from caspo_jax.sampling.keys import uniforms as token_uniforms
from caspo_jax.sampling.sampler import (
    TOP_K_BLOCK,
    TOP_P_ATTEMPTS,
    SampleKnobs,
    Sampler,
    _first_above,
    _inverted,
    _largest,
    in_nucleus,
    inverse_cdf,
    sample,
    top_p_floor,
)


def floor_of(weights, top_p):
    return top_p_floor(weights, top_p * jnp.sum(weights, axis=-1))


def assert_exact_floor(weights, top_p):
    """Each row's floor is one of its weights: those from it on reach `top_p` of the mass, those above it do not."""
    floor = np.asarray(jax.jit(floor_of)(jnp.asarray(weights), jnp.float32(top_p)))
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


def sampler_and_knobs(options):
    config = SampleConfig(**options)
    return Sampler.of(config), SampleKnobs.of(config)


def uniforms(seed, rows):
    return lambda attempt: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), attempt), (rows,))


FILTERS = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 7, "top_p": 0.8},
    {"top_p": 0.95, "min_p": 0.05, "temperature": 1.7},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "temperature": 0.6},
    {"top_p": 0.3, "temperature": 3.0},  # many rows are left without a token by all attempts
]


@pytest.mark.parametrize("options", FILTERS)
def test_truncated_support_is_exact(options):
    """Uniforms at even distances draw every token that is kept, and no other."""
    logits = np.random.default_rng(0).normal(size=(16, 23)).astype(np.float32) * 2
    even = jnp.tile((jnp.arange(8192) + 0.5) / 8192, len(logits))
    rows = jnp.repeat(jnp.asarray(logits), 8192, axis=0)
    sampler, k = sampler_and_knobs(options)
    token = np.asarray(jax.jit(lambda x: sample(sampler, k, x, lambda attempt: even))(rows))
    for row, drawn in zip(logits, token.reshape(len(logits), -1), strict=True):
        likely = np.exp((row - row.max()) / options.get("temperature", 1.0))
        seen = kept(row, **options) & (likely > likely.sum() / 4096)
        assert set(np.flatnonzero(seen)) <= set(drawn.tolist())
        assert set(drawn.tolist()) <= set(np.flatnonzero(kept(row, **options)))


@pytest.mark.parametrize("vocab", [23, 700])
@pytest.mark.parametrize("top_p", [0.05, 0.7, 0.99])
def test_a_token_is_in_the_nucleus_where_sorting_says_so(top_p, vocab):
    rng = np.random.default_rng(0)
    for scale in (0.5, 2.0):
        logits = (rng.normal(size=vocab) * scale).astype(np.float32)
        weights = jnp.broadcast_to(jnp.exp(logits - logits.max()), (vocab, vocab))
        target = top_p * jnp.sum(weights, axis=-1)
        got = jax.jit(in_nucleus)(weights, target, jnp.arange(vocab))
        np.testing.assert_array_equal(got, kept(logits, top_p=top_p))


@pytest.mark.parametrize("scale, top_p", [(0.02, 0.5), (0.3, 0.9), (1.0, 0.5), (3.0, 0.999), (3.0, 0.3)])
def test_top_p_border_is_exact_on_flat_and_peaked_rows(scale, top_p):
    """Rows that are settled after different numbers of halvings, among them some of ties and one with zeros."""
    logits = np.random.default_rng(9).normal(size=(6, 1280)).astype(np.float32) * scale
    logits[1] = np.round(logits[1])
    logits[2, 100:] = -np.inf
    logits[3] = 0.0
    weights = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float32)
    assert_exact_floor(weights, top_p)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_largest_of_a_large_vocabulary_are_those_of_a_sort(k):
    rng = np.random.default_rng(11)
    weights = rng.uniform(size=(6, 2 * 20 * TOP_K_BLOCK + 5)).astype(np.float32)
    weights[1] = np.sort(weights[1])
    weights[2] = np.round(weights[2], 1)
    weights[3, 2:] = 0
    weights[4, :-2] = 0
    got = np.asarray(jax.jit(_largest, static_argnums=1)(jnp.asarray(weights), k))
    np.testing.assert_array_equal(got, -np.sort(-weights, axis=-1)[:, :k])


def test_ties_at_the_border_are_kept():
    weights = jnp.asarray([[1.0, 0.5, 0.5, 0.5, 0.1]])
    assert float(floor_of(weights, jnp.float32(0.5))[0]) == 0.5
    rows = jnp.broadcast_to(jnp.log(weights), (400, 5))
    for sampler in (Sampler(top_k=2), Sampler(top_p=True)):
        token = sample(sampler, knobs(top_p=0.5), rows, uniforms(1, 400))
        assert set(token.tolist()) == {0, 1, 2, 3}


def test_mass_that_just_reaches_top_p_is_enough():
    """Weights and sums that floats hold exactly: the border is where the sum of the weights above equals the target."""
    apart = np.tile([1 / 16, 2.0**-20], 20)[:, None]  # by large steps and by small ones
    weights = (1 - apart * np.random.default_rng(14).integers(0, 16, (40, 12))).astype(np.float32)
    weights[1::2, 0] = 1 / 16  # the search then comes near the border before it is there
    rows, borders = np.array([(row, border) for row in weights for border in np.unique(row)], object).T
    rows, borders = np.stack(rows), borders.astype(np.float32)
    targets = jnp.asarray(np.sum(rows, axis=-1, where=rows >= borders[:, None]))
    inside = jax.jit(jax.vmap(in_nucleus, (None, None, 1), 1))
    token = np.tile(np.arange(12), (len(rows), 1))
    np.testing.assert_array_equal(inside(rows, targets, token), rows >= borders[:, None])
    np.testing.assert_array_equal(jax.jit(top_p_floor)(rows, targets), borders)


def test_rows_whose_border_is_searched_draw_anew(monkeypatch):
    """What the attempts drew fell outside of the nucleus, and says nothing about where inside."""
    monkeypatch.setattr(sampler_module, "TOP_P_ATTEMPTS", 1)
    logits = jnp.log(jnp.asarray([2.0] * 4 + [1.0] * 24))
    sampler, k = sampler_and_knobs({"top_p": 0.2})
    token = sample(sampler, k, jnp.broadcast_to(logits, (8000, 28)), uniforms(3, 8000))
    assert stats.chisquare(np.bincount(token, minlength=4)).pvalue > 1e-4


@pytest.mark.parametrize("vocab", [11, 549])
@pytest.mark.parametrize("options", FILTERS)
def test_draws_follow_the_truncated_distribution(options, vocab):
    rows = 10_000
    logits = np.random.default_rng(3).normal(size=vocab).astype(np.float32)
    sampler, k = sampler_and_knobs(options)
    draw = jax.jit(lambda x: sample(sampler, k, jnp.broadcast_to(x, (rows, vocab)), uniforms(5, rows)))
    counts = np.bincount(np.asarray(draw(logits)), minlength=vocab)
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


@pytest.mark.parametrize("vocab", [9, 768])
def test_inverse_cdf_never_draws_weight_zero(vocab):
    weights = np.random.default_rng(4).uniform(size=(500, vocab)).astype(np.float32)
    weights[:, ::2] = 0
    weights[:, -3:] = 0
    uniform = np.concatenate([np.zeros(250), np.full(250, 1 - 2**-24)]).astype(np.float32)
    token = np.asarray(jax.jit(inverse_cdf)(jnp.asarray(weights), jnp.asarray(uniform)))
    assert (weights[np.arange(500), token] > 0).all()
    assert (token[:250] == 1).all()


def test_block_sums_that_fall_by_a_rounding_error_draw_no_weight_zero():
    """As those of 512 blocks do on a CPU, in tiles; where the sums fall, uniforms point at empty blocks."""
    rng = np.random.default_rng(0)
    blocked = np.zeros((20, 512, 2), np.float32)
    for row in blocked:
        row[rng.choice(512, 20, replace=False), 1] = rng.exponential(size=20)
    sums = blocked.sum(axis=-1)
    ends = np.asarray(jax.jit(lambda x: jnp.cumsum(x, axis=-1))(sums))
    row, block = np.nonzero(np.diff(ends, axis=-1) <= 0)
    uniform = np.float32(ends[row, block + 1] / ends[row, -1])[:, None] + np.arange(-2, 3) * 2.0**-24
    uniform = np.clip(uniform, 0, 1 - 2.0**-24).astype(np.float32)
    for column in uniform.T:
        token = np.asarray(jax.jit(_inverted)(blocked[row], sums[row], column))
        assert (blocked.reshape(20, -1)[row, token] > 0).all()


def test_the_first_above_has_weight_also_below_the_start_and_past_the_end():
    weights = jnp.asarray([[0.0, 0.0, 2.0, 0.0, 1.0, 0.0]] * 5)
    target = jnp.asarray([-1e-7, 0.0, 2.0, 3.0, 9.0])
    assert _first_above(weights, target).tolist() == [2, 2, 4, 4, 4]
    assert _first_above(jnp.full((1, 6), jnp.nan), target[:1]).tolist() == [0]


def test_inverse_cdf_in_blocks_agrees_with_one_cumulative_sum():
    weights = np.random.default_rng(6).exponential(size=(300, 1283))
    uniform = np.random.default_rng(7).uniform(size=300)
    cumulative = np.cumsum(weights, axis=-1)
    expected = np.sum(cumulative <= (uniform * cumulative[:, -1])[:, None], axis=-1)
    got = np.asarray(
        jax.jit(inverse_cdf)(jnp.asarray(weights, jnp.float32), jnp.asarray(uniform, jnp.float32))
    )
    assert (got == expected).mean() > 0.98  # the rest: rounding beside a border
    assert (np.abs(got - expected) <= 1).all()


@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_a_row_draws_the_same_whatever_its_neighbours_need(top_p):
    """Attempts go on, and the border is searched, for other rows' sake."""
    rows, vocab = 40, 900
    logits = np.random.default_rng(12).normal(size=(rows, vocab)).astype(np.float32)
    logits[::2] *= 4
    drawn = np.stack([uniforms(2, rows)(attempt) for attempt in range(TOP_P_ATTEMPTS + 1)])

    def tokens(chosen):
        draw = lambda attempt: jnp.asarray(drawn[:, chosen])[attempt]  # noqa: E731
        return np.asarray(sample(Sampler(top_p=True), knobs(top_p=top_p), jnp.asarray(logits[chosen]), draw))

    together = tokens(np.arange(rows))
    for chosen in ([0], [1], [3, 8], np.arange(rows)[::-1]):
        np.testing.assert_array_equal(tokens(chosen), together[chosen])


def test_greedy_takes_the_first_of_equals():
    logits = jnp.asarray([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]])
    assert sample(Sampler(greedy=True), knobs(), logits, uniforms(0, 2)).tolist() == [1, 0]
    wide = np.random.default_rng(8).integers(0, 3, (50, 301)).astype(np.float32)
    assert (
        sample(Sampler(greedy=True), knobs(), jnp.asarray(wide), uniforms(0, 50)).tolist()
        == wide.argmax(1).tolist()
    )


@pytest.mark.parametrize("sampler", [Sampler(top_k=20), Sampler(top_p=True), Sampler(top_k=20, top_p=True)])
def test_no_filter_sorts_the_vocabulary(sampler):
    logits = jax.ShapeDtypeStruct((4, 32000), jnp.float32)
    draw = jax.jit(lambda logits: sample(sampler, knobs(0.7, 0.9), logits, uniforms(0, 4)))
    assert " sort(" not in draw.lower(logits).compile().as_text()


def test_attempts_draw_apart_and_the_first_is_the_tokens_own():
    keys = jnp.asarray(np.random.default_rng(13).integers(0, 2**32, (5000, 2), np.uint64).astype(np.uint32))
    draw = jax.jit(lambda attempt: token_uniforms(keys, jnp.int32(7), attempt))
    drawn = np.stack([np.asarray(draw(attempt)) for attempt in range(3)])
    own = [
        float(jax.random.uniform(jax.random.wrap_key_data(key))) for key in fold_in(keys[:5], jnp.int32(7))
    ]
    np.testing.assert_array_equal(drawn[0, :5], np.float32(own))
    np.testing.assert_array_equal(drawn[0], np.asarray(token_uniforms(keys, jnp.int32(7))))
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.06
    # Token 7's second try is not what token 1 of the node's eighth child draws.
    child = token_uniforms(fold_in(keys, jnp.int32(7)), jnp.int32(1))
    assert abs(np.corrcoef(drawn[1], np.asarray(child))[0, 1]) < 0.06
