"""Block-wise attention against the dense one: values and gradients, sequences, padding and trees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.models.attention import attend
from caspo_jax.models.blockwise import attend_blockwise
from caspo_jax.preferences.token_tree import build_tree

BLOCK = 8


def inputs(length, dtype=jnp.float32, heads=4, groups=2, dim=4, batch=2):
    keys = jax.random.split(jax.random.key(length), 3)
    shapes = [(batch, length, h, dim) for h in (heads, groups, groups)]
    return [2 * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes)]


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


@pytest.mark.parametrize("length", [5, 16, 37])
@pytest.mark.parametrize("visible", [plain, some_trees])
def test_equals_dense(length, visible):
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

    (_, dense), dense_gradients = total(lambda q, k, v: attend(q, k, v, seen))(q, k, v)
    (_, blocks), gradients = total(lambda q, k, v: attend_blockwise(q, k, v, until, BLOCK))(q, k, v)
    np.testing.assert_allclose(blocks, dense, atol=2e-6)
    for mine, theirs in zip(gradients, dense_gradients):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_bfloat16_stays_close_to_float32():
    q, k, v = inputs(24, jnp.bfloat16)
    until = some_trees(24)
    low = attend_blockwise(q, k, v, until, BLOCK)
    high = attend_blockwise(*(x.astype(jnp.float32) for x in (q, k, v)), until, BLOCK)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), high, atol=0.03)


def test_huge_scores_and_blind_queries_stay_finite():
    q, k, v = (1e3 * x for x in inputs(20))
    until = jnp.zeros((2, 20), jnp.int32).at[0].set(20)
    mixed, pull = jax.vjp(lambda q, k, v: attend_blockwise(q, k, v, until, BLOCK), q, k, v)
    assert jnp.isfinite(mixed).all()
    assert (mixed[1] == 0).all()
    assert all(jnp.isfinite(g).all() for g in pull(jnp.ones_like(mixed)))


def test_long_rows_hold_no_array_of_all_pairs():
    length = 4096
    shapes = [jax.ShapeDtypeStruct((1, length, h, 8), jnp.float32) for h in (2, 1, 1)]
    until = jax.ShapeDtypeStruct((1, length), jnp.int32)
    program = jax.jit(jax.grad(lambda *x: jnp.sum(attend_blockwise(*x)))).lower(*shapes, until).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * length * length
