"""Risk-coverage and precision-recall areas against scikit-learn, against all orders of ties, and against each other."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from caspo_jax import metrics
from caspo_jax.errors import UserError


def data(seed, n, levels):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, levels, n) / levels
    return confidence, (rng.random(n) < 0.2 + 0.6 * confidence).astype(float)


def orders(confidence):
    """Every order of the items that goes from sure to unsure."""
    values = sorted(set(confidence), reverse=True)
    ties = [np.flatnonzero(confidence == v) for v in values]
    for parts in itertools.product(*(itertools.permutations(t) for t in ties)):
        yield [i for part in parts for i in part]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(2, 6))
def test_aurc_is_the_mean_over_all_orders_of_ties(seed, n, levels):
    confidence, correct = data(seed, n, levels)
    k = np.arange(1, n + 1)
    areas = [np.mean(np.cumsum(1 - correct[order]) / k) for order in orders(confidence)]
    assert metrics.aurc(confidence, correct) == pytest.approx(np.mean(areas), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 80), st.sampled_from([3, 10, 10_000]))
def test_augrc_is_what_auroc_and_accuracy_make_it(seed, n, levels):
    confidence, correct = data(seed, n, levels)
    a, auroc = correct.mean(), metrics.auroc(confidence, correct)
    want = 0.5 * (1 - a) ** 2 + (0 if np.isnan(auroc) else (1 - auroc) * a * (1 - a))
    assert metrics.augrc(confidence, correct) == pytest.approx(want, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 80), st.sampled_from([3, 10, 10_000]))
def test_average_precision_against_sklearn(seed, n, levels):
    confidence, correct = data(seed, n, levels)
    correct[:2] = 0, 1
    got = metrics.average_precision(confidence, correct)
    assert got == pytest.approx(average_precision_score(correct, confidence), abs=1e-12)
    errors = metrics.average_precision(-confidence, 1 - correct)
    assert errors == pytest.approx(average_precision_score(1 - correct, -confidence), abs=1e-12)


@pytest.mark.parametrize("name", ["aurc", "augrc", "average_precision"])
def test_order_of_items_never_matters_and_weights_are_repetitions(name):
    statistic = getattr(metrics, f"{name}_statistic")
    confidence, correct = data(3, 60, 5)
    order = np.random.default_rng(4).permutation(60)
    assert statistic(confidence, correct)(np.ones(60)) == pytest.approx(
        statistic(confidence[order], correct[order])(np.ones(60)), abs=1e-12
    )
    times = np.random.default_rng(5).integers(0, 4, 60)
    repeated = statistic(np.repeat(confidence, times), np.repeat(correct, times))(np.ones(times.sum()))
    assert statistic(confidence, correct)(times.astype(float)) == pytest.approx(repeated, abs=1e-12)


def test_one_class_no_items_and_bad_weights():
    assert np.isnan(metrics.average_precision([0.1, 0.2], [1, 1]))
    assert np.isnan(metrics.average_precision([0.1, 0.2], [0, 0]))
    assert metrics.aurc([0.3, 0.2], [1, 1]) == 0.0
    assert metrics.aurc([0.3, 0.2], [0, 0]) == 1.0
    assert metrics.augrc([0.3, 0.2], [0, 0]) == 0.5
    assert np.isnan(metrics.aurc([], []))
    assert np.isnan(metrics.augrc([], []))
    with pytest.raises(UserError, match="multiplicities"):
        metrics.aurc([0.1, 0.2], [0, 1], weights=[0.5, 1])
    with pytest.raises(UserError, match="give integers"):  # though their tie has a whole weight
        metrics.aurc([0.1, 0.1], [0, 1], weights=[0.5, 0.5])


def test_curve_ends_at_the_error_rate():
    confidence, correct = data(1, 40, 4)
    curve = metrics.risk_coverage(confidence, correct)
    assert curve.coverage[-1] == 1.0
    assert curve.risk[-1] == pytest.approx(1 - correct.mean())
    assert (np.diff(curve.confidence) < 0).all()
    for coverage, risk, least in zip(*curve):
        kept = confidence >= least
        assert kept.mean() == coverage
        assert risk == pytest.approx(1 - correct[kept].mean())
