import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from caspo_jax import metrics
from caspo_jax.errors import UserError


def concordance(scores, correct):
    pairs = [
        (a > b) + 0.5 * (a == b)
        for (a, x), (b, y) in itertools.product(zip(scores, correct), repeat=2)
        if x and not y
    ]
    return np.mean(pairs) if pairs else np.nan


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 40), st.booleans())
def test_auroc_is_concordance(seed, n, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, n).astype(float) if ties else rng.normal(size=n)
    correct = rng.random(n) < 0.5
    got = metrics.auroc(scores, correct)
    np.testing.assert_allclose(got, concordance(scores, correct), atol=1e-12)
    if len(set(correct.tolist())) == 2:
        assert got == pytest.approx(roc_auc_score(correct, scores), abs=1e-12)
        assert metrics.auroc(-scores, correct) == pytest.approx(1 - got, abs=1e-12)
        weights = rng.random(n) + 0.1
        assert metrics.auroc(scores, correct, weights) == pytest.approx(
            roc_auc_score(correct, scores, sample_weight=weights), abs=1e-9
        )


def test_auroc_edges():
    assert np.isnan(metrics.auroc([0.1, 0.2], [1, 1]))
    assert np.isnan(metrics.auroc([], []))
    assert metrics.auroc([0.3, 0.3], [0, 1]) == 0.5
    assert metrics.auroc([-np.inf, np.inf], [0, 1]) == 1.0
    assert np.isnan(metrics.auroc([0.1, 0.2], [0, 1], weights=[0.0, 1.0]))
    with pytest.raises(UserError, match="NaN"):
        metrics.auroc([np.nan, 1.0], [0, 1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 50))
def test_grouped_auroc_against_loops(seed, n):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, n) / 4
    correct = rng.random(n) < 0.5
    groups = [("q", int(g)) if g % 2 else f"p{g}" for g in rng.integers(0, 8, n)]
    each = []
    for group in set(groups):
        inside = [i for i, g in enumerate(groups) if g == group]
        each.append(concordance(scores[inside], correct[inside]))
    each = [value for value in each if not np.isnan(value)]
    got = metrics.within_prefix_auroc(scores, correct, groups)
    assert got.groups == len(each)
    np.testing.assert_allclose(got.value, np.mean(each) if each else np.nan, atol=1e-12)
    assert metrics.within_question_auroc(scores, correct, groups) == pytest.approx(got, nan_ok=True)
    weighted = metrics.grouped_auroc_statistic(scores, correct, groups)(np.ones(n))
    np.testing.assert_allclose(weighted, got.value, atol=1e-12)


def test_grouped_statistic_weighs_whole_groups():
    scores, correct, groups = [0.9, 0.1, 0.2, 0.8, 0.5, 0.5], [1, 0, 1, 0, 1, 0], list("aabbcc")
    statistic = metrics.grouped_auroc_statistic(scores, correct, groups)
    assert statistic(np.ones(6)) == pytest.approx((1 + 0 + 0.5) / 3)
    assert statistic(np.array([2.0, 2, 0, 0, 1, 1])) == pytest.approx((2 + 0.5) / 3)
    assert np.isnan(statistic(np.zeros(6)))
    # Also where a group's items stand apart.
    order = np.array([4, 0, 2, 1, 5, 3])
    apart = metrics.grouped_auroc_statistic(*(np.array(x)[order] for x in (scores, correct, groups)))
    assert apart(np.array([2.0, 2, 0, 0, 1, 1])[order]) == pytest.approx((2 + 0.5) / 3)


def test_entropy_gap():
    assert metrics.entropy_gap([0.1, 0.3, 0.9], [1, 1, 0]) == pytest.approx(0.7)
    assert np.isnan(metrics.entropy_gap([0.1, 0.3], [1, 1]))
    assert metrics.entropy_gap([0.1, 0.3, 0.9], [1, 1, 0], weights=[3, 1, 1]) == pytest.approx(0.75)
    with pytest.raises(UserError, match="entropy"):
        metrics.entropy_gap([0.1], [1, 0])
