"""Where layers are taken apart, and what that makes of the loop's program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.models import attention, copy_rows
from caspo_jax.models.cache import init_cache
from caspo_jax.models.cpu_layers import TurnedLayer
from caspo_jax.models.decoder import Decoder
from caspo_jax.sampling import (
    CatConfig,
    Knobs,
    SampleConfig,
    build_automaton,
    init_state,
    loop,
    make_policy,
    model_decode,
)
from caspo_jax.sampling.batch import start_cache
from caspo_jax.sampling.model_decode import ApartParams, ModelDecode, decode_params, prefers_apart
from tests.shapes import small_shape

CONFIG = small_shape(num_layers=3)
GIB = 1 << 30


class Array:
    """As much of a sharded array as is asked for."""

    def __init__(self, shape, devices, part):
        self.shape, self.dtype, self.sharding = shape, np.dtype(np.float16), self
        self._devices, self._part = devices, part

    def devices(self):
        return set(self._devices)

    def shard_shape(self, shape):
        return (shape[0] // self._part, *shape[1:])


class Device:
    def __init__(self, platform, limit, used):
        self.platform, self._stats = platform, {"bytes_limit": limit, "bytes_in_use": used}

    def memory_stats(self):
        return self._stats


@pytest.mark.parametrize(
    "platform, limit, used, part, processes, want",
    [
        ("gpu", 80 * GIB, 16 * GIB, 1, 1, True),
        ("gpu", 40 * GIB, 16 * GIB, 1, 1, False),  # 24 are free, the copy of 16 asks for 32
        ("gpu", 40 * GIB, 16 * GIB, 2, 1, True),  # split over two: 8 each
        ("gpu", 80 * GIB, 16 * GIB, 1, 2, False),  # processes could decide differently
        ("tpu", 80 * GIB, 16 * GIB, 1, 1, False),
    ],
)
def test_layers_lie_apart_on_gpus_with_room(monkeypatch, platform, limit, used, part, processes, want):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(model_decode, "on_one_cpu", lambda: False)
    devices = [Device(platform, limit, used) for _ in range(part)]
    params = {name: Array((4, GIB), devices, part) for name in ("embed", "mlp")}  # 8 GiB each
    assert prefers_apart(params) is want


def test_on_a_cpu_layers_of_some_size_lie_apart_where_there_is_room_and_large_ones_turned(monkeypatch):
    graphdef, params = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
    assert decode_params(graphdef, params) is params  # small matrices
    largest = 4 * CONFIG.hidden_size * CONFIG.intermediate_size
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def layers(apart_from: int, turned_from: int, free: int) -> tuple | None:
        monkeypatch.setattr(model_decode, "_APART_FROM", apart_from)
        monkeypatch.setattr(model_decode, "_TURNED_FROM", turned_from)
        monkeypatch.setattr(model_decode, "free_memory", lambda: free)
        chosen = decode_params(graphdef, params)
        assert chosen is params or chosen.params is params
        return None if chosen is params else chosen.layers

    assert layers(largest + 1, largest, 2 * held) is None
    assert layers(largest, largest, 2 * held - 1) is None
    apart, turned = layers(largest, largest + 1, 2 * held), layers(largest, largest, 2 * held)
    assert [type(layer) for layer in (*apart, *turned)] == [dict] * 3 + [TurnedLayer] * 3
    down, norm = (params["layers"][name][2] for name in ("down", "mlp_norm"))
    np.testing.assert_array_equal(apart[2]["down"], down)
    np.testing.assert_array_equal(turned[2].matrices["down"], down.T)
    np.testing.assert_array_equal(turned[2]["mlp_norm"], norm)


def loop_program(apart: bool, strategy: str, temperature: float = 0.0) -> str:
    """The loop over 2 questions with 3 slots each, lowered for a GPU."""
    model = Decoder(CONFIG, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    sample = SampleConfig(max_new_tokens=64, temperature=temperature)
    several = {} if temperature else {"expand": 1, "root_branches": 1}
    settings = CatConfig(num_branches=3, sample=sample, **several)
    state = init_state(
        start_cache(init_cache(CONFIG, 2, 0, jnp.float32, prompt_columns=4), 3, 64, apart=apart),
        jnp.zeros((2, CONFIG.vocab_size)),
        jnp.zeros((2, 2), jnp.uint32),
        jnp.ones(2, jnp.int32),
        build_automaton([b"a"] * CONFIG.vocab_size, "\n\n"),
        Knobs.of(settings),
        num_slots=3,
        capacity=64,
    )
    policy = make_policy(ModelDecode(graphdef), copy_rows, settings, strategy=strategy)
    chosen = ApartParams(params, model.layers_apart()) if apart else params
    fixed, stripped = loop._fixed(state), loop._strip(state)
    traced = loop._donated.trace(chosen, fixed, stripped, policy)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_with_layers_apart_a_gpu_waits_for_its_host_once_an_iteration(monkeypatch):
    """Conditionals and inner loops are what a GPU asks its host about; the one left is whether a step has ended."""
    monkeypatch.setattr(attention, "platform_of", lambda mesh: "gpu")
    stacked, apart = (loop_program(apart, "self_consistency") for apart in (False, True))
    assert apart.count("stablehlo.while") == 1
    assert apart.count("stablehlo.case") + apart.count("stablehlo.if") == 1
    assert stacked.count("stablehlo.while") == 2
    assert stacked.count("stablehlo.case") + stacked.count("stablehlo.if") == 2
    assert loop_program(True, "cat", 1.0).count("stablehlo.while") == 2  # forks are copied one by one
    # No weight is cut out of a stack: what is left of the layers' axis are the parameters that nothing reads.
    stack = f"tensor<{CONFIG.num_layers}x{CONFIG.hidden_size}x{CONFIG.intermediate_size}xf32>"
    assert stack in stacked.split("stablehlo.while")[1]
    assert stack not in apart.split("stablehlo.while")[1]
