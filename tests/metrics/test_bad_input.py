"""What no metric takes in silence: missing scores, negative weights, another number of weights or groups than of items."""

import numpy as np
import pytest

from caspo_jax import metrics
from caspo_jax.errors import UserError

SCORES, VERDICTS, GROUPS = [0.1, 0.2, 0.3], [1, 0, 1], ["a", "b", "b"]
WEIGHTED = {
    name: getattr(metrics, name)
    for name in ("auroc", "aurc", "augrc", "average_precision", "entropy_gap", "brier", "bias")
} | {
    "ece": lambda c, y, weights: metrics.expected_calibration_error(c, y, weights=weights),
    "mass": lambda c, y, weights: metrics.equal_mass_calibration_error(c, y, weights=weights),
    "strata": lambda c, y, weights: metrics.stratified_auroc(c, y, GROUPS, weights=weights),
}
STATISTICS = {
    "mean": metrics.mean_statistic(SCORES),
    "ratio": metrics.ratio_statistic(SCORES, VERDICTS),
    "auroc": metrics.auroc_statistic(SCORES, VERDICTS),
    "grouped": metrics.grouped_auroc_statistic(SCORES, VERDICTS, GROUPS),
    "strata": metrics.stratified_auroc_statistic(SCORES, VERDICTS, GROUPS),
    "gap": metrics.entropy_gap_statistic(SCORES, VERDICTS),
    "ece": metrics.ece_statistic(SCORES, VERDICTS),
    "mass": metrics.equal_mass_ece_statistic(SCORES, VERDICTS),
    "brier": metrics.brier_statistic(SCORES, VERDICTS),
    "bias": metrics.bias_statistic(SCORES, VERDICTS),
    "aurc": metrics.aurc_statistic(SCORES, VERDICTS),
    "augrc": metrics.augrc_statistic(SCORES, VERDICTS),
    "ap": metrics.average_precision_statistic(SCORES, VERDICTS),
    "f1": metrics.processbench_f1_statistic([0, 1, -1], [0, -1, -1]),
    "spearman": metrics.spearman_statistic(SCORES, VERDICTS),
    "kendall": metrics.kendall_statistic(SCORES, VERDICTS, GROUPS),
    "cmfg": metrics.cmfg_statistic(SCORES, SCORES),
    "cmfg_star": metrics.cmfg_star_statistic(SCORES, SCORES),
}


@pytest.mark.parametrize("metric", WEIGHTED.values(), ids=WEIGHTED)
@pytest.mark.parametrize("weights", [[-1, 1, 3], [1, float("inf"), 1], [1, float("nan"), 1], [1, 1]])
def test_weights(metric, weights):
    with pytest.raises(UserError, match="weights"):
        metric(SCORES, VERDICTS, weights=weights)
    metric(SCORES, VERDICTS, weights=[0, 1, 2])


@pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS)
def test_one_group_an_item(statistic):
    for groups in (GROUPS[:2], [*GROUPS, "c"]):
        with pytest.raises(UserError, match="a statistic of 3 items was given weights of shape"):
            metrics.bootstrap_interval(statistic, groups, draws=5)
        with pytest.raises(UserError, match="for each item"):
            metrics.paired_difference(statistic, statistic, GROUPS, groups, draws=5)
    metrics.bootstrap_interval(statistic, GROUPS, draws=5)


@pytest.mark.parametrize("groups", [[float("nan"), "b", "b"], np.array([np.nan, np.nan, 1.0])])
def test_a_group_is_not_missing(groups):
    for take in (
        lambda: metrics.bootstrap_interval(STATISTICS["mean"], groups, draws=5),
        lambda: metrics.grouped_auroc(SCORES, VERDICTS, groups),
        lambda: metrics.cross_fitted(SCORES, VERDICTS, groups),
    ):
        with pytest.raises(UserError, match="groups hold NaN"):
            take()


@pytest.mark.parametrize("correlation", [metrics.spearman, metrics.kendall])
def test_correlations(correlation):
    assert correlation([1, 2, 3], (3, 5, 9)) == pytest.approx(1.0)
    # An event of probability 0 has a log-prob, and a rank.
    assert correlation([-np.inf, 2, 3], [-np.inf, 5, 9]) == pytest.approx(1.0)
    assert np.isnan(correlation([], []))
    assert np.isnan(correlation([1], [2]))
    for x, y, message in (
        ([1, np.nan, 3], [1, 2, 3], r"x\[1\] is NaN"),
        ([1, 2, 3], [1, 2, None], r"y\[2\] is NaN"),
        ([1, 2, 3], [1, 2], "give one each"),
        ([[1, 2]], [[1, 2]], "1-D"),
    ):
        with pytest.raises(UserError, match=message):
            correlation(x, y)


def test_faithfulness():
    for empty in (7.0, -0.1):
        with pytest.raises(UserError, match="empty"):
            metrics.cmfg([1.0], [0.5], empty=empty)
        with pytest.raises(UserError, match="empty"):
            metrics.cmfg_statistic([1.0], [0.5], empty=empty)
    with pytest.raises(UserError, match="missing"):
        metrics.average_ties([0.5, None], [0.5, 0.5])
    with pytest.raises(UserError, match="lengths differ"):
        metrics.average_ties([0.5], [0.5, 0.5])
    for index, least in (([-1, 0], 10), ([0, 1], 0), ([[0, 1]], 10)):
        with pytest.raises(UserError, match="places"):
            metrics.position_groups(index, least)
    with pytest.raises(UserError, match="give one each"):
        metrics.ratio_statistic([1.0, 2.0], [1.0])
