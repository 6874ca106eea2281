"""The policy of a configuration: what it prunes, forks and measures, by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import config, copy_rows, decode

from caspo_jax.confidence import PATH_CONFIDENCES
from caspo_jax.confidence.path import path_init, path_update
from caspo_jax.errors import UserError
from caspo_jax.sampling import Boundary, Knobs, make_policy
from caspo_jax.sampling.branching import forks, pruned


def row(*values):
    return jnp.asarray([values])


# Three branches that closed a step, and a free slot.
LIVE = row(True, True, True, False)
VIEW = Boundary(
    live=LIVE,
    boundary=LIVE,
    step_confidence=row(0.9, 0.2, 0.7, 0.0),
    path_confidence=row(0.45, 0.52, 0.9, 0.0),
    steps=row(2, 2, 2, 0),
    node=row(4, 5, 6, -1),
)
PRUNED = {"last": [1], "path": [0, 1], "relative": [0]}


@pytest.mark.parametrize("prune", PRUNED)
@pytest.mark.parametrize("strategy", ["cat", "self_consistency", "explore"])
def test_a_strategy_prunes_by_its_rule_and_forks_or_does_neither(strategy, prune):
    settings = config(num_branches=4, threshold=0.55, min_live=0, prune=prune)
    policy, knobs = make_policy(decode, copy_rows, settings, strategy=strategy), Knobs.of(settings)
    cut = pruned(policy, knobs, VIEW)
    assert np.flatnonzero(cut[0]).tolist() == (PRUNED[prune] if strategy == "cat" else [])
    fork = forks(policy, knobs, VIEW, ~LIVE)
    assert (bool(fork.made[0, 3]), int(fork.source[0, 3])) == (
        (False, 3) if strategy == "self_consistency" else (True, 2)
    )


@pytest.mark.parametrize("name", ["geometric", "product", "min", "last"])
def test_a_path_is_measured_as_the_configuration_says(name):
    policy = make_policy(decode, copy_rows, config(path_confidence=name))
    steps, state = np.array([0.9, 0.3, 0.6]), path_init()
    for step in steps:
        state = path_update(state, jnp.float32(step))
    assert float(policy.path_confidence(state)) == pytest.approx(PATH_CONFIDENCES[name](steps), rel=1e-5)


def test_a_normalised_entropy_knows_the_vocabulary():
    policy = make_policy(decode, copy_rows, config(step_confidence="normalised"), vocab_size=50)
    got = policy.step_confidence({"entropy": row(1.0, 2.0, 9.0)}, row(True, True, False))
    assert float(got[0]) == pytest.approx(1 - 1.5 / np.log(50), rel=1e-5)


def test_a_rule_that_gives_one_number_for_all_branches_is_refused():
    settings = config(num_branches=4, threshold=0.55)
    policy, knobs = make_policy(decode, copy_rows, settings), Knobs.of(settings)
    one = dataclasses.replace(policy, prune=lambda knobs, view: 0.5, fork=lambda knobs, view: 1)
    with pytest.raises(UserError, match=r"`prune` gave shape \(\) for branches of shape \(1, 4\)"):
        pruned(one, knobs, VIEW)
    with pytest.raises(UserError, match=r"`fork` gave shape \(\) for branches of shape \(1, 4\)"):
        forks(one, knobs, VIEW, ~LIVE)
