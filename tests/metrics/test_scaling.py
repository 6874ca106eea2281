import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from sklearn.linear_model import LogisticRegression

from caspo_jax import metrics
from caspo_jax.errors import UserError


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"question {i}" for i in range(120)], 6)
    confidence = rng.beta(5, 2, size=groups.size)
    return confidence, (rng.random(groups.size) < confidence**2).astype(int), groups


def log_loss(p, correct):
    return -np.mean(np.where(correct == 1, np.log(p), np.log1p(-p)))


def test_power_minimises_the_log_loss(data):
    confidence, correct, _ = data
    best = minimize_scalar(lambda a: log_loss(confidence**a, correct), bounds=(0.01, 20), method="bounded")
    assert metrics.fit_power(confidence, correct) == pytest.approx(best.x, rel=1e-3)
    assert metrics.fit_power(confidence, correct) == pytest.approx(2.0, rel=0.15)


def test_the_power_is_where_the_slope_is_zero(data):
    """Also with confidences of 0 and 1, which stand for the nearest that have a logarithm."""
    confidence, correct, _ = data
    for given in (
        confidence,
        np.where(np.arange(confidence.size) % 9 == 0, np.round(confidence), confidence),
    ):
        power = metrics.fit_power(given, correct)
        u = -np.log(np.clip(given, 1e-12, 1 - 1e-6))
        right, wrong = u[correct == 1].sum(), u[correct == 0]
        assert (wrong / np.expm1(power * wrong)).sum() == pytest.approx(right, rel=1e-6)


def test_platt_against_scipy_and_sklearn(data):
    confidence, correct, _ = data
    logit = np.log(confidence / (1 - confidence))
    loss = lambda t: np.mean(np.logaddexp(0, t[0] * logit + t[1]) - correct * (t[0] * logit + t[1]))  # noqa: E731
    got = metrics.fit_platt(confidence, correct)
    np.testing.assert_allclose(got, minimize(loss, np.zeros(2)).x, atol=1e-3)
    oracle = LogisticRegression(C=1e6, tol=1e-8).fit(logit[:, None], correct)
    np.testing.assert_allclose(got, [oracle.coef_[0, 0], oracle.intercept_[0]], atol=1e-3)
    np.testing.assert_allclose(
        metrics.apply_platt(confidence, got), oracle.predict_proba(logit[:, None])[:, 1], atol=1e-3
    )


@pytest.mark.parametrize("method", ["power", "platt"])
def test_degenerate_data_stay_finite(method):
    fit = {"power": metrics.fit_power, "platt": metrics.fit_platt}[method]
    apply = {"power": metrics.apply_power, "platt": metrics.apply_platt}[method]
    confidence = np.array([0.0, 0.2, 0.9, 1.0])
    for correct, low, high in (
        ([1] * 4, 0.9, 1.0),
        ([0] * 4, 0.0, 0.5),
        ([0, 0, 1, 1], 0, 1),
        ([1, 1, 0, 0], 0, 1),
    ):
        p = apply(confidence, fit(confidence, correct))
        assert np.isfinite(p).all()
        assert low <= p.mean() <= high


def test_cross_fitting_never_sees_its_own_question(data):
    confidence, correct, groups = data
    scaled = metrics.cross_fitted(confidence, correct, groups, folds=5)
    one = groups == groups[0]
    flipped = np.where(one, 1 - correct, correct)
    np.testing.assert_array_equal(
        metrics.cross_fitted(confidence, flipped, groups, folds=5)[one], scaled[one]
    )
    # Five exponents, and a question's items share theirs.
    exponents = np.round(np.log(scaled) / np.log(confidence), 9)
    assert len(set(exponents.tolist())) == 5
    assert all(len(set(exponents[groups == g].tolist())) == 1 for g in set(groups.tolist()))
    # The folds depend on the questions, not on the order of the rows.
    order = np.random.default_rng(1).permutation(groups.size)
    again = metrics.cross_fitted(confidence[order], correct[order], groups[order], folds=5)
    np.testing.assert_allclose(again, scaled[order], rtol=1e-9)


def test_scaled_scores(data):
    confidence, correct, groups = data
    assert metrics.brier_scaled(confidence, correct, groups) < metrics.brier(confidence, correct) - 0.01
    assert metrics.ece_scaled(confidence, correct, groups) < 0.06
    assert metrics.expected_calibration_error(confidence, correct) > 0.12
    assert metrics.brier_scaled(confidence, correct, groups) == metrics.brier(
        metrics.cross_fitted(confidence, correct, groups), correct
    )
    platt = metrics.brier_scaled(confidence, correct, groups, method="platt")
    assert platt == pytest.approx(metrics.brier_scaled(confidence, correct, groups), abs=0.01)


def test_bad_input():
    with pytest.raises(UserError, match="at least 2 questions"):
        metrics.cross_fitted([0.5, 0.5], [0, 1], ["a", "a"])
    with pytest.raises(UserError, match="2 folds, got 2 and 1"):
        metrics.cross_fitted([0.5, 0.5], [0, 1], ["a", "b"], folds=1)
    with pytest.raises(UserError, match="unknown scaling method 'beta'"):
        metrics.cross_fitted([0.5, 0.5], [0, 1], ["a", "b"], method="beta")
    with pytest.raises(UserError, match="groups has 1 values for 2"):
        metrics.cross_fitted([0.5, 0.5], [0, 1], ["a"])
