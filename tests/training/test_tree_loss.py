"""Packed trees against the same pairs and verified steps as rows of their own: loss, metrics, gradients."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import VOCAB, Toy, make_data, on_device, tiny_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.preferences.packing import MaskedRow, pack_pairs, pack_rows
from caspo_jax.preferences.tree_packing import pack_trees, plan_rows
from caspo_jax.preferences.tree_pieces import RowShape, Unit
from caspo_jax.training import LossConfig
from caspo_jax.training.step_logprobs import batch_reference
from caspo_jax.training.step_loss import loss_denominators, step_dpo_loss, step_loss_sums

SHAPE = RowShape(48, slots=48, pairs=8, verified=8, members=96)
OPTIONS = [
    {},
    {"loss": "ipo", "length_normalised": True},
    {"dpop_lambda": 5.0, "nll_alpha": 1.0, "nll_on": "verified", "nll_average": "token"},
    {"nll_alpha": 0.5, "nll_on": "chosen", "label_smoothing": 0.1},
    {"loss": "sft"},
    {"loss": "rft", "nll_average": "token"},
]


@pytest.fixture(scope="module")
def model():
    return tiny_decoder()


def masked(context, step):
    mask = np.arange(len(context) + len(step)) >= len(context)
    return MaskedRow(np.array((*context, *step), np.int32), mask)


def as_units(pairs, verified):
    groups: dict = {}
    units = []
    for i, p in enumerate(pairs):
        context = p.prompt_ids + p.prefix_ids
        rows = (masked(context, p.chosen_ids), masked(context, p.rejected_ids))
        units.append(Unit(rows, i, groups.setdefault(p.prompt_ids, len(groups)), True))
    for i, (prompt, step) in enumerate(verified):
        units.append(Unit((masked(prompt, step),), i, groups.setdefault(prompt, len(groups)), False))
    return units


def both(seed, shape=SHAPE, size=4):
    pairs, verified = make_data(seed)
    rng = np.random.default_rng(seed + 1)
    references = rng.normal(-4, 1, (2, len(pairs))).astype(np.float32)
    rows = plan_rows(as_units(pairs, verified), shape)
    weight = np.array([p.weight for p in pairs], np.float32)
    packed = pack_trees(rows, max(size, len(rows)), shape, weight, *references)
    plain = pack_pairs(pairs, 24, 0)
    plain = type(plain)(
        plain.chosen, plain.rejected, weight, *references, verified=pack_rows(verified, 24, 0)
    )
    return plain, packed


MODELS = [
    pytest.param(
        make,
        options,
        id=f"{make.__name__}-{options}",
        marks=pytest.mark.slow if make is tiny_decoder and options not in (OPTIONS[0], OPTIONS[2]) else (),
    )
    for make in (Toy, tiny_decoder)
    for options in OPTIONS
]


@pytest.mark.parametrize("make, options", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_trees_equal_rows(make, options, seed):
    model = make()
    plain, packed = both(seed)
    config = LossConfig(**options)

    def loss(model, batch):
        return step_dpo_loss(model, batch, config)

    run = nnx.jit(nnx.value_and_grad(loss, has_aux=True))
    (value, metrics), gradient = run(model, on_device(plain))
    (packed_value, packed_metrics), packed_gradient = run(model, on_device(packed.batch))
    np.testing.assert_allclose(packed_value, value, rtol=1e-5)
    assert metrics.keys() == packed_metrics.keys()
    for name in metrics.keys() - {"tokens", "step_tokens"}:
        np.testing.assert_allclose(packed_metrics[name], metrics[name], rtol=2e-5, atol=1e-6, err_msg=name)
    if config.contrastive:
        assert packed_metrics["tokens"] < metrics["tokens"]
    for a, b in zip(jax.tree.leaves(packed_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_slots_that_no_row_fills_change_nothing(model):
    """Rows planned for few slots, against the same rows with a slot for every token."""
    few = dataclasses.replace(SHAPE, slots=20)
    pairs, verified = make_data(2)
    rows = plan_rows(as_units(pairs, verified), few)
    references = np.random.default_rng(0).normal(-4, 1, (2, len(pairs))).astype(np.float32)
    weight = np.array([p.weight for p in pairs], np.float32)
    config = LossConfig(nll_alpha=1.0, nll_on="verified")
    run = nnx.jit(nnx.value_and_grad(lambda m, b: step_dpo_loss(m, b, config)[0]))
    found = []
    for shape in (few, SHAPE):
        batch = pack_trees(rows, len(rows), shape, weight, *references).batch
        assert batch.target_mask.sum() > shape.slots
        found.append(run(model, on_device(batch)))
    (loss, gradient), (other, other_gradient) = found
    np.testing.assert_allclose(loss, other, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * float(jnp.abs(b).max()))


def test_a_batch_that_a_jitted_function_closes_over_is_one_that_it_is_given():
    """Such a batch is of NumPy arrays, which a traced index cannot cut."""
    model, batch, config = Toy(), both(1)[1].batch, LossConfig()
    given = nnx.jit(lambda m, b: step_dpo_loss(m, b, config)[0])(model, on_device(batch))
    closed_over = nnx.jit(lambda m: step_dpo_loss(m, batch, config)[0])(model)
    np.testing.assert_allclose(closed_over, given, rtol=1e-6)  # two programs


def test_denominators_on_the_host_equal_those_of_the_loss():
    model = Toy()
    for options in OPTIONS:
        config = LossConfig(**options)
        run = nnx.jit(lambda m, b, config=config: step_loss_sums(m, b, config).denominators)
        for batch in (both(3)[0], both(3)[1].batch):
            host = loss_denominators(batch, config)
            device = run(model, on_device(batch))
            np.testing.assert_allclose(host.pairs, device.pairs, rtol=1e-6)
            np.testing.assert_allclose(host.nll, device.nll, rtol=1e-6)


def test_a_reference_of_the_same_program_gives_log_two(model):
    _, packed = both(5)
    shape = packed.batch.weight.shape
    chosen, rejected = (x.reshape(shape) for x in batch_reference(model, packed.batch))
    batch = type(packed.batch)(
        **{**vars(packed.batch), "reference_chosen": chosen, "reference_rejected": rejected}
    )
    loss, _ = nnx.jit(lambda m, b: step_dpo_loss(m, b, LossConfig()))(model, on_device(batch))
    np.testing.assert_allclose(loss, np.log(2), atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from([(24, 24, 2, 2, 30), (48, 48, 8, 8, 96), (48, 12, 8, 8, 96)]),
)
def test_every_item_is_there_once_with_its_own_tokens(seed, pairs, verified, sizes):
    made, steps = make_data(seed, pairs, verified)
    units = as_units(made, steps)
    shape = RowShape(*sizes)
    rows = plan_rows(units, shape)
    numbers = np.arange(1, len(made) + 1, dtype=np.float32)
    packed = pack_trees(rows, len(rows) + 1, shape, numbers, -numbers, -2 * numbers)
    batch = packed.batch
    assert batch.target.shape == (len(rows) + 1, shape.slots)
    assert sorted(packed.pairs[packed.pairs >= 0]) == list(range(len(made)))
    assert sorted(packed.verified[packed.verified >= 0]) == list(range(len(steps)))
    weight = np.where(packed.pairs >= 0, packed.pairs + 1, 0)
    for name, factor in (("weight", 1), ("reference_chosen", -1), ("reference_rejected", -2)):
        assert getattr(batch, name).reshape(-1).tolist() == (factor * weight).tolist()
    assert batch.verified.reshape(-1).tolist() == (packed.verified >= 0).tolist()

    def spelled(row, item):
        slots = batch.member_slot[row][batch.member_item[row] == item]
        assert batch.target_mask[row, slots].all()
        # The path up to the first predictor, read from what it sees, then the scored tokens themselves.
        first = batch.predictor[row, slots[0]]
        columns = np.arange(first + 1)
        seen = columns[first < batch.subtree_end[row, : first + 1]]
        assert batch.positions[row, seen].tolist() == list(range(len(seen)))
        return (*batch.token_ids[row, seen], *batch.target[row, slots])

    for at, index in enumerate(packed.pairs):
        if index >= 0:
            row, place = divmod(at, shape.pairs)
            pair = made[index]
            context = pair.prompt_ids + pair.prefix_ids
            assert spelled(row, place) == context + pair.chosen_ids
            assert spelled(row, shape.pairs + place) == context + pair.rejected_ids
    for at, index in enumerate(packed.verified):
        if index >= 0:
            row, place = divmod(at, shape.verified)
            prompt, step = steps[index]
            assert spelled(row, 2 * shape.pairs + place) == prompt + step


def test_what_fits_no_row_is_named():
    pairs, _ = make_data(0, 1, 0)
    for shape in (
        RowShape.of(4, pairs=True, verified=False),
        RowShape.of(48, 1, pairs=True, verified=False),
    ):
        said = f"do not fit into a row of {shape.length} with {shape.slots} scored"
        with pytest.raises(ValueError, match=said):
            plan_rows(as_units(pairs, []), shape)


def test_padding_of_a_tree_batch_may_hold_any_token(model):
    _, packed = both(7)
    batch = packed.batch
    dirty = np.where(batch.subtree_end > 0, batch.token_ids, VOCAB - 1)
    run = nnx.jit(lambda m, b: step_dpo_loss(m, b, LossConfig())[0])
    clean = run(model, on_device(batch))
    np.testing.assert_allclose(
        run(model, on_device(type(batch)(**{**vars(batch), "token_ids": dirty}))), clean, rtol=1e-6
    )
    assert jnp.isfinite(clean)
