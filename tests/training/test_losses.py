"""dpo_loss and pair_losses against NumPy written by hand, and their gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from caspo_jax.errors import UserError
from caspo_jax.training import LossConfig, TrainConfig, dpo_loss, pair_losses

COLUMNS = np.random.default_rng(2).normal(-20, 4, (4, 6))  # some chosen steps below the reference, some above
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0, 1.0, 0.25])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(columns, beta=0.1, smoothing=0.0, dpop=0.0, loss="sigmoid"):
    pc, pr, rc, rr = columns
    h = (pc - rc) - (pr - rr) - dpop * np.maximum(0, rc - pc)
    if loss == "ipo":
        return (h - 1 / (2 * beta)) ** 2
    return -(1 - smoothing) * np.log(sigmoid(beta * h)) - smoothing * np.log(sigmoid(-beta * h))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_beta_and_smoothing_may_be_traced(smoothing):
    columns = COLUMNS.astype(np.float32)
    loss = jax.jit(lambda beta, smoothing: dpo_loss(*columns, beta, smoothing)[0])
    np.testing.assert_allclose(loss(0.3, smoothing), dpo_loss(*columns, 0.3, smoothing)[0], rtol=1e-6)
    slope = jax.grad(lambda beta: dpo_loss(*columns, beta)[0])(0.3)
    rise = dpo_loss(*columns, 0.31)[0] - dpo_loss(*columns, 0.29)[0]
    np.testing.assert_allclose(slope, rise / 0.02, rtol=1e-2)
    for bad in ({"beta": 0.0}, {"label_smoothing": 0.5}, {"beta": jnp.float32(-1.0)}):
        with pytest.raises(UserError):
            dpo_loss(*columns, **bad)


def test_beta_may_be_an_array_of_one_number():
    columns = [jnp.asarray(c, jnp.float32) for c in COLUMNS]
    loss, _ = dpo_loss(*columns, jnp.float32(0.5), np.array(0.25))
    assert loss == dpo_loss(*columns, 0.5, 0.25)[0]


def test_lists_are_arrays_and_another_shape_or_a_negative_weight_is_refused():
    columns = COLUMNS.astype(np.float32)
    want = dpo_loss(*columns, weights=WEIGHTS)[0]
    assert dpo_loss(*columns.tolist(), weights=WEIGHTS.tolist())[0] == pytest.approx(float(want), rel=1e-6)
    wide = columns[2][:, None]
    given = {
        "reference_chosen": (*columns[:2], wide, columns[3]),
        "policy_rejected": (columns[0], wide, *columns[2:]),
    }
    for name, arrays in given.items():
        for call in (dpo_loss, jax.jit(dpo_loss)):
            with pytest.raises(UserError, match=rf"{name} of shape \(6, 1\) does not match .* \(6,\)"):
                call(*arrays)
    with pytest.raises(
        UserError, match=r"weights of shape \(1,\) does not match policy_chosen of shape \(6,\)"
    ):
        dpo_loss(*columns, weights=WEIGHTS[:1])
    with pytest.raises(UserError, match="a weight is negative"):
        dpo_loss(*columns, weights=-WEIGHTS)


def test_a_number_stands_for_all_rows():
    policy = COLUMNS[:2].astype(np.float32)
    full = [np.full(policy[0].shape, x, np.float32) for x in (-3.0, -4.0, 0.5)]
    want, aux = dpo_loss(*policy, *full[:2], weights=full[2])
    loss, other = dpo_loss(*policy, -3.0, -4.0, weights=0.5)
    np.testing.assert_array_equal(loss, want)
    assert other == aux


@pytest.mark.parametrize("beta, smoothing", [(0.1, 0.0), (0.5, 0.2)])
def test_dpo_loss_matches_numpy(beta, smoothing):
    columns = COLUMNS.astype(np.float32)
    loss, aux = dpo_loss(*columns, beta=beta, label_smoothing=smoothing, weights=WEIGHTS.astype(np.float32))
    np.testing.assert_allclose(
        loss, np.average(reference(COLUMNS, beta, smoothing), weights=WEIGHTS), rtol=1e-5
    )
    pc, pr, rc, rr = COLUMNS
    margin = beta * ((pc - rc) - (pr - rr))
    np.testing.assert_allclose(
        aux["rewards/chosen"], np.average(beta * (pc - rc), weights=WEIGHTS), rtol=1e-4
    )
    np.testing.assert_allclose(
        aux["rewards/rejected"], np.average(beta * (pr - rr), weights=WEIGHTS), rtol=1e-4
    )
    np.testing.assert_allclose(aux["rewards/margin"], np.average(margin, weights=WEIGHTS), rtol=1e-4)
    np.testing.assert_allclose(aux["rewards/accuracy"], np.average(margin > 0, weights=WEIGHTS), rtol=1e-6)
    np.testing.assert_allclose(aux["logps/chosen"], np.average(pc, weights=WEIGHTS), rtol=1e-6)
    np.testing.assert_allclose(aux["logps/rejected"], np.average(pr, weights=WEIGHTS), rtol=1e-6)
    # Weights are shares, however small; half precision is widened before anything is subtracted.
    np.testing.assert_allclose(dpo_loss(*columns, beta, smoothing, 1e-3 * WEIGHTS)[0], loss, rtol=1e-5)
    halves = [jnp.asarray(c, jnp.bfloat16) for c in columns]
    wide = [c.astype(jnp.float32) for c in halves]
    assert dpo_loss(*halves, beta, smoothing)[0] == dpo_loss(*wide, beta, smoothing)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"dpop_lambda": 5.0},
        {"dpop_lambda": 2.0, "label_smoothing": 0.3},
        {"loss": "ipo"},
        {"loss": "ipo", "dpop_lambda": 1.0},
    ],
)
def test_pair_losses_and_gradients(options):
    config = LossConfig(beta=0.3, **options)
    expected = reference(
        COLUMNS, 0.3, config.label_smoothing, config.dpop_lambda, loss=options.get("loss", "sigmoid")
    )
    with jax.enable_x64(True):
        pc, pr, rc, rr = (jnp.asarray(c) for c in COLUMNS)

        def losses(pc, pr):
            return pair_losses(pc, pr, rc, rr, config)[0]

        np.testing.assert_allclose(losses(pc, pr), expected, rtol=1e-9)
        _, rewards = pair_losses(pc, pr, rc, rr, config)  # of the policy: no penalty is in them
        np.testing.assert_allclose(rewards["rewards/margin"], 0.3 * ((pc - rc) - (pr - rr)), rtol=1e-9)
        np.testing.assert_array_equal(rewards["rewards/accuracy"], (pc - rc) > (pr - rr))
        check_grads(losses, (pc, pr), order=2 if options.get("dpop_lambda") is None else 1, modes=["rev"])


def test_no_gradient_into_the_reference():
    columns = [jnp.asarray(c, jnp.float32) for c in COLUMNS]
    grads = jax.grad(lambda *c: dpo_loss(*c)[0], argnums=(0, 1, 2, 3))(*columns)
    assert all(np.any(g != 0) for g in grads[:2])
    assert all(np.all(g == 0) for g in grads[2:])


def test_padding_row_changes_nothing_even_when_it_is_not_finite():
    columns = [jnp.asarray(c, jnp.float32) for c in COLUMNS]
    padded = [jnp.append(c, bad) for c, bad in zip(columns, [jnp.nan, -jnp.inf, jnp.nan, jnp.inf])]

    def run(columns, weights):
        value, grads = jax.value_and_grad(
            lambda c, r: dpo_loss(c, r, *columns[2:], weights=weights)[0], (0, 1)
        )(*columns[:2])
        return value, grads

    value, grads = run(columns, jnp.ones(6))
    padded_value, padded_grads = run(padded, jnp.append(jnp.ones(6), 0.0))
    np.testing.assert_array_equal(value, padded_value)
    for grad, padded_grad in zip(grads, padded_grads):
        np.testing.assert_array_equal(grad, padded_grad[:-1])
        assert padded_grad[-1] == 0


def test_no_weight_at_all_is_finite():
    columns = [jnp.full(3, jnp.nan)] * 4
    (loss, aux), grad = jax.value_and_grad(
        lambda c: dpo_loss(c, *columns[1:], weights=jnp.zeros(3)), has_aux=True
    )(columns[0])
    assert loss == 0
    assert np.all(grad == 0)
    assert all(np.isfinite(v) for v in aux.values())


def test_equal_policy_and_reference_is_log_two():
    c, r = (jnp.asarray(x, jnp.float32) for x in COLUMNS[:2])
    for smoothing in (0.0, 0.3):
        loss, aux = dpo_loss(c, r, c, r, label_smoothing=smoothing)
        assert abs(float(loss) - np.log(2)) < 1e-6
        assert aux["rewards/accuracy"] == 0


def test_large_margins_stay_finite():
    c, r = jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])
    loss, grad = jax.value_and_grad(lambda x: dpo_loss(x, r, 0 * c, 0 * r, beta=1.0)[0])(c)
    np.testing.assert_allclose(loss, 1e4, rtol=1e-6)
    np.testing.assert_allclose(grad, [0, -0.5], atol=1e-7)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"loss": "dpo"}, "loss"),
        ({"loss": "sft", "nll_alpha": 1.0}, "nll_alpha"),
        ({"loss": "rft", "dpop_lambda": 1.0}, "dpop_lambda"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"nll_on": "all"}, "nll_on"),
        ({"nll_alpha": -1.0}, "nll_alpha"),
    ],
)
def test_contradictory_options_are_named(options, named):
    with pytest.raises(UserError, match=named):
        LossConfig(**options)


def test_presets():
    paper, caspo = LossConfig.preset("paper"), LossConfig.preset("caspo")
    assert (paper.loss, paper.beta, paper.dpop_lambda, paper.nll_alpha) == ("sigmoid", 0.1, 0.0, 0.0)
    assert caspo.uses_verified
    assert (caspo.nll_alpha, caspo.dpop_lambda) == (10.0, 0.0)
    run = TrainConfig.preset("paper", epochs=2)
    assert (run.learning_rate, run.batch_size, run.weight_decay, run.epochs) == (5e-7, 64, 0, 2)
    assert (run.b1, run.b2, run.warmup_fraction, run.final_fraction) == (0.9, 0.95, 0.03, 0.1)
    assert TrainConfig.preset("paper") == TrainConfig()  # one epoch a round
    assert (TrainConfig().epochs, TrainConfig().clip_norm) == (1, 1.0)
    assert not LossConfig(nll_on="verified").uses_verified  # of weight 0
    assert LossConfig.preset("caspo", beta=0.3).beta == 0.3
    with pytest.raises(UserError, match="preset"):
        TrainConfig.preset("casp")
