"""Digests of weights: what they tell apart, and how often a run takes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.errors import UserError
from caspo_jax.models import LoraConfig, add_lora
from caspo_jax.models.lora import base_model
from caspo_jax.training import TrainConfig, digests, loop, train
from caspo_jax.training.digests import base_digest, weights_digest

from helpers import Toy, make_data, tiny_decoder  # isort: skip


class Arrays(nnx.Module):
    def __init__(self, **arrays):
        for name, array in arrays.items():
            setattr(self, name, nnx.Param(jnp.asarray(array)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 23), st.integers(0, 31))
def test_the_digest_sees_every_bit(entry, bit):
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    flipped = array.copy()
    flipped.view(np.uint32).reshape(-1)[entry] ^= np.uint32(1 << bit)
    assert weights_digest(Arrays(a=array)) != weights_digest(Arrays(a=flipped))


def test_the_digest_sees_order_names_shapes_and_dtypes():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    models = [
        Arrays(a=array),
        Arrays(b=array),
        Arrays(a=array[::-1].copy()),
        Arrays(a=array.reshape(6, 4)),
        Arrays(a=array.T.copy().reshape(4, 6)),
        Arrays(a=array.astype(jnp.bfloat16)),
        Arrays(a=array, b=array),
        Arrays(a=-array),
    ]
    assert len({weights_digest(m) for m in models}) == len(models)
    assert weights_digest(Arrays(a=array)) == weights_digest(Arrays(a=array.copy()))


def test_the_digest_of_the_base_is_that_of_every_dtype_and_of_no_adapter():
    array = np.arange(24, dtype=np.float32).reshape(4, 6) / 7
    half = array.astype(jnp.bfloat16)
    models = [Arrays(a=array), Arrays(a=half), Arrays(a=half.astype(np.float32))]
    assert len({base_digest(model) for model in models}) == 1
    assert [base_digest(model, "own") == "own" for model in models] == [False, True, False]
    mixed = Arrays(a=half, b=array)  # nothing to round in the one alone
    assert base_digest(mixed, "own") == base_digest(mixed) == base_digest(Arrays(a=half, b=half))
    counts = [Arrays(a=half, n=np.array([n], np.int32)) for n in (256, 257)]  # one bfloat16
    assert base_digest(counts[0]) != base_digest(counts[1])
    model = tiny_decoder()
    adapted = add_lora(model, LoraConfig(1), jax.random.key(0))
    assert base_digest(adapted) == base_digest(adapted, "own") == base_digest(model)
    assert weights_digest(base_model(adapted)) == weights_digest(model) != weights_digest(adapted)


CONFIG = TrainConfig(batch_size=4, max_steps=1, min_length=16, tensorboard=False)


@pytest.mark.parametrize(
    "make, config, passes",
    [
        (lambda: Toy(dtype=jnp.bfloat16), CONFIG, 1),
        (Toy, CONFIG, 2),  # as they are, and rounded
        (tiny_decoder, dataclasses.replace(CONFIG, lora=LoraConfig(1)), 2),
    ],
    ids=["bfloat16", "float32", "lora"],
)
def test_a_run_reads_the_weights_no_more_often_than_it_must(tmp_path, monkeypatch, make, config, passes):
    """And finds the references that are known by a digest of their own."""
    model, read, pairs = make(), [], make_data(0)[0]

    def counted(array, dtype):
        read.append(dtype)
        return bit_sums(array, dtype)

    def far_enough(*_, **__):
        raise UserError("far enough")

    bit_sums = digests._bit_sums
    monkeypatch.setattr(digests, "_bit_sums", counted)
    monkeypatch.setattr(loop, "make_train_step", far_enough)
    options = {"reference_cache": tmp_path / "cache"}
    with pytest.raises(UserError, match="far enough"):
        train(model, pairs, config, out_dir=tmp_path / "run", **options)
    assert len(read) == passes * len(jax.tree.leaves(nnx.state(model)))
    with pytest.raises(UserError, match="far enough"):
        train(model, pairs, config, reference=model, **options)
    assert len(list((tmp_path / "cache").iterdir())) == 1
