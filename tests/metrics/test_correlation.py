"""Rank correlations against scipy, and as functions of weights against repeated items."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.metrics import correlation


def scores(rng, n):
    """Some ties, some not."""
    return np.where(rng.random(n) < 0.5, rng.integers(0, 4, n) / 4, rng.random(n))


@pytest.mark.filterwarnings("ignore:An input array is constant")  # SciPy, which gives NaN, as we do
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 40))
def test_weights_are_copies(seed, n):
    rng = np.random.default_rng(seed)
    x, y = scores(rng, n), scores(rng, n)
    groups = rng.integers(0, 5, n)
    copies = rng.integers(0, 4, 5)[groups]
    ones = np.ones(n)
    spearman = metrics.spearman_statistic(x, y)
    kendall = metrics.kendall_statistic(x, y, groups)
    assert spearman(ones) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-9, nan_ok=True)
    assert kendall(ones) == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-9, nan_ok=True)
    assert metrics.spearman(x, y) == pytest.approx(spearman(ones), abs=1e-9, nan_ok=True)
    assert metrics.kendall(x, y) == pytest.approx(kendall(ones), abs=1e-9, nan_ok=True)
    a, b = np.repeat(x, copies), np.repeat(y, copies)
    if len(np.unique(a)) > 1 and len(np.unique(b)) > 1:
        assert spearman(copies) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-9)
        assert kendall(copies) == pytest.approx(scipy.stats.kendalltau(a, b).statistic, abs=1e-9)
    else:
        assert np.isnan(spearman(copies))
        assert np.isnan(kendall(copies))


@pytest.mark.parametrize("seed", range(30))
def test_kendall_counts_the_same_in_blocks(seed, monkeypatch):
    """Few items are one block; of many only those of like score are compared one by one."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 120))
    x, y = scores(rng, n), rng.permutation(scores(rng, n))
    groups, draws = rng.integers(0, 6, n), rng.integers(0, 4, (8, 6))
    at_once = metrics.kendall_statistic(x, y, groups)
    monkeypatch.setattr(correlation, "_LEAST", 3)
    monkeypatch.setattr(correlation, "_BLOCKS", 9)
    in_blocks = metrics.kendall_statistic(x, y, groups)
    for copies in draws:
        np.testing.assert_array_equal(in_blocks(copies[groups]), at_once(copies[groups]))


def test_of_many_steps_kendall_compares_few_pairs(monkeypatch):
    """30,000 steps have 900 million pairs."""
    rng = np.random.default_rng(0)
    x, y, groups = rng.random(30_000), rng.integers(0, 9, 30_000) / 8, rng.integers(0, 200, 30_000)
    compared, all_pairs = [], correlation._all_pairs
    monkeypatch.setattr(
        correlation, "_all_pairs", lambda x, *given: compared.append(x.size**2) or all_pairs(x, *given)
    )
    found = metrics.kendall_statistic(x, y, groups)(np.ones(30_000))
    assert 0 < sum(compared) < 30_000**2 / 50
    assert found == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)


def test_undefined_and_bad():
    assert np.isnan(metrics.spearman_statistic([1.0, 1.0], [0.2, 0.3])(np.ones(2)))
    assert np.isnan(metrics.kendall_statistic([], [], [])(np.ones(0)))
    assert np.isnan(metrics.spearman_statistic([], [])(np.ones(0)))
    with pytest.raises(UserError, match="x has 2 values and y 1"):
        metrics.spearman_statistic([1.0, 2.0], [1.0])
    with pytest.raises(UserError, match="NaN"):
        metrics.kendall_statistic([np.nan], [1.0], ["q"])
