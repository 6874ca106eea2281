import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.confidence import PATH_CONFIDENCES, path_confidence, path_init, path_update, path_value
from caspo_jax.errors import UserError

NAMES = ("geometric", "product", "min", "last")


def definition(name, steps):
    if not steps:
        return np.nan
    return {
        "geometric": np.prod(steps) ** (1 / len(steps)),
        "product": np.prod(steps),
        "min": min(steps),
        "last": steps[-1],
    }[name]


def test_names():
    assert tuple(PATH_CONFIDENCES) == NAMES


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-3, 1.0), st.booleans()), max_size=6),
    st.sampled_from(NAMES),
    st.sampled_from([np.nan, np.inf, -1.0, 0.0]),
)
def test_batch_against_the_definition(steps, name, junk):
    c = np.array([value if keep else junk for value, keep in steps], np.float64)
    mask = np.array([keep for _, keep in steps], bool)
    want = definition(name, [value for value, keep in steps if keep])
    np.testing.assert_allclose(path_confidence(name, c, mask), want, rtol=1e-12)
    np.testing.assert_allclose(PATH_CONFIDENCES[name](c[mask]), want, rtol=1e-12)


def test_online_equals_batch_and_rows_are_independent():
    rng = np.random.default_rng(0)
    c = rng.uniform(0.01, 1, size=(5, 9)).astype(np.float32)
    c[2, 3] = 0.0
    mask = rng.random((5, 9)) < 0.5
    mask[4] = False
    c[~mask] = np.nan

    @jax.jit
    def online(c, mask):
        return jax.lax.scan(lambda state, x: (path_update(state, *x), None), path_init((5,)), (c.T, mask.T))[
            0
        ]

    state = online(c, mask)
    for name in NAMES:
        batch = path_confidence(name, jnp.asarray(c), jnp.asarray(mask))
        want = [definition(name, [float(v) for v, keep in zip(c[i], mask[i]) if keep]) for i in range(5)]
        np.testing.assert_allclose(path_value(name, state), want, rtol=1e-5)
        np.testing.assert_allclose(batch, want, rtol=1e-5)
        fork = jax.tree.map(lambda leaf: leaf[jnp.array([1, 1, 0])], state)
        np.testing.assert_array_equal(path_value(name, fork), np.asarray(path_value(name, state))[[1, 1, 0]])


def test_unknown_name():
    with pytest.raises(UserError, match="unknown path confidence 'mean'"):
        path_confidence("mean", np.ones(2))
    with pytest.raises(UserError, match="geometric, product, min, last"):
        path_value("mean", path_init())
