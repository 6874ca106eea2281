import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.models import KVCache, ModelConfig, branch, copy_rows, grow, init_cache, take_prompts
from caspo_jax.models.cache import with_layers_apart, with_prompt_lanes
from caspo_jax.models.cache_rows import concatenate, load_prompt, ring_source, split_rows

CONFIG = ModelConfig("llama", 8, 8, 8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2)


ROWS_TO_LANES = {
    "k": (0, 4, 3, 1, 2),
    "v": (0, 3, 4, 1, 2),
}  # [L, R, G, D, S], [L, R, G, S, D] to [L, S, D, R, G]
LANES_TO_ROWS = {"k": (0, 3, 4, 2, 1), "v": (0, 3, 4, 1, 2)}


def relaid(cache: KVCache) -> KVCache:
    """The same contents in the other layout of the rows' own columns."""
    axes = LANES_TO_ROWS if cache.lanes else ROWS_TO_LANES
    k, v = jnp.transpose(cache.k, axes["k"]), jnp.transpose(cache.v, axes["v"])
    return dataclasses.replace(cache, k=k, v=v, valid=cache.valid.T, lanes=not cache.lanes)


def with_prompt_rows(cache: KVCache) -> KVCache:
    """The same contents with prompts as they are read."""
    if not cache.prompt_lanes:
        return cache
    k = jnp.transpose(cache.prompt_k, LANES_TO_ROWS["k"])
    v = jnp.transpose(cache.prompt_v, LANES_TO_ROWS["v"])
    return dataclasses.replace(
        cache, prompt_k=k, prompt_v=v, prompt_valid=cache.prompt_valid.T, prompt_lanes=False
    )


def layers_together(cache: KVCache) -> KVCache:
    """The same contents with all layers in one array."""
    stacked = {
        name: jnp.concatenate(arrays) if isinstance(arrays := getattr(cache, name), tuple) else arrays
        for name in ("prompt_k", "prompt_v", "k", "v")
    }
    return dataclasses.replace(cache, **stacked)


@pytest.fixture(params=["rows", "lanes", "all lanes", "apart"])
def cache(request) -> KVCache:
    """Four prompts with a row each; row r holds r everywhere and owns r+1 columns; prompt b holds b + 20, b + 30."""
    row = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1, 1)
    k, v = np.zeros((2, 4, 1, 2, 6), np.float32) + row, np.zeros((2, 4, 1, 6, 2), np.float32) + row + 10
    valid = np.arange(6)[None] <= np.arange(4)[:, None]
    prompt_k = np.zeros((2, 4, 1, 2, 3), np.float32) + row + 20
    prompt_v = np.zeros((2, 4, 1, 3, 2), np.float32) + row + 30
    parts = (prompt_k, prompt_v, valid[:, :3], k, v, valid)
    cache = KVCache(*(jnp.asarray(part) for part in parts))
    if request.param == "rows":
        return cache
    if request.param == "apart":
        return with_layers_apart(cache)
    return with_prompt_lanes(relaid(cache)) if request.param == "all lanes" else relaid(cache)


def owners(cache: KVCache) -> list[int]:
    """Which original row each row is, checked on all its arrays."""
    cache = layers_together(cache)
    cache = jax.device_get(relaid(cache) if cache.lanes else cache)
    found = []
    for r in range(cache.rows):
        (row,) = np.unique(cache.k[:, r])
        assert (np.asarray(cache.v[:, r]) == row + 10).all()
        assert int(cache.valid[r].sum()) == row + 1
        found.append(int(row))
    return found


def prompts(cache: KVCache) -> list[int]:
    """Which original prompt each prompt is."""
    cache = jax.device_get(with_prompt_rows(layers_together(cache)))
    found = [int(np.unique(cache.prompt_k[:, b]).item()) - 20 for b in range(cache.prompt_k.shape[1])]
    assert [int(np.unique(cache.prompt_v[:, b]).item()) - 30 for b in range(len(found))] == found
    assert [int(valid.sum()) for valid in cache.prompt_valid] == [min(b + 1, 3) for b in found]
    return found


def test_init_is_empty():
    cache = init_cache(CONFIG, 3, 5, jnp.bfloat16, prompt_columns=4)
    assert (cache.rows, cache.branches, cache.capacity, cache.k.dtype) == (3, 1, 5, jnp.bfloat16)
    assert (cache.prompt_k.shape, cache.prompt_v.shape) == ((2, 3, 1, 2, 4), (2, 3, 1, 4, 2))
    assert (cache.k.shape, cache.v.shape) == ((2, 3, 1, 2, 5), (2, 3, 1, 5, 2))
    assert not cache.valid.any()
    lanes = init_cache(CONFIG, 3, 5, jnp.bfloat16, prompt_columns=4, lanes=True)
    assert (lanes.rows, lanes.branches, lanes.capacity) == (3, 1, 5)
    assert lanes.k.shape == lanes.v.shape == (2, 5, 2, 3, 1)
    lanes = with_prompt_lanes(lanes)
    assert (lanes.rows, lanes.prompts, lanes.branches, lanes.groups) == (3, 3, 1, 1)
    assert lanes.prompt_k.shape == lanes.prompt_v.shape == (2, 4, 2, 3, 1)


def test_split_and_joined_caches_keep_rows_with_their_prompts(cache):
    wide = branch(cache, 2)
    alone = split_rows(wide, jnp.array([7, 0, 3]))
    assert (owners(alone), prompts(alone), alone.branches) == ([3, 0, 1], [3, 0, 1], 1)
    both = concatenate([wide, take_prompts(wide, jnp.array([2]))])
    assert (owners(both), prompts(both)) == ([0, 0, 1, 1, 2, 2, 3, 3, 2, 2], [0, 1, 2, 3, 2])


def test_branches_are_copies_and_stay_with_their_prompts(cache):
    wide = branch(cache, 2)
    assert (wide.rows, wide.branches) == (8, 2)
    assert owners(wide) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert prompts(wide) == [0, 1, 2, 3]
    few = take_prompts(wide, jnp.array([3, 1, 1]))
    assert owners(few) == [3, 3, 1, 1, 1, 1]
    assert prompts(few) == [3, 1, 1]


@pytest.mark.parametrize("count, want", [(0, [0, 1, 2, 3]), (1, [2, 1, 2, 3]), (3, [2, 3, 2, 2])])
def test_copy_rows_copies_the_first_count_in_order(cache, count, want):
    copied = jax.jit(copy_rows)(cache, jnp.array([2, 3, 0, 1]), jnp.array([0, 1, 3, 2]), count)
    assert owners(copied) == want


@pytest.mark.parametrize("lanes", [False, True])
def test_copy_rows_in_a_donated_loop_needs_no_second_cache(lanes):
    config = ModelConfig("llama", 8, 8, 8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16)

    def loop(cache, source, destination, count):
        def body(state):
            i, cache = state
            return i + 1, copy_rows(cache, source, destination, jnp.where(i == 3, count, 0))

        return jax.lax.while_loop(lambda state: state[0] < 8, body, (0, cache))

    cache = init_cache(config, 32, 64, jnp.float32, lanes=lanes)
    index = jnp.zeros(8, jnp.int32)
    program = jax.jit(loop, donate_argnums=0).lower(cache, index, index, 2).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.1 * (cache.k.nbytes + cache.v.nbytes)


def test_grow_adds_empty_columns(cache):
    assert grow(cache, 6) is cache
    grown = grow(cache, 9)
    assert grown.capacity == 9
    assert prompts(grown) == [0, 1, 2, 3]
    assert grown.apart == cache.apart
    cache, grown = layers_together(cache), layers_together(grown)
    if cache.lanes:
        cache, grown = relaid(cache), relaid(grown)
    assert grown.k.shape[-1] == grown.v.shape[-2] == 9
    np.testing.assert_array_equal(grown.k[..., :6], cache.k)
    np.testing.assert_array_equal(grown.v[..., :6, :], cache.v)
    assert not grown.valid[:, 6:].any()


def test_a_ring_grows_with_its_columns_in_their_new_places(cache):
    """Of ten iterations a ring of six columns holds the last six; in one of eleven they are where ten iterations put them."""
    lanes, apart = cache.lanes, cache.apart
    rows = relaid(cache) if lanes else layers_together(cache)
    iteration = jnp.asarray([6, 7, 8, 9, 4, 5], jnp.float32)  # what each column holds
    ring = dataclasses.replace(rows, k=rows.k * 0 + iteration, v=rows.v, valid=jnp.ones_like(rows.valid))
    ring = relaid(ring) if lanes else with_layers_apart(ring) if apart else ring
    grown = jax.jit(grow, static_argnums=1)(ring, 11, jnp.int32(10))
    assert (grown.capacity, grown.apart) == (11, apart)
    grown = relaid(grown) if lanes else layers_together(grown)
    np.testing.assert_array_equal(grown.valid[0], [False] * 4 + [True] * 6 + [False])
    np.testing.assert_array_equal(grown.k[0, 0, 0, 0, 4:10], [4, 5, 6, 7, 8, 9])


@pytest.mark.parametrize("size, larger", [(1, 2), (3, 4), (3, 6), (4, 11)])
def test_a_larger_ring_holds_what_the_smaller_one_did_and_nothing_older(size, larger):
    for iteration in range(3 * larger):
        ring = {i % size: i for i in range(iteration)}  # place -> the iteration that it holds
        source, held = map(np.asarray, ring_source(jnp.int32(iteration), size, larger))
        found = {place: ring[source[place]] for place in np.flatnonzero(held).tolist()}
        assert found == {i % larger: i for i in ring.values()}


def test_a_queued_prompt_takes_a_place_and_its_rows_are_empty(cache):
    wide = branch(cache, 2)
    queued = take_prompts(cache, jnp.array([3, 0]))
    loaded = jax.jit(load_prompt)(wide, queued, 1, 0)
    assert prompts(loaded) == [0, 3, 2, 3]
    if cache.prompt_lanes:  # a queue of prompts as they were read
        assert prompts(jax.jit(load_prompt)(wide, with_prompt_rows(queued), 1, 0)) == [0, 3, 2, 3]
    if cache.apart:
        assert prompts(jax.jit(load_prompt)(wide, layers_together(queued), 1, 0)) == [0, 3, 2, 3]
    valid = np.asarray(loaded.valid.T if cache.lanes else loaded.valid)
    assert not valid[2:4].any()
    np.testing.assert_array_equal(
        np.delete(valid, [2, 3], 0),
        np.delete(np.asarray(wide.valid.T if cache.lanes else wide.valid), [2, 3], 0),
    )
