"""Debiased calibration errors and the Brier score's parts, against scipy, loops and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from caspo_jax import metrics
from caspo_jax.errors import UserError


def bins_of(confidence, bins):
    return np.clip(np.ceil(np.round(confidence * bins, 9)) - 1, 0, bins - 1).astype(int)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 100))
def test_debiased_ece_against_scipys_folded_normal(seed, n):
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    correct = (rng.random(n) < confidence**2).astype(float)
    index, total = bins_of(confidence, 5), 0.0
    for b in set(index):
        inside = index == b
        gap = abs(confidence[inside].mean() - correct[inside].mean())
        spread = np.sqrt(correct[inside].mean() * (1 - correct[inside].mean()) / inside.sum())
        expected = stats.foldnorm.mean(gap / spread, scale=spread) if spread > 0 else gap
        total += inside.mean() * (2 * gap - expected)
    assert metrics.debiased_calibration_error(confidence, correct, 5) == pytest.approx(total, abs=1e-9)


def test_debiased_squared_error_by_hand():
    confidence, correct = [0.9, 0.8, 0.7, 0.1, 0.3], [1, 1, 0, 0, 1]
    # Bins of equal width (0, .5] and (.5, 1]: gaps .2 - .5 and .8 - 2/3.
    wide = (2 * (0.3**2 - 0.25 / 1) + 3 * ((0.8 - 2 / 3) ** 2 - (2 / 9) / 2)) / 5
    assert metrics.debiased_squared_error(confidence, correct, 2, "width") == pytest.approx(wide)
    # Of equal counts, {.1, .3, .7} and {.8, .9}.
    mass = (3 * ((1.1 / 3 - 1 / 3) ** 2 - (2 / 9) / 2) + 2 * (0.15**2 - 0.0)) / 5
    assert metrics.debiased_squared_error(confidence, correct, 2) == pytest.approx(mass)
    # A bin of one item tells nothing of its own variance.
    assert metrics.debiased_squared_error([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 0], 2, "width") == pytest.approx(
        (0.8 - 2 / 3) ** 2 - (2 / 9) / 2
    )


def test_debiased_errors_are_near_zero_where_the_confidence_is_calibrated():
    rng = np.random.default_rng(0)
    plain, debiased, squared = [], [], []
    for _ in range(400):
        confidence = rng.random(150)
        correct = rng.random(150) < confidence
        plain.append(metrics.equal_mass_calibration_error(confidence, correct))
        debiased.append(metrics.debiased_calibration_error(confidence, correct, binning="mass"))
        squared.append(metrics.debiased_squared_error(confidence, correct))
    assert np.mean(plain) > 0.07
    assert abs(np.mean(debiased)) < 0.65 * np.mean(plain)
    assert abs(np.mean(squared)) < 3 * np.std(squared) / 20


def test_debiased_squared_error_finds_a_known_gap():
    rng = np.random.default_rng(1)
    values = [
        metrics.debiased_squared_error(np.full(100, 0.9), rng.random(100) < 0.7, 1) for _ in range(2000)
    ]
    assert np.mean(values) == pytest.approx(0.04, abs=3 * np.std(values) / np.sqrt(2000))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from([None, 1, 4, 10]))
def test_brier_parts_add_up_and_are_those_of_loops(seed, n, bins):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 11, n) / 10
    correct = (rng.random(n) < 0.5).astype(float)
    parts = metrics.brier_decomposition(confidence, correct, bins)
    assert parts.brier == pytest.approx(metrics.brier(confidence, correct), abs=1e-12)
    assert parts.brier == pytest.approx(
        parts.reliability - parts.resolution + parts.uncertainty + parts.within, abs=1e-12
    )
    groups = confidence if bins is None else bins_of(confidence, bins)
    reliability = resolution = within = 0.0
    for g in set(groups.tolist()):
        c, y = confidence[groups == g], correct[groups == g]
        reliability += len(c) / n * (c.mean() - y.mean()) ** 2
        resolution += len(c) / n * (y.mean() - correct.mean()) ** 2
        within += len(c) / n * (c.var() - 2 * np.mean((c - c.mean()) * (y - y.mean())))
    assert parts.reliability == pytest.approx(reliability, abs=1e-12)
    assert parts.resolution == pytest.approx(resolution, abs=1e-12)
    assert parts.within == pytest.approx(within, abs=1e-12)
    if bins is None:
        assert parts.within == pytest.approx(0.0, abs=1e-12)


def test_nothing_and_bad_input():
    assert all(np.isnan(metrics.brier_decomposition([], [])))
    assert np.isnan(metrics.debiased_calibration_error([], []))
    assert np.isnan(metrics.debiased_squared_error([0.5], [1], 10))
    with pytest.raises(UserError, match="choose from width, mass"):
        metrics.debiased_calibration_error([0.5], [1], binning="other")
