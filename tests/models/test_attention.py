"""Attention of one new token over the cache, in every layout, against its definition a row at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.models import KVCache
from caspo_jax.models.attention import attend_cache
from caspo_jax.models.cache import with_layers_apart, with_prompt_lanes
from tests.models.test_cache import relaid

LAYERS, PROMPTS, BRANCHES, GROUPS, SHARED, DIM, PROMPT, CAPACITY = 2, 3, 2, 2, 2, 4, 5, 70
LAYOUTS = {
    "rows": lambda cache: cache,
    "apart": with_layers_apart,
    "lanes": relaid,
    "all lanes": lambda cache: with_prompt_lanes(relaid(cache)),
}


def random_cache(last):
    """Rows own some of the columns up to `last`, that one among them; what stands in others must not matter."""
    rng = np.random.default_rng(last)
    rows = PROMPTS * BRANCHES
    valid = (rng.random((rows, CAPACITY)) < 0.7) & (np.arange(CAPACITY) <= last)
    valid[:, last] = True
    shapes = {
        "prompt_k": (LAYERS, PROMPTS, GROUPS, DIM, PROMPT),
        "prompt_v": (LAYERS, PROMPTS, GROUPS, PROMPT, DIM),
        "k": (LAYERS, rows, GROUPS, DIM, CAPACITY),
        "v": (LAYERS, rows, GROUPS, CAPACITY, DIM),
    }
    parts = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    # Prompts of different lengths, padded on the left or on the right, and one of nothing.
    prompt_valid = np.array([[True] * 5, [False, True, True, True, False], [False] * 5])
    q = jnp.asarray(rng.normal(size=(rows, GROUPS * SHARED, DIM)), jnp.float32)
    return q, KVCache(**parts, valid=jnp.asarray(valid), prompt_valid=jnp.asarray(prompt_valid))


def attended(q, cache, layer):
    """[R, H, D] in float64, a row and a head at a time."""
    q, k, v, prompt_k, prompt_v = (
        np.asarray(x, np.float64) for x in (q, cache.k, cache.v, cache.prompt_k, cache.prompt_v)
    )
    valid, prompt_valid = np.asarray(cache.valid), np.asarray(cache.prompt_valid)
    mixed = np.zeros(q.shape)
    for row, head in np.ndindex(q.shape[:2]):
        prompt, group = row // BRANCHES, head // SHARED
        real, own = prompt_valid[prompt], valid[row]
        keys = np.concatenate([prompt_k[layer, prompt, group][:, real], k[layer, row, group][:, own]], axis=1)
        values = np.concatenate([prompt_v[layer, prompt, group][real], v[layer, row, group][own]])
        weights = np.exp(q[row, head] @ keys / np.sqrt(DIM))
        mixed[row, head] = weights @ values / weights.sum()
    return mixed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_column_up_to_the_last_is_read_once(layout):
    """Where a part of the columns, or a block of lanes, ends with the last one, or begins with it."""
    attend = jax.jit(functools.partial(attend_cache, layer=1))
    for last in (0, 3, 4, 34, 35, 36, 68, 69):
        q, cache = random_cache(last)
        found = attend(q, LAYOUTS[layout](cache), last=jnp.int32(last))
        np.testing.assert_allclose(found, attended(q, cache, 1), atol=1e-5, err_msg=str(last))
