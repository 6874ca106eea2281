"""What tells one reference from another, and what does not."""

import dataclasses
import functools
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.models import Decoder, LoraConfig, RopeConfig, add_lora
from caspo_jax.training import TrainConfig
from caspo_jax.training.data import RowStore
from caspo_jax.training.digests import weights_digest
from caspo_jax.training.make_plan import make_plan
from caspo_jax.training.reference_cache import ReferenceCache
from caspo_jax.training.reference_identity import _told, reference_identity

from helpers import Scaled, make_data, tiny_decoder  # isort: skip

PAIRS, _ = make_data(0)
CONFIG = TrainConfig(batch_size=4, epochs=1, min_length=16, tensorboard=False)


def test_adapters_of_another_scale_are_another_reference(tmp_path):
    """The arrays are the same; what they are multiplied with is in none of them."""
    model = tiny_decoder()
    paths = set()
    for lora in (None, LoraConfig(1, 1.0), LoraConfig(1, 2.0), LoraConfig(1, 2.0, rslora=True)):
        reference = model if lora is None else add_lora(model, lora, jax.random.key(0))
        store = RowStore.build(PAIRS)
        paths.add(ReferenceCache(tmp_path, reference, store, make_plan(store, CONFIG)).path)
    assert len(paths) == 4


def test_decoders_of_the_same_arrays_that_compute_otherwise_are_told_apart():
    """In another dtype than the arrays have, or by settings that no array shows."""
    shape = tiny_decoder().config
    turned = dataclasses.replace(shape, rope=RopeConfig(theta=77.0))
    models = [
        Decoder(config, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        for config, dtype in ((shape, jnp.float32), (shape, jnp.bfloat16), (turned, jnp.float32))
    ]
    assert len({weights_digest(model) for model in models}) == 1
    assert len({str(reference_identity(model)) for model in models}) == 3
    assert reference_identity(models[0]) == reference_identity(models[0], weights_digest(models[0]))


def test_models_are_told_apart_without_addresses():
    """Two of the same making are the same, also in another process."""
    told = [repr(_told(model, ())) for model in (Scaled(1.0), Scaled(1.0), Scaled(2.0))]
    assert told[0] == told[1] != told[2]
    assert "0x" not in told[0]
    assert "tanh" in told[0]


def test_what_is_equal_is_told_alike():
    """In whatever order it was made, at whatever address, and however it refers to itself."""
    ends = [types.SimpleNamespace(), types.SimpleNamespace()]
    for end in ends:
        end.me = end
    alike = [({0, 8}, {8, 0}), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ([object()], [object()]), tuple(ends)]
    for one, other in alike:
        assert repr(_told(one, ())) == repr(_told(other, ()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(2), np.ones(2)),
        (np.zeros(2), np.zeros(2, np.int64)),
        (np.zeros(2), np.zeros((2, 1))),
        (functools.partial(jnp.sum, axis=0), functools.partial(jnp.sum, axis=1)),
        (functools.partial(jnp.power, 2.0), functools.partial(jnp.power, 3.0)),
        (jnp.tanh, jnp.sin),
        ({1, 2}, {1, 3}),
        ([1], (1,)),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        (signal.SIGINT, signal.SIGTERM),
        (1, 1.0),
        ("1", 1),
    ],
)
def test_attributes_are_told_apart_by_kind_and_value(one, other):
    assert _told([one], ()) != _told([other], ())
