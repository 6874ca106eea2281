"""Likelihood displacement is warned of once."""

import warnings

import pytest

from caspo_jax.training import DisplacementMonitor, LikelihoodDisplacementWarning


def test_monitor_warns_once_after_a_whole_window():
    monitor = DisplacementMonitor(margin=0.5, window=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not monitor.update(1, -5.0)
        assert not monitor.update(2, 2.0)
        assert not monitor.update(3, 2.0)
        assert not monitor.update(4, -5.0)
    with pytest.warns(LikelihoodDisplacementWarning, match=r"update 5: .* 1\.33 nats"):
        assert monitor.update(5, -1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not monitor.update(6, -9.0)
    assert monitor.warned_at == 5


def test_a_fall_by_the_margin_is_no_fall_below_it():
    monitor = DisplacementMonitor(margin=0.5, window=2)
    assert not monitor.update(1, -0.75)
    assert not monitor.update(2, -0.25)
    with pytest.warns(LikelihoodDisplacementWarning):
        assert monitor.update(3, -1.0)
