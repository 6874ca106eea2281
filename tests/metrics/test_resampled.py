"""Statistics that resample themselves: all draws at once are the draws one by one."""

import numpy as np
import pytest

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.metrics.resampled import Resampled


def _data(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 9, 60)
    confidence = np.round(rng.random(60), 1)  # with ties
    return confidence, rng.integers(0, 2, 60).astype(float), groups, groups * 3 + rng.integers(0, 3, 60)


def _statistics(confidence, right, groups, prefixes):
    return {
        "mean": metrics.mean_statistic(confidence),
        "ratio": metrics.ratio_statistic(confidence * right, right),
        "auroc": metrics.auroc_statistic(confidence, right),
        "grouped": metrics.grouped_auroc_statistic(confidence, right, prefixes),
        "gap": metrics.entropy_gap_statistic(confidence, right),
        "ece": metrics.ece_statistic(confidence, right, bins=5),
        "equal mass": metrics.equal_mass_ece_statistic(confidence, right, bins=5),
        "brier": metrics.brier_statistic(confidence, right),
        "bias": metrics.bias_statistic(confidence, right),
        "aurc": metrics.aurc_statistic(confidence, right),
        "augrc": metrics.augrc_statistic(confidence, right),
        "average precision": metrics.average_precision_statistic(confidence, right),
    }


@pytest.mark.parametrize("name", _statistics(*_data(0)))
@pytest.mark.parametrize("seed", [0, 1])
def test_all_draws_at_once_are_the_draws_one_by_one(name, seed):
    """Also without ties, and with draws on which a verdict, or everything, is missing."""
    confidence, right, groups, prefixes = _data(seed)
    confidence = confidence if seed == 0 else np.random.default_rng(seed).random(60)
    statistic = _statistics(confidence, right, groups, prefixes)[name]
    assert isinstance(statistic, Resampled)
    counts = np.random.default_rng(seed).multinomial(9, np.full(9, 1 / 9), size=40).astype(float)
    counts[0] = 0.0
    counts[1] = np.eye(9)[3]
    one_by_one = [statistic(row[groups]) for row in counts]
    assert np.isnan(one_by_one[0])
    assert not np.isnan(one_by_one[2:]).any()
    np.testing.assert_allclose(statistic.resample(groups, counts), one_by_one, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["auroc", "ece", "gap", "aurc"])
def test_another_number_of_groups_than_of_items_is_refused(name):
    statistic = _statistics(*_data(0))[name]
    with pytest.raises(UserError, match=r"60 items was given weights of shape \(59,\)"):
        statistic.resample(np.zeros(59, np.int64), np.ones((2, 1)))
    with pytest.raises(UserError, match="one group"):
        metrics.bootstrap_interval(statistic, ["a"] * 61)


def test_resamples_shared_by_statistics_are_those_of_one():
    confidence, right, groups, _ = _data(2)
    other_groups, other = (
        groups[:50] + 4,
        confidence[:50],
    )  # questions 0 to 3 in the first only, 9 to 12 in the second
    mean, base, auroc = (
        metrics.mean_statistic(right),
        metrics.mean_statistic(other),
        metrics.auroc_statistic(confidence, right),
    )
    alone = metrics.Resamples.of(groups, draws=50, seed=3)
    assert alone.interval(auroc, 0.9) == metrics.bootstrap_interval(auroc, groups, 50, 3, 0.9)
    both = metrics.Resamples.of(groups, other_groups, draws=50, seed=3)
    assert both.counts.shape == (50, 13)
    assert both.difference(mean, base) == metrics.paired_difference(mean, base, groups, other_groups, 50, 3)
    assert both.ratio(mean, base) == metrics.paired_ratio(mean, base, groups, other_groups, 50, 3)
    # A function of the weights, such as a user writes, has the same draws as what resamples itself.
    by_hand = both.difference(lambda w: w @ right / w.sum(), lambda w: w @ other / w.sum())
    np.testing.assert_allclose(by_hand, both.difference(mean, base))
