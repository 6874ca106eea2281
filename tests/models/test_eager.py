"""Calls outside of a trace: compiled once a shape, and equal to the same call in a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.confidence import model_token_stats, token_logprobs
from caspo_jax.models import Decoder
from caspo_jax.models.eager import Pure, compiled_when_eager
from caspo_jax.models.lora import LoraConfig, add_lora
from tests.shapes import small_shape

CALLS = {
    "logits": lambda model, ids: model(ids),
    "states": lambda model, ids: model.hidden_states(ids, final_norm=False),
    "log-probs": token_logprobs,
    "statistics": model_token_stats,
}

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if name.endswith("/backend_compile_duration") else None
)


@pytest.fixture(scope="module", params=["plain", "lora"])
def model(request):
    model = Decoder(small_shape(), rngs=nnx.Rngs(0))
    return model if request.param == "plain" else add_lora(model, LoraConfig(rank=2), jax.random.key(0))


@pytest.mark.parametrize("name", CALLS)
def test_a_shape_is_compiled_once(model, name):
    call, ids = CALLS[name], np.arange(12).reshape(2, 6)
    first = call(model, ids)
    jax.tree.map(np.testing.assert_array_equal, first, nnx.jit(call)(model, ids))
    before = len(compiled)
    for shift in range(3):
        call(model, ids + shift)
    assert len(compiled) == before
    call(model, ids[:, :5])
    assert len(compiled) > before  # the listener does hear


def test_in_a_trace_the_program_is_the_function_s_own(model):
    """No program in the program: what is trained and searched with stays as it was."""
    graphdef, params = nnx.split(model)
    ids = jnp.zeros((1, 4), jnp.int32)
    for traced in (
        jax.make_jaxpr(lambda ids: model(ids))(ids),
        jax.make_jaxpr(lambda params: nnx.merge(graphdef, params)(ids))(params),
    ):
        assert "name=program" not in str(traced)
        assert "scan[" in str(traced)


def test_settings_given_by_place_or_name_and_arrays_left_out():
    class Model(Pure):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(3))

    seen = []

    @compiled_when_eager("times")
    def scaled(model, x, y=None, times=2):
        seen.append((type(x), y, times))
        return model.weight[...] * x * times

    model = Model()
    for found in (scaled(model, [1.0, 2.0, 3.0]), scaled(model, [1.0, 2.0, 3.0])):
        np.testing.assert_array_equal(found, [2.0, 4.0, 6.0])
    assert len(seen) == 1  # traced once
    np.testing.assert_array_equal(scaled(model, 1.0, None, 3), [3.0] * 3)
    np.testing.assert_array_equal(scaled(model, x=1.0, times=3), [3.0] * 3)
    assert len(seen) == 2
    assert seen[1][1:] == (None, 3)


def test_a_model_of_another_kind_is_called_as_it_stands():
    class Counter(nnx.Module):
        calls = 0

    @compiled_when_eager()
    def call(model, x):
        model.calls += 1
        return x

    model = Counter()
    assert [call(model, 1), call(model, 2), model.calls] == [1, 2, 2]
