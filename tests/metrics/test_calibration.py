import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from caspo_jax import metrics
from caspo_jax.errors import UserError


def ece_by_loops(confidence, correct, bins):
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (b == 0 and c == 0)]
        if inside:
            total += abs(sum(confidence[i] for i in inside) - sum(correct[i] for i in inside))
    return total / len(confidence)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from([1, 7, 10, 15]))
def test_ece_against_loops(seed, n, bins):
    rng = np.random.default_rng(seed)
    # Half of the confidences sit exactly on edges.
    confidence = np.where(rng.random(n) < 0.5, rng.integers(0, bins + 1, n) / bins, rng.random(n))
    correct = rng.random(n) < 0.6
    got = metrics.expected_calibration_error(confidence, correct, bins)
    assert got == pytest.approx(ece_by_loops(confidence, correct, bins), abs=1e-12)
    order = rng.permutation(n)
    assert metrics.expected_calibration_error(confidence[order], correct[order], bins) == pytest.approx(
        got, abs=1e-12
    )


def test_bins_are_right_closed_and_hold_both_ends():
    bins = metrics.reliability([0.0, 0.1, 0.3, 0.5, 1.0], [0, 0, 1, 1, 1])
    assert bins.counts.tolist() == [2, 0, 1, 0, 1, 0, 0, 0, 0, 1]
    assert bins.confidence[0] == pytest.approx(0.05)
    assert bins.accuracy[9] == 1.0
    assert np.isnan(bins.accuracy[1])
    np.testing.assert_allclose(bins.edges, np.linspace(0, 1, 11))
    # Rounding errors of an edge count as the edge: in float32, and in 1 - 0.9, 0.1 + 0.2, 0.7 * 10 / 10.
    for values in (np.float32([0.1, 0.3, 0.6, 0.7]), [1 - 0.9, 0.1 + 0.2, 1 - 0.4, 1 - 0.3]):
        assert np.flatnonzero(metrics.reliability(values, [1] * 4).counts).tolist() == [0, 2, 5, 6]


def test_known_values():
    assert metrics.expected_calibration_error([1.0, 1.0, 0.0, 0.0], [1, 1, 0, 0]) == 0.0
    assert metrics.expected_calibration_error([0.9] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.4)
    assert metrics.bias([0.9] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.4)
    assert metrics.brier([0.8, 0.3], [1, 0]) == pytest.approx((0.04 + 0.09) / 2)
    assert np.isnan(metrics.expected_calibration_error([], []))
    assert np.isnan(metrics.brier([], []))


def test_brier_against_sklearn():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(200), rng.random(200) < 0.3
    assert metrics.brier(confidence, correct) == pytest.approx(brier_score_loss(correct, confidence))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_equal_mass_against_loops_and_order_free(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 50))
    confidence = rng.random(n) if seed % 2 else rng.integers(0, 6, n) / 5
    correct = (rng.random(n) < confidence).astype(int)
    got = metrics.equal_mass_calibration_error(confidence, correct, 5)
    order = rng.permutation(n)
    assert metrics.equal_mass_calibration_error(confidence[order], correct[order], 5) == pytest.approx(
        got, abs=1e-12
    )
    if seed % 2:  # without ties: plain equal-count bins
        parts = np.array_split(np.argsort(confidence), 5)
        want = sum(abs((confidence[p] - correct[p]).sum()) for p in parts) / n
        assert got == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    "statistic",
    [metrics.ece_statistic, metrics.brier_statistic, metrics.bias_statistic, metrics.auroc_statistic],
)
def test_weights_are_repetitions(statistic):
    rng = np.random.default_rng(1)
    confidence, correct = np.round(rng.random(40), 1), rng.integers(0, 2, 40)
    times = rng.integers(0, 4, 40)
    repeated = statistic(np.repeat(confidence, times), np.repeat(correct, times))(np.ones(times.sum()))
    assert statistic(confidence, correct)(times.astype(float)) == pytest.approx(repeated, abs=1e-12)


def test_bad_input():
    for function in (metrics.expected_calibration_error, metrics.equal_mass_calibration_error, metrics.brier):
        with pytest.raises(UserError, match=r"confidence\[1\] = 1.5 lies outside"):
            function([0.5, 1.5], [0, 1])
        with pytest.raises(UserError, match=r"confidence\[0\] is NaN"):
            function([np.nan, 0.5], [0, 1])
        with pytest.raises(UserError, match="one verdict each"):
            function([0.5], [0, 1])
        with pytest.raises(UserError, match="other than 0 and 1"):
            function([0.5], [2])
    with pytest.raises(UserError, match="bins = 0"):
        metrics.expected_calibration_error([0.5], [1], 0)
    with pytest.raises(UserError, match="1-D"):
        metrics.brier([[0.5]], [[1]])
