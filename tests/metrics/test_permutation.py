"""The permutation baseline, and the faithfulness metrics as functions of weights."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax import metrics
from caspo_jax.errors import UserError


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.booleans())
def test_weights_are_copies(seed, n, ties):
    rng = np.random.default_rng(seed)
    f, c = rng.random(n), rng.random(n)
    if ties:
        c = np.round(c * 5) / 5
    copies = rng.integers(0, 4, n)
    copies[0] += 1
    a, b = np.repeat(f, copies), np.repeat(c, copies)
    for empty in (0.5, None):
        assert metrics.cmfg_statistic(f, c, empty=empty)(copies) == pytest.approx(
            metrics.cmfg(a, b, empty=empty)
        )
    published = metrics.cmfg(a, b)  # an empty bin counts .5
    assert (
        metrics.cmfg_statistic(f, c)(copies)
        == metrics.weighted_cmfg(c)(copies)(f)
        == pytest.approx(published)
    )
    star = metrics.cmfg_star_statistic(f, c)
    assert star(copies) == pytest.approx(metrics.cmfg_star(metrics.average_ties(a, b), b))
    assert star(np.ones(n)) == pytest.approx(metrics.cmfg_star(metrics.average_ties(f, c), c))


def test_words_that_follow_the_confidence_have_skill_and_others_have_none():
    rng = np.random.default_rng(0)
    c = rng.random(400)
    position = np.tile(np.arange(4), 100)
    functions = {"mfg": lambda f: float(f.mean()), "star": lambda f: metrics.cmfg_star(f, c)}
    right = metrics.permutation_baseline(c, c, position, functions, draws=200)
    for found in right.values():
        assert found.value == pytest.approx(1.0)
        assert found.skill == pytest.approx(1.0)
        assert found.share == pytest.approx(1 / 201)
        assert found.low < found.mean < found.high < found.value
    # E |X - Y| of two uniform variables is 1/3.
    assert right["mfg"].mean == pytest.approx(2 / 3, abs=0.02)
    for other in (rng.permutation(c), np.full(400, 0.7)):
        found = metrics.permutation_baseline(other, c, position, functions, draws=200)["mfg"]
        assert abs(found.skill) < 0.1
        assert found.share > 0.02


def test_the_interval_and_the_share_are_those_of_the_draws():
    rng, seen = np.random.default_rng(3), []
    c, d = rng.random(30), rng.random(30)
    metric = lambda f: seen.append(float(f.mean())) or seen[-1]  # noqa: E731
    found = metrics.permutation_baseline(d, c, np.zeros(30), {"mfg": metric}, draws=200)["mfg"]
    drawn, value = np.array(seen[:-1]), seen[-1]
    assert found.value == value == pytest.approx(np.mean(1 - np.abs(d - c)))
    np.testing.assert_allclose((found.low, found.high), np.quantile(drawn, [0.025, 0.975]))
    assert found.share == (1 + np.sum(drawn >= value)) / 201


def test_only_steps_of_one_position_are_exchanged():
    d = np.array([0.0, 1.0, 0.0, 1.0])
    c = np.array([0.0, 1.0, 0.0, 1.0])
    same = metrics.permutation_baseline(d, c, [0, 1, 0, 1], {"mfg": lambda f: float(f.mean())}, draws=50)
    assert same["mfg"].mean == 1.0
    mixed = metrics.permutation_baseline(d, c, [0, 0, 0, 0], {"mfg": lambda f: float(f.mean())}, draws=50)
    assert mixed["mfg"].mean < 0.9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_the_mean_over_all_permutations(seed, n):
    """Against every permutation of a resample that is written out, for metrics that are linear in F."""
    rng = np.random.default_rng(seed)
    d, c = rng.integers(0, 4, n) / 4, rng.integers(0, 5, n) / 5
    place = rng.integers(0, 2, n) * 7
    weights = np.array([1, 2, 0, 1, 0])[:n]
    expected = metrics.permuted_faithfulness(d, c, place)(weights)
    copies = np.repeat(np.arange(n), weights)
    home = [np.flatnonzero(place[copies] == k) for k in (0, 7)]
    drawn = []
    for moves in itertools.product(*(itertools.permutations(part) for part in home)):
        moved = np.empty(copies.size, int)
        for part, move in zip(home, moves):
            moved[part] = list(move)
        drawn.append(1 - np.abs(d[copies][moved] - c[copies]))
    np.testing.assert_allclose(expected[copies], np.mean(drawn, axis=0), atol=1e-12)
    for metric in (metrics.cmfg, lambda f, c: metrics.cmfg_star(metrics.average_ties(f, c), c)):
        weighted = metrics.weighted_cmfg if metric is metrics.cmfg else metrics.weighted_cmfg_star
        assert weighted(c)(weights)(expected) == pytest.approx(
            np.mean([metric(np.clip(f, 0, 1), c[copies]) for f in drawn])
        )
    assert metrics.permuted_faithfulness([], [], [])(np.zeros(0)).size == 0


def test_late_positions_are_joined():
    index = np.concatenate([np.arange(n) for n in [3] * 12 + [4] * 8 + [9]])  # the fourth step in nine traces
    assert metrics.position_groups(index).max() == 2
    assert metrics.position_groups(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert metrics.position_groups([]).size == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(1, 12))
def test_no_position_is_left_to_fewer_traces_than_asked_for(index, least):
    """Also between positions of many traces: of long traces the first and the last step and a few others are sampled."""
    index = np.array(index)
    groups = metrics.position_groups(index, least)
    reached = np.bincount(index)
    asked = min(least, reached.max())
    assert np.bincount(groups)[groups].min() >= asked
    enough = reached[index] >= asked
    np.testing.assert_array_equal(groups[enough], index[enough])
    order = np.argsort(index, kind="stable")
    assert (np.diff(groups[order]) >= 0).all()  # neighbours stay neighbours


def test_bad_input():
    with pytest.raises(UserError, match="lengths differ"):
        metrics.permutation_baseline([0.1], [0.1, 0.2], [0], {})
    with pytest.raises(UserError, match="at least one"):
        metrics.permutation_baseline([], [], [], {})
    with pytest.raises(UserError, match="missing values"):
        metrics.cmfg_star_statistic([None, 0.5], [0.5, 0.5])
    with pytest.raises(UserError, match="lengths differ"):
        metrics.permuted_faithfulness([0.1], [0.1, 0.2], [0])
    assert np.isnan(metrics.skill(0.5, 1.0))
    assert np.isnan(metrics.skill(1.0, 1.0 - 1e-16))
    assert metrics.skill(0.85 + 2e-16, 0.85) == 0.0  # rounding is no skill
