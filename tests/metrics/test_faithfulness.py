import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax import metrics
from caspo_jax.errors import UserError


def published_cmfg(f, c, bins=10):
    """np.digitize over [a, b) bins, an empty bin counts 0.5; with the fix that keeps C = 1.0."""
    index = np.digitize(c, np.arange(bins + 1) / bins) - 1
    index[c == 1.0] = bins - 1
    return np.mean([f[index == b].mean() if (index == b).any() else 0.5 for b in range(bins)])


def star_by_loops(f, c, bins=10):
    order = sorted(range(len(c)), key=lambda i: c[i])
    parts = np.array_split(np.array(order), min(bins, len(c)))
    edges = [c[parts[0][0]]]
    for left, right in itertools.pairwise(parts):
        edges.append((c[left[-1]] + c[right[0]]) / 2)
    edges.append(c[parts[-1][-1]])
    weights = [b - a for a, b in itertools.pairwise(edges)]
    if sum(weights) == 0:
        weights = [1.0] * len(parts)
    return sum(w * np.mean([f[i] for i in p]) for w, p in zip(weights, parts)) / sum(weights)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from([np.float64, np.float32]))
def test_against_references(seed, n, dtype):
    rng = np.random.default_rng(seed)
    f = rng.random(n).astype(dtype)
    c = rng.random(n).astype(dtype)
    c[rng.random(n) < 0.1] = 1.0
    assert metrics.mfg(f) == pytest.approx(f.mean(dtype=np.float64), abs=1e-6)
    assert metrics.cmfg(f, c) == pytest.approx(published_cmfg(f, c), abs=1e-6)
    assert metrics.cmfg_star(f, c) == pytest.approx(star_by_loops(f, c), abs=1e-6)
    missing = rng.random(n) < 0.3
    holes = [None if m else float(v) for m, v in zip(missing, f)]
    if not missing.all():
        assert metrics.mfg(holes) == pytest.approx(metrics.mfg(f[~missing]), abs=1e-6)
        assert metrics.cmfg(holes, c) == pytest.approx(metrics.cmfg(f[~missing], c[~missing]), abs=1e-6)
        assert metrics.cmfg_star(holes, c) == pytest.approx(
            metrics.cmfg_star(f[~missing], c[~missing]), abs=1e-6
        )


def test_consistency_values_are_binned_as_fractions():
    contradictions = np.arange(11)
    f = np.linspace(0, 1, 11)
    want = np.mean([*f[::-1][:9], (f[0] + f[1]) / 2])
    for c in (1 - contradictions / 10, (1 - contradictions / np.float32(10)).astype(np.float32)):
        assert metrics.cmfg(f, c) == pytest.approx(want)


def test_empty_bins_and_coverage():
    assert metrics.cmfg([1.0, 0.0], [0.05, 0.95]) == pytest.approx((1.0 + 0.0 + 8 * 0.5) / 10)
    assert metrics.cmfg([1.0, 0.0], [0.05, 0.95], empty=None) == pytest.approx(0.5)
    assert metrics.cmfg([0.8], [1.0], bins=1) == pytest.approx(0.8)
    for empty in (metrics.mfg([]), metrics.cmfg([None], [0.5]), metrics.cmfg_star([], [])):
        assert np.isnan(empty)


def test_star_weighs_width_and_falls_back_on_the_mean():
    # One outlier owns half of the range: bins {.0, .1} and {.2, 1.}, edges 0, .15, 1.
    assert metrics.cmfg_star([1, 1, 0, 0], [0.0, 0.1, 0.2, 1.0], bins=2) == pytest.approx(0.15)
    assert metrics.cmfg_star([1.0, 0.0, 0.5], [0.3, 0.3, 0.3]) == pytest.approx(0.5)
    assert metrics.cmfg_star([0.7], [0.3]) == pytest.approx(0.7)


def test_average_ties_makes_the_order_irrelevant():
    rng = np.random.default_rng(0)
    f, c = rng.random(40), rng.integers(0, 5, 40) / 4
    order = rng.permutation(40)
    averaged, shuffled = metrics.average_ties(f, c), metrics.average_ties(f[order], c[order])
    assert metrics.cmfg_star(averaged, c) == pytest.approx(metrics.cmfg_star(shuffled, c[order]), abs=1e-12)
    assert metrics.cmfg_star(f, c) != pytest.approx(metrics.cmfg_star(f[order], c[order]), abs=1e-6)
    assert averaged.mean() == pytest.approx(f.mean())


def test_bad_input():
    with pytest.raises(UserError, match=r"f\[1\] = -1.0 lies outside"):
        metrics.mfg([0.5, -1.0])
    with pytest.raises(UserError, match=r"c\[0\] = 1.2 lies outside"):
        metrics.cmfg([0.5], [1.2])
    with pytest.raises(UserError, match="lengths differ: f has 1, c has 2"):
        metrics.cmfg_star([0.5], [0.5, 0.6])
    with pytest.raises(UserError, match="bins = 0"):
        metrics.cmfg_star([0.5], [0.5], 0)
