"""AUROC among items of like length: against loops, against scipy's permutation test, and where length explains all."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from caspo_jax import metrics
from caspo_jax.errors import UserError


def by_loops(confidence, correct, strata, weights):
    wins = pairs = 0.0
    for i in range(len(correct)):
        for j in range(len(correct)):
            if strata[i] == strata[j] and correct[i] == 1 and correct[j] == 0:
                w = weights[i] * weights[j]
                pairs += w
                wins += w * ((confidence[i] > confidence[j]) + 0.5 * (confidence[i] == confidence[j]))
    return wins / pairs if pairs else np.nan


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_stratified_auroc_against_loops(seed, n):
    rng = np.random.default_rng(seed)
    confidence, correct, strata = rng.integers(0, 6, n) / 5, rng.integers(0, 2, n), rng.integers(0, 3, n)
    for weights in (np.ones(n), rng.integers(0, 3, n).astype(float)):
        got = metrics.stratified_auroc(confidence, correct, strata, weights)
        assert got == pytest.approx(by_loops(confidence, correct, strata, weights), abs=1e-12, nan_ok=True)


def test_one_stratum_is_plain_auroc():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(50), rng.integers(0, 2, 50)
    found = metrics.length_controlled_auroc(confidence, correct, rng.integers(1, 9, 50), strata=1)
    assert found.value == pytest.approx(roc_auc_score(correct, confidence))


def test_what_the_length_alone_explains_is_taken_out():
    rng = np.random.default_rng(1)
    length = rng.integers(1, 6, 4000)
    correct = (rng.random(4000) < 1 - 0.15 * length).astype(int)
    confidence = np.exp(-0.1 * length + 0.001 * rng.random(4000))
    assert metrics.auroc(confidence, correct) > 0.65
    found = metrics.length_controlled_auroc(confidence, correct, length, strata=50, draws=200)
    assert abs(found.value - 0.5) < 0.04
    assert found.p_value > 0.01
    assert found.length_only == pytest.approx(metrics.auroc(-length, correct))
    better = confidence * np.where(correct == 1, 1.05, 1.0)
    found = metrics.length_controlled_auroc(better, correct, length, strata=50, draws=200)
    assert found.value > 0.95
    assert found.p_value == 1 / 201


def test_null_against_scipy():
    rng = np.random.default_rng(2)
    confidence = rng.random(40)
    correct = (rng.random(40) < 0.35 + 0.4 * confidence).astype(int)
    mine = metrics.length_controlled_auroc(confidence, correct, np.ones(40), strata=1, draws=4000)
    theirs = stats.mannwhitneyu(confidence[correct == 1], confidence[correct == 0], method="exact")
    assert mine.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    assert mine.null_mean == pytest.approx(0.5, abs=0.01)


def test_pairs_and_null_by_hand():
    # Two strata of lengths 1 and 2, with 2 x 1 and 1 x 2 pairs; every order of the verdicts is one of 3 x 3.
    confidence, length = [0.9, 0.8, 0.1, 0.9, 0.2, 0.1], [1, 1, 1, 2, 2, 2]
    found = metrics.length_controlled_auroc(confidence, [1, 1, 0, 1, 0, 0], length, strata=2, draws=3000)
    assert (found.value, found.pairs) == (1.0, 4)
    assert found.p_value == pytest.approx(
        2 / 9, abs=0.03
    )  # as far from a half: all in order, or all against it
    assert found.null_high == 1.0  # one in nine is as high
    one = metrics.length_controlled_auroc(np.arange(20), [1] + [0] * 19, np.ones(20), strata=1, draws=4000)
    assert one.null_high == pytest.approx(1.0)  # the best and the worst place, one in twenty each
    assert (one.value, one.p_value) == (0.0, pytest.approx(0.1, abs=0.02))


def test_strata_hold_equal_lengths_together():
    length = np.array([5, 1, 1, 1, 1, 1, 9, 9, 2, 3])
    label = metrics.length_strata(length, 5)
    for value in set(length.tolist()):
        assert len(set(label[length == value].tolist())) == 1
    assert (np.diff(label[np.argsort(length, kind="stable")]) >= 0).all()
    with pytest.raises(UserError, match="strata = 0"):
        metrics.length_strata(length, 0)


def test_no_pairs_is_nan():
    found = metrics.length_controlled_auroc([0.1, 0.2], [1, 0], [1, 2], strata=2)
    assert np.isnan(found.value)
    assert found.pairs == 0
    assert np.isnan(metrics.length_controlled_auroc([], [], []).value)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12))
def test_paired_test_against_scipy(seed, n):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, n).astype(float), rng.integers(0, 2, n).astype(float)
    found = metrics.paired_permutation_test(a, b)
    want = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    )  # fmt: skip
    assert found.p_value == pytest.approx(min(1.0, want.pvalue), abs=1e-9)
    mcnemar = (
        stats.binomtest(found.better, found.better + found.worse).pvalue
        if found.better + found.worse
        else 1.0
    )
    assert found.p_value == pytest.approx(mcnemar, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8), st.sampled_from([3, 7, 10]))
@example([1, -3, 3, 1, -5, -3, 4, 2], 3)  # thirds that sum to 0, in whatever order only in whole numbers
def test_paired_test_of_shares_counts_as_whole_numbers_do(differences, parts):
    moved = [x for x in differences if x]
    sums = [
        abs(sum(s * x for s, x in zip(signs, moved)))
        for signs in itertools.product((1, -1), repeat=len(moved))
    ]
    found = metrics.paired_permutation_test(np.array(differences) / parts, np.zeros(len(differences)))
    assert found.p_value == np.mean(np.array(sums) >= abs(sum(moved)))
    assert found.difference == pytest.approx(np.mean(differences) / parts)
    assert (found.better, found.worse) == (sum(x > 0 for x in moved), sum(x < 0 for x in moved))


def test_paired_test_by_draws():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 2, 200).astype(float), rng.integers(0, 2, 200).astype(float)
    found = metrics.paired_permutation_test(a, b, draws=5000)
    assert found.p_value == pytest.approx(
        stats.binomtest(found.better, found.better + found.worse).pvalue, abs=0.03
    )
    assert metrics.paired_permutation_test(a, a).p_value == 1.0
    # The data are one of the patterns, and each of the others is drawn once: none here, and all of them here.
    assert metrics.paired_permutation_test(np.ones(60), np.zeros(60), draws=1500).p_value == 1 / 1501
    assert metrics.paired_permutation_test(np.arange(60) % 2, np.full(60, 0.5), draws=1500).p_value == 1.0
    with pytest.raises(UserError, match="same questions"):
        metrics.paired_permutation_test(a, b[1:])
