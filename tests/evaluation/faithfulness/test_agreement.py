"""Rank correlations against SciPy's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import agreement

SCORES = st.sampled_from([None, 0.0, 0.1, 0.25, 0.5, 0.5000001, 0.9, 1.0])


def same(ours, theirs):
    return (math.isnan(ours) and math.isnan(theirs)) or ours == pytest.approx(theirs, abs=1e-9)


@given(st.lists(st.tuples(SCORES, SCORES), max_size=40))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_against_scipy(pairs):
    (found,) = agreement({"a": [x for x, _ in pairs], "b": [y for _, y in pairs]})
    both = [(x, y) for x, y in pairs if x is not None and y is not None]
    assert found.steps == len(both)
    assert found.only_first == sum(x is not None and y is None for x, y in pairs)
    assert found.only_second == sum(x is None and y is not None for x, y in pairs)
    if len(both) < 2:
        assert math.isnan(found.spearman)
        assert math.isnan(found.kendall)
        return
    x, y = np.array(both).T
    assert same(found.spearman, stats.spearmanr(x, y).statistic)
    assert same(found.kendall, stats.kendalltau(x, y).statistic)
    assert found.mean_absolute_difference == pytest.approx(np.abs(x - y).mean())
    assert found.mean_difference == pytest.approx((x - y).mean())


def test_many_continuous_scores_are_fast_and_right():
    rng = np.random.default_rng(0)
    x = rng.random(5000)
    y = np.clip(0.7 * x + 0.3 * rng.random(5000), 0, 1)
    (found,) = agreement({"a": x.tolist(), "b": y.tolist()})
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)


def test_every_pair_in_order_and_its_record():
    found = agreement({"a": [0.1, 0.5], "b": [0.2, 0.6], "c": [0.5, None]})
    assert [(f.first, f.second) for f in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[0].spearman == found[0].kendall == 1.0
    assert found[0].mean_difference == pytest.approx(-0.1)
    assert found[1].to_record()["spearman"] is None
    assert found[1].to_record()["steps"] == 1
    assert agreement({"a": [0.5]}) == []


def test_bad_scores_are_named():
    with pytest.raises(UserError, match="a has 1, b has 2"):
        agreement({"a": [0.5], "b": [0.5, 0.5]})
    with pytest.raises(UserError, match=r"b\[1\] = -1.0 lies outside"):
        agreement({"a": [0.5, 0.5], "b": [0.5, -1]})
