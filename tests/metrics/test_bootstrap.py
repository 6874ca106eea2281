import time

import numpy as np
import pytest

from caspo_jax import metrics
from caspo_jax.errors import UserError


def test_mean_interval_against_the_normal_theory_of_question_means():
    rng = np.random.default_rng(0)
    questions, samples = 400, 5
    difficulty = rng.normal(size=questions)
    values = np.repeat(difficulty, samples) + 0.1 * rng.normal(size=questions * samples)
    groups = np.repeat(np.arange(questions), samples)
    found = metrics.bootstrap_interval(metrics.mean_statistic(values), groups, draws=2000)
    error = values.reshape(questions, samples).mean(1).std() / np.sqrt(questions)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(error, rel=0.1)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    # By item, the interval would be far too narrow.
    by_item = metrics.bootstrap_interval(metrics.mean_statistic(values), np.arange(values.size), draws=200)
    assert by_item.error < 0.6 * found.error


def test_resampling_is_repetition_of_whole_questions():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 12, 60)
    confidence, correct = np.round(rng.random(60), 1), rng.integers(0, 2, 60)
    seen = []
    metrics.bootstrap_interval(lambda w: seen.append(w) or 0.0, groups, draws=20, seed=3)
    assert (seen[0] == 1).all()
    for weights in seen[1:]:
        assert all(len(set(weights[groups == g])) == 1 for g in set(groups.tolist()))
        assert sum(weights[groups == g][0] for g in set(groups.tolist())) == len(set(groups.tolist()))
    times = seen[5].astype(int)
    repeated = metrics.auroc(np.repeat(confidence, times), np.repeat(correct, times))
    assert metrics.auroc(confidence, correct, weights=seen[5]) == pytest.approx(repeated)


def test_same_seed_same_draws_whatever_the_order_of_rows():
    rng = np.random.default_rng(2)
    values, groups = rng.random(50), np.array([f"q{i % 10}" for i in range(50)])
    order = rng.permutation(50)
    a = metrics.bootstrap_interval(metrics.mean_statistic(values), groups, draws=200, seed=7)
    b = metrics.bootstrap_interval(metrics.mean_statistic(values[order]), groups[order], draws=200, seed=7)
    np.testing.assert_allclose(a, b)
    assert metrics.bootstrap_interval(metrics.mean_statistic(values), groups, draws=200, seed=8) != a


def test_pairing():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(100), 4)
    base = np.repeat(rng.random(100), 4)
    better = base + 0.1
    found = metrics.paired_difference(
        metrics.mean_statistic(better), metrics.mean_statistic(base), groups, draws=200
    )
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    ratio = metrics.paired_ratio(
        metrics.mean_statistic(base * 0.5), metrics.mean_statistic(base), groups, draws=200
    )
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    # The other policy's items may come in another order and number: the questions are what is paired.
    flipped = np.arange(100)[::-1]
    other = metrics.paired_difference(
        metrics.mean_statistic(better), metrics.mean_statistic(base[::4][flipped]), groups, flipped, draws=200
    )
    np.testing.assert_allclose(other[:3], (0.1, 0.1, 0.1))


def test_the_ends_are_percentiles_of_the_draws():
    values, drawn = np.random.default_rng(6).random(30), []
    statistic = lambda w: drawn.append(float(w @ values)) or drawn[-1]  # noqa: E731
    found = metrics.bootstrap_interval(statistic, np.arange(30), draws=401, seed=2)
    draws = np.sort(drawn[1:])  # the first is of the data
    # 2.5 and 97.5 % of 401: the first draws with 10.025 and 390.975 of them at or below.
    assert (found.value, found.low, found.high) == (drawn[0], draws[10], draws[390])
    narrow = metrics.bootstrap_interval(statistic, np.arange(30), draws=401, seed=2, level=0.5)
    assert (narrow.low, narrow.high) == (draws[100], draws[300])


def test_undefined_draws_are_counted():
    correct = np.array([1, 0, 0, 0])
    found = metrics.bootstrap_interval(
        metrics.auroc_statistic([0.9, 0.1, 0.2, 0.3], correct), list("abcd"), draws=300
    )
    assert found.value == 1.0
    assert found.undefined == pytest.approx(300 * 0.75**4, abs=40)
    assert (found.low, found.high) == (1.0, 1.0)
    never = metrics.bootstrap_interval(metrics.auroc_statistic([0.9], [1]), ["a"], draws=10)
    assert np.isnan(never[:4]).all()
    assert never.undefined == 10
    with_zero = metrics.paired_ratio(
        metrics.mean_statistic([1, 1]), metrics.mean_statistic([0, 1]), ["a", "b"]
    )
    assert (with_zero.value, with_zero.high) == (2.0, np.inf)


def test_ratio_statistic():
    statistic = metrics.ratio_statistic([1, 0, 1], [1, 0, 2])
    assert statistic(np.ones(3)) == pytest.approx(2 / 3)
    assert statistic(np.array([2.0, 5.0, 0.0])) == 1.0
    assert np.isnan(statistic(np.array([0.0, 1.0, 0.0])))


def test_fast_enough_for_every_table():
    """1,000 draws over 1,000 questions x 8 samples; CPU time, as other processes may run."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(1000), 8)
    confidence = rng.random(8000)
    correct = (rng.random(8000) < confidence).astype(int)
    for statistic, limit in (
        (metrics.mean_statistic(correct), 2.0),
        (metrics.auroc_statistic(confidence, correct), 4.0),
    ):
        start = time.process_time()
        metrics.bootstrap_interval(statistic, groups)
        assert time.process_time() - start < limit


def test_bad_input():
    mean = metrics.mean_statistic([1.0])
    with pytest.raises(UserError, match="no items"):
        metrics.bootstrap_interval(mean, [])
    with pytest.raises(UserError, match="draws = 0"):
        metrics.bootstrap_interval(mean, ["a"], draws=0)
    with pytest.raises(UserError, match=r"level = 1\.5"):
        metrics.bootstrap_interval(mean, ["a"], level=1.5)


def test_one_question_does_not_say_how_much_questions_differ():
    mean = metrics.mean_statistic([1.0, 0.0, 1.0])
    for found in (
        metrics.bootstrap_interval(mean, ["a"] * 3, draws=20),
        metrics.paired_difference(mean, metrics.mean_statistic([0.0]), ["a"] * 3, ["a"], draws=20),
        metrics.paired_ratio(mean, metrics.mean_statistic([1.0]), ["a"] * 3, ["a"], draws=20),
    ):
        assert found.value == pytest.approx(2 / 3)
        assert np.isnan([found.low, found.high, found.error]).all()
        assert found.undefined == 20
    # A question that only one of the two answered is a question.
    two = metrics.paired_difference(mean, metrics.mean_statistic([0.0]), ["a", "a", "b"], ["a"], draws=200)
    assert two.low <= two.value <= two.high
    other = metrics.paired_difference(metrics.mean_statistic([0.0]), mean, ["a"], ["a", "a", "b"], draws=200)
    np.testing.assert_allclose((other.value, other.low, other.high), (-two.value, -two.high, -two.low))
