"""step_dpo_loss: every option against NumPy, gradients, masks, padding, exact partial sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from caspo_jax.errors import UserError
from caspo_jax.sharding import make_mesh
from caspo_jax.training import LossConfig, reference_logprobs, step_dpo_loss, step_sums
from caspo_jax.training.step_logprobs import concatenate_rows
from caspo_jax.training.step_loss import add_up, reduce_metrics, step_loss_sums
from caspo_jax.types import PairBatch, StepRows

from helpers import VOCAB, Toy, on_device, random_batch, reference_loss, reference_sums, tiny_decoder  # isort: skip

OPTIONS = [
    {},
    {"beta": 0.5, "label_smoothing": 0.2},
    {"loss": "ipo", "beta": 0.3},
    {"dpop_lambda": 5.0},
    {"length_normalised": True, "beta": 2.0, "dpop_lambda": 1.0},
    {"nll_alpha": 0.7},
    {"nll_alpha": 0.7, "nll_average": "token"},
    {"nll_alpha": 0.7, "nll_on": "verified", "dpop_lambda": 5.0},
    {"nll_alpha": 0.7, "nll_on": "verified", "nll_average": "token"},
    {"loss": "sft"},
    {"loss": "sft", "nll_average": "token"},
    {"loss": "rft"},
    {"loss": "rft", "nll_average": "token"},
]


@pytest.fixture(scope="module")
def model():
    return Toy()


@pytest.fixture(scope="module")
def batch():
    return random_batch(seed=1, pairs=4, verified=3, weights=[1, 0.5, 2, 1])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_matches_numpy(model, batch, options):
    config = LossConfig(**options)
    loss, aux = nnx.jit(lambda m, b: step_dpo_loss(m, b, config))(model, on_device(batch))
    np.testing.assert_allclose(loss, reference_loss(model, batch, config), rtol=2e-5)
    assert aux["loss"] == loss
    assert ("rewards/margin" in aux) == config.contrastive


def test_metrics_match_numpy(model, batch):
    _, aux = step_dpo_loss(model, on_device(batch), LossConfig())
    logprob, entropy, tokens = reference_sums(model, batch.chosen)
    weight = batch.weight
    np.testing.assert_allclose(aux["logps/chosen"], np.average(logprob, weights=weight), rtol=1e-5)
    np.testing.assert_allclose(
        aux["logps/chosen_per_token"], np.sum(weight * logprob) / np.sum(weight * tokens), rtol=1e-5
    )
    np.testing.assert_allclose(
        aux["entropy/chosen"], np.sum(weight * entropy) / np.sum(weight * tokens), rtol=1e-5
    )
    gap = np.average(logprob - batch.reference_chosen, weights=weight)
    np.testing.assert_allclose(aux["displacement"], gap, rtol=1e-4)
    np.testing.assert_allclose(aux["rewards/chosen"], 0.1 * gap, rtol=1e-4)
    assert aux["tokens"] == batch.chosen.mask.sum() + batch.rejected.mask.sum()


@pytest.mark.parametrize("chunk, on_mesh", [(1, False), (3, False), (32, False), (3, True)])
def test_step_sums_and_their_gradient_match_the_whole_logits(batch, chunk, on_mesh):
    model, rows = Toy(), on_device(batch.chosen)
    if on_mesh:  # there each row's step is moved to its beginning
        model.mesh = make_mesh("data:1", jax.devices()[:1])
    graphdef, params = nnx.split(model)
    upstream = jnp.array([1.0, -2.0, 0.5, 0.0])

    def chunked(params):
        sums = step_sums(nnx.merge(graphdef, params), rows, chunk)
        return jnp.sum(upstream * sums.logprob)

    def whole(params):
        whole = nnx.merge(graphdef, params)
        logits = (whole.hidden_states(rows.token_ids, mask=rows.mask) @ whole.unembedding().T)[:, :-1]
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), rows.token_ids[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(upstream * jnp.sum(jnp.where(rows.step_mask[:, 1:], logps, 0), axis=1))

    value, grads = jax.jit(jax.value_and_grad(chunked))(params)
    expected_value, expected = jax.jit(jax.value_and_grad(whole))(params)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-4)
    sums = step_sums(model, rows, chunk)
    np.testing.assert_allclose(np.stack(sums), reference_sums(model, batch.chosen), rtol=2e-5)


@pytest.mark.parametrize("options", [{"dpop_lambda": 5.0, "nll_alpha": 1.0, "nll_on": "verified"}])
def test_check_grads(model, batch, options):
    graphdef, params = nnx.split(model)
    device_batch = on_device(batch)
    config = LossConfig(**options)

    @jax.jit
    def loss(params):
        return step_dpo_loss(nnx.merge(graphdef, params), device_batch, config)[0]

    check_grads(loss, (params,), order=1, modes=["rev"], eps=3e-3, atol=3e-2, rtol=3e-2)


def test_value_and_grad_of_a_module(model, batch):
    device_batch = on_device(batch)
    grad = nnx.jit(nnx.value_and_grad(lambda m, b: step_dpo_loss(m, b, LossConfig()), has_aux=True))
    (loss, aux), grads = grad(model, device_batch)
    assert loss == aux["loss"]
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("make", [Toy, pytest.param(tiny_decoder, marks=pytest.mark.slow)])
def test_masking_equals_slicing(make, batch):
    """What stands behind the mask changes no bit; longer rows change the order of sums, and so the last ones."""
    model = make()

    def wide(seed):
        rng = np.random.default_rng(seed)

        def widen(rows):
            def pad(a):
                return np.pad(a, ((0, 0), (0, 5)))

            ids = np.where(pad(rows.mask), pad(rows.token_ids), rng.integers(0, VOCAB, (len(rows.mask), 17)))
            return StepRows(ids.astype(np.int32), pad(rows.mask), pad(rows.step_mask))

        return dataclasses.replace(
            batch, chosen=widen(batch.chosen), rejected=widen(batch.rejected), verified=widen(batch.verified)
        )

    config = LossConfig(dpop_lambda=5.0, nll_alpha=1.0, nll_on="verified")
    grad = nnx.jit(nnx.value_and_grad(lambda m, b: step_dpo_loss(m, b, config)[0]))
    loss, grads = grad(model, on_device(batch))
    wide_loss, wide_grads = first = grad(model, on_device(wide(5)))
    jax.tree.map(np.testing.assert_array_equal, first, grad(model, on_device(wide(6))))
    np.testing.assert_allclose(loss, wide_loss, rtol=1e-6)
    # Eight units in the last place of the largest: sums that cancel keep the rounding of what they added up.
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wide_grads)):
        np.testing.assert_allclose(a, b, atol=1e-6 * largest)


def test_a_row_s_first_token_counts_nowhere(model, batch):
    """Nothing predicts it: a step that is the whole row has one token less."""
    rows = batch.chosen
    whole = dataclasses.replace(rows, step_mask=rows.mask)
    rest = dataclasses.replace(rows, step_mask=rows.mask & (np.arange(rows.mask.shape[1]) > 0))
    sums = step_sums(model, on_device(whole))
    np.testing.assert_allclose(np.stack(sums), reference_sums(model, whole), rtol=2e-5)
    np.testing.assert_array_equal(np.stack(sums), np.stack(step_sums(model, on_device(rest))))


def test_tokens_outside_the_step_get_no_gradient(model):
    """The gradient with respect to the head comes from step tokens alone: an empty mask gives none."""
    batch = on_device(random_batch(seed=2, pairs=2))
    empty = dataclasses.replace(batch.chosen, step_mask=jnp.zeros_like(batch.chosen.step_mask))
    batch = dataclasses.replace(batch, chosen=empty, rejected=empty)
    grad = nnx.jit(nnx.value_and_grad(lambda m, b: step_dpo_loss(m, b, LossConfig(nll_alpha=1.0))[0]))
    loss, grads = grad(model, batch)
    assert np.isfinite(loss)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


def test_padding_rows_change_nothing(model, batch):
    def pad(rows):
        return jax.tree.map(
            lambda a: jnp.concatenate([jnp.asarray(a), jnp.zeros((2, a.shape[1]), a.dtype)]), rows
        )

    nan = jnp.full(2, jnp.nan)
    padded = PairBatch(
        chosen=pad(batch.chosen),
        rejected=pad(batch.rejected),
        weight=jnp.append(batch.weight, jnp.zeros(2)),
        reference_chosen=jnp.append(batch.reference_chosen, nan),
        reference_rejected=jnp.append(batch.reference_rejected, nan),
        verified=pad(batch.verified),
    )
    config = LossConfig(dpop_lambda=5.0, nll_alpha=1.0, nll_on="verified")
    grad = nnx.jit(nnx.value_and_grad(lambda m, b: step_dpo_loss(m, b, config), has_aux=True))
    (loss, aux), grads = grad(model, on_device(batch))
    (padded_loss, padded_aux), padded_grads = grad(model, padded)
    np.testing.assert_allclose(loss, padded_loss, rtol=1e-6)
    for name in aux:
        np.testing.assert_allclose(aux[name], padded_aux[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(padded_grads)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def concatenate_batches(a, b):
    return PairBatch(
        chosen=concatenate_rows(a.chosen, b.chosen),
        rejected=concatenate_rows(a.rejected, b.rejected),
        **{
            name: jnp.concatenate([getattr(a, name), getattr(b, name)])
            for name in ("weight", "reference_chosen", "reference_rejected")
        },
    )


def test_reference_logprobs_match_numpy(model, batch):
    (filled,) = reference_logprobs(model, [batch])
    np.testing.assert_allclose(filled.reference_chosen, reference_sums(model, batch.chosen)[0], rtol=1e-5)
    np.testing.assert_allclose(filled.reference_rejected, reference_sums(model, batch.rejected)[0], rtol=1e-5)


def test_reference_logprobs_give_log_two(batch):
    decoder = tiny_decoder()
    (filled,) = reference_logprobs(decoder, [batch])
    # Other neighbours and another width than the reference saw: still log 2.
    device = on_device(random_batch(seed=9, pairs=2, width=20))
    device = concatenate_batches(on_device(filled), dataclasses.replace(device, weight=jnp.zeros(2)))
    loss, aux = nnx.jit(lambda m, b: step_dpo_loss(m, b, LossConfig()))(decoder, device)
    assert abs(float(loss) - np.log(2)) < 1e-6
    assert abs(float(aux["displacement"])) < 1e-5


def test_sums_of_micro_batches_add_up_to_those_of_the_batch(model, batch):
    config = LossConfig(nll_alpha=0.7, nll_on="verified")
    steps = [slice(0, 1), slice(1, 4)]  # of the pairs, and beside them verified steps
    parts = [
        step_loss_sums(model, on_device(jax.tree.map(lambda a, s=part: a[s], batch)), config)
        for part in steps
    ]
    added = add_up(jax.device_get(parts))
    _, aux = step_dpo_loss(model, on_device(batch), config)
    reduced = reduce_metrics(added, config, lambda a, b: a / b if b > 0 else 0.0)
    assert isinstance(reduced["loss"], float)
    for name, value in aux.items():
        np.testing.assert_allclose(reduced[name], value, rtol=1e-5, err_msg=name)
    assert added.pair_finite.tolist() == [True] * 4


def test_missing_verified_steps_are_named(model):
    with pytest.raises(UserError, match="verified"):
        step_dpo_loss(model, on_device(random_batch()), LossConfig(loss="rft"))


def test_concatenate_rows_pads_to_the_widest():
    a, b = random_batch(width=8).chosen, random_batch(width=11).chosen
    rows = concatenate_rows(a, b)
    assert rows.token_ids.shape == (6, 11)
    np.testing.assert_array_equal(rows.mask[:3, :8], a.mask)
    assert not np.any(rows.mask[:3, 8:])
    np.testing.assert_array_equal(rows.step_mask[3:], b.step_mask)


@pytest.mark.parametrize(
    "changed, words",
    [
        (
            lambda b: {"weight": b.weight[:1]},
            r"weight of shape \(1,\) does not match rows of chosen of shape \(4,\)",
        ),
        (lambda b: {"weight": b.weight[:, None]}, r"weight of shape \(4, 1\)"),
        (lambda b: {"reference_chosen": b.reference_chosen[:1]}, r"reference_chosen of shape \(1,\)"),
        (lambda b: {"reference_rejected": np.float32(0)}, r"reference_rejected of shape \(\)"),
        (
            lambda b: {"chosen": dataclasses.replace(b.chosen, step_mask=b.chosen.step_mask[:, 1:])},
            r"chosen.step_mask of shape .* does not match chosen.token_ids of shape",
        ),
        (
            lambda b: {"verified": dataclasses.replace(b.verified, mask=b.verified.mask[:1])},
            r"verified.mask of shape",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_shapes_that_do_not_fit_are_refused_in_a_program_too(model, batch, changed, words):
    other = dataclasses.replace(batch, **changed(batch))
    for call in (step_dpo_loss, nnx.jit(step_dpo_loss), lambda m, b: reference_logprobs(m, [b])):
        with pytest.raises(UserError, match=words):
            call(model, other)


def test_a_step_of_padding_is_refused_before_the_program(model, batch):
    everywhere = np.ones_like(batch.chosen.step_mask)
    other = dataclasses.replace(batch, chosen=dataclasses.replace(batch.chosen, step_mask=everywhere))
    for call in (step_dpo_loss, lambda m, b: reference_logprobs(m, [b])):
        with pytest.raises(UserError, match=r"chosen.step_mask marks tokens that chosen.mask calls padding"):
            call(model, other)


def test_a_chunk_of_nothing_is_refused(model, batch):
    with pytest.raises(UserError, match="chunk = 0: give the number of tokens"):
        step_dpo_loss(model, batch, chunk=0)


def test_masks_of_numbers(model, batch):
    floats = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == bool else x, batch)
    want, _ = step_dpo_loss(model, batch)
    assert step_dpo_loss(model, floats)[0] == want


def test_outside_of_jit_a_shape_is_compiled_once():
    """A loss by itself, of batches held out: not a second for each."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name.endswith("/backend_compile_duration") else None
    )
    model, (first, second) = tiny_decoder(), (random_batch(seed=seed, pairs=2) for seed in (3, 4))
    expected = nnx.jit(step_dpo_loss)(model, on_device(second))[0]
    step_dpo_loss(model, first)
    before = len(compiled)
    assert before > 0
    np.testing.assert_allclose(step_dpo_loss(model, second)[0], expected, rtol=1e-6)
    step_sums(model, on_device(second.chosen))
    step_sums(model, on_device(first.chosen))
    assert len(compiled) == before + 1  # `step_sums` of half as many rows
