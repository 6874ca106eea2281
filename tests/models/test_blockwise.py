"""Attention of short and of long rows against the dense one: values and gradients, sequences, padding and trees."""

from __future__ import annotations

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.models import Decoder, ModelConfig, blockwise, short_rows
from caspo_jax.models.blockwise import attend_blockwise
from caspo_jax.models.short_rows import attend_short
from caspo_jax.preferences.token_tree import build_tree
from caspo_jax.sharding import make_mesh

BLOCK = 8


def inputs(length, dtype=jnp.float32, heads=4, groups=2, dim=4, batch=2):
    keys = jax.random.split(jax.random.key(length), 3)
    shapes = [(batch, length, h, dim) for h in (heads, groups, groups)]
    return [2 * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes)]


def dense_attention(q, k, v, seen):
    """softmax(q k^T / sqrt(D)) v of q [B, T, H, D], k and v [B, T, G, D], seen [B, T, T], by its definition."""
    batch, length, heads, dim = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, dim)
    scores = jnp.einsum("btgqd,bsgd->bgqts", q, k, precision="highest") * dim**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e30), axis=-1)
    mixed = jnp.einsum("bgqts,bsgd->btgqd", weights, v, precision="highest")
    return mixed.reshape(batch, length, heads, dim)


def some_trees(length):
    """Rows of packed trees, the second row with padding at its end."""
    rng = np.random.default_rng(length)
    rows = np.zeros((2, length), np.int32)
    for row, limit in zip(rows, (length, length - 3)):
        size = 0
        while size < limit:
            tree = build_tree([rng.integers(0, 2, rng.integers(1, 9)) for _ in range(rng.integers(1, 7))])
            if size + len(tree) > limit:
                break
            row[size : size + len(tree)] = tree.subtree_end + size
            size += len(tree)
    return jnp.asarray(rows)


def plain(length):
    return jnp.array([[length] * length, [0, 0] + [length] * (length - 5) + [0] * 3])


def as_on_a_gpu(*args):
    """In larger blocks of queries."""
    with mock.patch.object(short_rows, "platform_of", return_value="gpu"):
        return attend_short(*args)


WAYS = {
    "blocks": functools.partial(attend_blockwise, block=BLOCK),
    "short, row by row": attend_short,
    "short, as on a GPU": as_on_a_gpu,
    "short, rows together": lambda *args: attend_short(*args, mesh=make_mesh("data:1", jax.devices()[:1])),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Short rows in blocks of 8 queries, on a GPU of up to 13, a row at a time."""
    monkeypatch.setattr(short_rows, "_GPU_BLOCKS", 3)
    monkeypatch.setitem(short_rows._SCORES, "gpu", 1)
    monkeypatch.setattr(short_rows, "_QUERIES", BLOCK)
    monkeypatch.setitem(short_rows._SCORES, "cpu", 1)


@pytest.mark.parametrize("length", [5, 16, 37])
@pytest.mark.parametrize("visible", [plain, some_trees])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("small_blocks")
def test_equals_dense(length, visible, way):
    q, k, v = inputs(length)
    until = visible(length)
    columns = jnp.arange(length)
    seen = (columns <= columns[:, None]) & (columns[:, None] < until[:, None])
    real = (until > 0)[..., None, None]
    weight = jax.random.normal(jax.random.key(1), q.shape)

    def total(f):
        def loss(q, k, v):
            mixed = jnp.where(real, f(q, k, v), 0)
            return jnp.sum(mixed * weight), mixed

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))

    (_, dense), dense_gradients = total(lambda q, k, v: dense_attention(q, k, v, seen))(q, k, v)
    (_, blocks), gradients = total(lambda q, k, v: WAYS[way](q, k, v, until))(q, k, v)
    np.testing.assert_allclose(blocks, dense, rtol=2e-6, atol=2e-6)  # both round; processors differ
    for mine, theirs in zip(gradients, dense_gradients):
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("small_blocks")
def test_bfloat16_stays_close_to_float32(way):
    q, k, v = inputs(24, jnp.bfloat16)
    until = some_trees(24)
    low = WAYS[way](q, k, v, until)
    high = WAYS[way](*(x.astype(jnp.float32) for x in (q, k, v)), until)
    assert low.dtype == jnp.bfloat16
    real = np.asarray(until > 0)
    np.testing.assert_allclose(low.astype(jnp.float32)[real], high[real], atol=0.03)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("small_blocks")
def test_huge_scores_and_blind_queries_stay_finite(way):
    q, k, v = (1e3 * x for x in inputs(20))
    until = jnp.zeros((2, 20), jnp.int32).at[0].set(20)
    mixed, pull = jax.vjp(lambda q, k, v: WAYS[way](q, k, v, until), q, k, v)
    assert jnp.isfinite(mixed).all()
    gradients = pull(jnp.ones_like(mixed))
    assert all(jnp.isfinite(g).all() for g in gradients)
    if way == "blocks":  # a query that sees nothing gives nothing, and so has no gradient
        assert all((x[1] == 0).all() for x in (mixed, *gradients))


def test_a_gpu_has_no_loop_over_blocks_up_to_4096_tokens():
    """There the host is asked in each trip of a loop of unknown length, and at each conditional."""
    shapes = [jax.ShapeDtypeStruct((1, 2048, n, 8), jnp.bfloat16) for n in (2, 1, 1)]
    until = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    texts = {}
    for platform in ("gpu", "tpu"):
        with mock.patch.object(blockwise, "platform_of", return_value=platform):
            texts[platform] = (
                jax.jit(lambda *args: blockwise.attend_self(*args)).lower(*shapes, until).as_text()
            )
    assert texts["gpu"].count("stablehlo.while") == 0
    assert texts["tpu"].count("stablehlo.while") > 0
    assert [n for n in (1024, 1025, 4096, 4097) if blockwise.written_out(n, "gpu")] == [1024, 1025, 4096]
    assert [n for n in (1024, 1025, 4096, 4097) if blockwise.written_out(n, "tpu")] == [1024]


def test_long_rows_hold_no_array_of_all_pairs():
    """The compiled program of a model's forward and backward pass over trees: no array, of any type, is [..., T, T]."""
    length = 4096
    config = ModelConfig("qwen3", 32, 16, 32, 1, 2, 1, 8, tie_word_embeddings=True)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))

    def loss(params, token_ids, positions, end):
        model = nnx.merge(graphdef, params)
        return jnp.sum(model.hidden_states(token_ids, positions, end > 0, subtree_end=end))

    ints = jax.ShapeDtypeStruct((1, length), jnp.int32)
    program = jax.jit(jax.value_and_grad(loss)).lower(params, ints, ints, ints).compile()
    assert not re.search(rf"\[[\d,]*{length},{length}\]", program.as_text())
    assert program.memory_analysis().temp_size_in_bytes < 4 * length * length
