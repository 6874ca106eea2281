"""The schedule of learning rates, the clip and the weight decay."""

import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.training import TrainConfig, make_optimizer, make_schedule


@pytest.mark.parametrize("steps, fraction", [(40, 0.1), (10, 0.03), (5, 0.0), (1, 0.5)])
def test_schedule(steps, fraction):
    config = TrainConfig(learning_rate=2e-3, warmup_fraction=fraction, final_fraction=0.1)
    schedule = make_schedule(config, steps)
    warmup = int(np.ceil(fraction * steps))
    for t in range(steps + 1):
        if t < warmup:
            expected = 2e-3 * (t + 1) / warmup
        else:
            done = (t - warmup) / max(steps - warmup, 1)
            expected = 2e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi * min(done, 1))) / 2)
        np.testing.assert_allclose(schedule(t), expected, rtol=1e-5)


def test_clipping_and_decay():
    params = {"kernel": jnp.full(4, 2.0), "final_norm": jnp.full(4, 2.0), "q_bias": jnp.full(4, 2.0)}
    config = TrainConfig(learning_rate=0.1, weight_decay=0.5, warmup_fraction=0, clip_norm=1.0)
    optimizer = make_optimizer(config, learning_rate=0.1)
    zeros = {name: jnp.zeros(4) for name in params}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    assert not np.any(updates["final_norm"])
    assert not np.any(updates["q_bias"])
    large = {name: jnp.full(4, 100.0) for name in params}
    _, state = optimizer.update(large, optimizer.init(params), params)
    moments = state[1][0].mu
    norm = np.sqrt(sum(np.sum(np.square(m)) for m in moments.values()))
    np.testing.assert_allclose(norm, 0.1 * 1.0, rtol=1e-5)  # (1 - b1) times the clipped norm


def test_an_update_is_as_large_as_the_rate_that_was_given():
    config, params = TrainConfig(learning_rate=1e-5, warmup_fraction=0, clip_norm=None), {"w": jnp.ones(3)}
    optimizer = make_optimizer(config, make_schedule(config, 10))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -1e-5, rtol=1e-5)
    with pytest.raises(TypeError, match="learning_rate"):
        make_optimizer(config)


def test_the_moments_are_those_that_were_asked_for():
    """Two updates of AdamW by hand."""
    settings = {"b1": 0.7, "b2": 0.6, "eps": 0.3, "clip_norm": None, "warmup_fraction": 0}
    optimizer, params = make_optimizer(TrainConfig(**settings), 0.1), {"w": jnp.ones(2)}
    first, second = np.array([0.5, -2.0]), np.array([1.0, 0.25])
    _, state = optimizer.update({"w": jnp.asarray(first)}, optimizer.init(params), params)
    updates, _ = optimizer.update({"w": jnp.asarray(second)}, state, params)
    mean = (0.7 * 0.3 * first + 0.3 * second) / (1 - 0.7**2)
    square = (0.6 * 0.4 * first**2 + 0.4 * second**2) / (1 - 0.6**2)
    np.testing.assert_allclose(updates["w"], -0.1 * mean / (np.sqrt(square) + 0.3), rtol=1e-5)
