"""The linear probe against scikit-learn; its split; its files."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from caspo_jax.confidence.probe import (
    SETTINGS,
    WEIGHTS,
    Probe,
    cross_fitted_probe,
    fit_probe,
    load_probe,
    save_probe,
)
from caspo_jax.errors import UserError


def data(n=300, width=12, seed=0):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 20, width)
    x = rng.normal(size=(n, width)) * scale + 5
    right = rng.random(n) < 1 / (1 + np.exp(-(x - 5) @ (rng.normal(size=width) / scale)))
    return x, right.astype(int), [f"q{i // 3}" for i in range(n)]


@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_against_scikit_learn(l2):
    x, y, _ = data()
    standard = (x - x.mean(0)) / x.std(0)
    want = LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-10).fit(standard, y)
    np.testing.assert_allclose(
        fit_probe(x, y, l2=l2).predict(x), want.predict_proba(standard)[:, 1], atol=2e-4
    )


def test_examples_not_learned_from_do_not_matter():
    x, y, _ = data()
    learn = np.arange(len(y)) % 3 > 0
    dirty, wrong = x.copy(), y.astype(float)
    dirty[~learn] *= -7
    wrong[~learn] = np.nan
    part = fit_probe(x[learn], y[learn])
    np.testing.assert_allclose(fit_probe(dirty, wrong, learn).predict(x), part.predict(x), atol=1e-4)


def test_no_copy_of_all_features_is_made_in_float64():
    """Steps of long thoughts have gigabytes of features in float32."""
    x = np.random.default_rng(0).standard_normal((5000, 1024), np.float32)
    y = (x[:, 0] > 0).astype(int)
    fit_probe(x[:100], y[:100], max_iterations=1)  # imports
    peaks = []
    for run in (lambda: fit_probe(x, y, max_iterations=1), lambda: any_probe(x).predict(x)):
        tracemalloc.start()
        run()
        peaks.append(tracemalloc.get_traced_memory()[1] / x.nbytes)
        tracemalloc.stop()
    assert peaks[0] < 1.5  # standardised, once
    assert peaks[1] < 1.5


def any_probe(x):
    """A probe of features like these."""
    ones = np.ones(x.shape[1], np.float32)
    return Probe(ones, 0.0, ones, ones)


def test_no_question_is_predicted_by_a_probe_that_has_seen_it():
    """Features that name the question: any leak would give away its verdicts."""
    questions = 30
    y = np.random.default_rng(1).permutation(np.repeat([0, 1], questions // 2))
    groups = np.repeat(np.arange(questions), 4)
    x = np.eye(questions)[groups]
    leaked = fit_probe(x, y[groups]).predict(x)
    assert ((leaked > 0.5) == y[groups]).all()
    held_out = cross_fitted_probe(x, y[groups], list(groups))
    for k in range(questions):
        assert np.ptp(held_out[groups == k]) < 1e-6
    assert not ((held_out > 0.5) == y[groups]).all()
    assert np.ptp(held_out) < 0.5


def test_folds_follow_the_seed_and_the_questions_names_alone():
    x, y, groups = data(90, 4)
    found = cross_fitted_probe(x, y, groups, folds=2)
    order = np.random.default_rng(0).permutation(90)
    again = cross_fitted_probe(x[order], y[order], [groups[i] for i in order], folds=2)
    np.testing.assert_allclose(again, found[order], atol=1e-4)
    other = cross_fitted_probe(x, y, groups, folds=2, seed=1)
    assert np.mean(np.abs(other - found) > 1e-3) > 0.5


def test_unknown_verdicts_are_predicted_never_learned():
    x, y, groups = data()
    unknown = y.astype(float)
    unknown[::2] = np.nan
    found = cross_fitted_probe(x, unknown, groups)
    assert np.isfinite(found).all()
    assert np.mean((found > 0.5) == y) > 0.7
    dirty = x.copy()
    dirty[::2] = dirty[::2][::-1]
    np.testing.assert_allclose(cross_fitted_probe(dirty, unknown, groups)[1::2], found[1::2], atol=1e-4)


def test_a_fold_whose_other_questions_have_one_verdict_has_no_prediction():
    x, _, _ = data(30)
    groups = ["wrong"] * 10 + ["right"] * 20
    assert np.isnan(cross_fitted_probe(x, np.repeat([0, 1], (10, 20)), groups)).all()


def test_save_and_load(tmp_path):
    x, y, _ = data(60)
    probe = fit_probe(x, y, settings={"final_norm": False})
    save_probe(probe, tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1, "weights readable by whoever may read the settings"
    read = load_probe(tmp_path)
    np.testing.assert_array_equal(read.predict(x), probe.predict(x))
    assert read.settings == {"final_norm": False}
    described = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(described | {"version": 9}))
    with pytest.raises(UserError, match="probe version 9"):
        load_probe(tmp_path)
    (tmp_path / SETTINGS).write_text(json.dumps(described | {"bias": "none"}))
    with pytest.raises(UserError, match="unreadable probe"):
        load_probe(tmp_path)
    (tmp_path / SETTINGS).write_text(json.dumps(described))
    save_probe(dataclasses.replace(probe, mean=probe.mean[:1]), tmp_path)  # would be broadcast
    with pytest.raises(UserError, match=r"expected weight, mean, scale of one length"):
        load_probe(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="unreadable probe"):
        load_probe(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="no probe here"):
        load_probe(tmp_path)


def test_bad_input():
    x, y, groups = data(30)
    with pytest.raises(UserError, match="both verdicts"):
        fit_probe(x, np.ones(30))
    with pytest.raises(UserError, match="features of shape"):
        fit_probe(x, y[:5])
    with pytest.raises(UserError, match="NaN or infinities"):
        fit_probe(np.where(x > 0, np.nan, x), y)
    with pytest.raises(UserError, match="this probe reads"):
        fit_probe(x, y).predict(x[:, :3])
    with pytest.raises(UserError, match="2 questions and 2 folds"):
        cross_fitted_probe(x, y, ["q"] * 30)
    assert len(set(groups)) > 2
