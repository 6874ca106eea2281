"""The threshold's promise: coverage over random splits, the beta-binomial point, and what may void it."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from scipy import stats

from caspo_jax.errors import UserError
from caspo_jax.evaluation.replay import RecordedPath, judged_paths, unjudged_paths, unpruned
from caspo_jax.evaluation.thresholds import (
    Calibration,
    beta_binomial_quantile,
    conformal_threshold,
    held_fixed,
    loss_rate,
    outside,
    question_score,
    split_rates,
)
from caspo_jax.models import load_pretrained
from caspo_jax.sampling import CatConfig, SampleConfig, cat_search
from caspo_jax.tasks import extract_answer, get_task


def population(rng, questions=400, paths=6):
    """Scores of questions with random paths, confidences and verdicts; some have no right path."""
    found = []
    for _ in range(questions):
        hard = rng.random()
        recorded = []
        for _ in range(paths):
            steps = int(rng.integers(0, 6))
            confidences = tuple(rng.beta(4, 1 + 2 * hard, steps))
            recorded.append(
                RecordedPath(tuple(range(1, steps + 1)), confidences, tuple(range(steps)), steps + 1, bool(rng.random() > hard))
            )  # fmt: skip
        found.append(question_score(recorded))
    return np.array(found)


def test_score_by_hand():
    def path(confidences, correct):
        n = len(confidences)
        return RecordedPath(tuple(range(1, n + 1)), tuple(confidences), tuple(range(n)), n + 1, correct)

    right, worse, wrong = path([0.9, 0.4, 0.8], True), path([0.3, 0.95], True), path([0.99], False)
    assert question_score([right, worse, wrong]) == 0.4
    assert math.isnan(question_score([wrong]))
    assert question_score([wrong, path([], True)]) == math.inf
    assert question_score([path([math.nan, 0.7], True)]) == 0.7


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_coverage_over_a_thousand_random_splits(alpha):
    rng = np.random.default_rng(0)
    scores = population(rng)
    answerable = int(np.isfinite(scores).sum() + np.isinf(scores).sum())
    rates = split_rates(scores, alpha, splits=1000, seed=1)
    assert len(rates) == 1000
    standard_error = rates.std() / math.sqrt(len(rates))
    assert rates.mean() <= alpha + 2 * standard_error
    # And not by pruning nothing: the promise is used up to one question.
    half = answerable // 2
    assert rates.mean() > math.floor(alpha * (half + 1)) / (half + 1) - 4 * standard_error - 0.01


def test_one_draw_is_beta_and_a_fresh_split_lies_under_its_beta_binomial_point():
    rng = np.random.default_rng(2)
    alpha, calibrated, fresh, draws = 0.1, 60, 80, 4000
    scores = rng.random((draws, calibrated + fresh))
    losses = np.empty(draws, int)
    for i, row in enumerate(scores):
        found = conformal_threshold(row[:calibrated], alpha)
        losses[i] = (row[calibrated:] < found.threshold).sum()
    k = math.floor(alpha * (calibrated + 1))
    theory = stats.betabinom(fresh, k, calibrated + 1 - k)
    assert losses.mean() == pytest.approx(theory.mean(), abs=4 * theory.std() / math.sqrt(draws))
    point = beta_binomial_quantile(0.975, fresh, k, calibrated)
    assert point == theory.ppf(0.975)
    assert (losses <= point).mean() >= 0.975 - 3 * math.sqrt(0.025 * 0.975 / draws)


@pytest.fixture(scope="module")
def sampled():
    """(tree, is each path right?) of unpruned searches on 200 questions of the tune split and 200 of the test split."""
    task = get_task("graph")
    model, tokenizer = load_pretrained(task.policy_path)
    config = unpruned(CatConfig(num_branches=4, sample=SampleConfig(max_new_tokens=96, temperature=0.7)))
    found = []
    for split in ("tune", "test"):
        questions = task.questions(split, 200, seed=11)
        results = cat_search(model, tokenizer, questions, config, jax.random.key(0), extract=extract_answer)
        found.append([(r.tree, [p.answer == q.gold for p in r.paths]) for r, q in zip(results, questions)])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.05, 0.1])
@pytest.mark.parametrize("rule", ["last", "path"])
def test_promise_on_the_shipped_policy(sampled, rule, alpha):
    tuned, fresh = (
        np.array(
            [question_score(judged_paths("", unjudged_paths(tree, rule), right)) for tree, right in split]
        )
        for split in sampled
    )
    rates = split_rates(np.concatenate([tuned, fresh]), alpha, splits=1000)
    assert rates.mean() <= alpha + 2 * rates.std() / math.sqrt(len(rates))
    assert rates.mean() > alpha / 3  # it is used, not void
    found = conformal_threshold(tuned, alpha)
    answerable = int((~np.isnan(fresh)).sum())
    lost = int((fresh < found.threshold).sum())
    assert lost <= beta_binomial_quantile(0.975, answerable, found.rank, found.answerable)


def test_quantile_against_scipy():
    for level, trials, k, n in [(0.5, 10, 1, 19), (0.975, 200, 9, 99), (0.025, 33, 4, 40), (0.975, 1, 2, 5)]:
        assert beta_binomial_quantile(level, trials, k, n) == stats.betabinom(trials, k, n + 1 - k).ppf(level)
    assert beta_binomial_quantile(0.975, 100, 0, 10) == 0


def test_rank_and_edges():
    scores = np.arange(1, 20) / 20  # n = 19
    assert conformal_threshold(scores, 0.05) == (0.05, 1, 19)
    assert conformal_threshold(scores, 0.1) == (0.1, 2, 19)
    assert conformal_threshold(scores[:18], 0.05) == (0.0, 0, 18)  # floor(0.95) = 0: never prune
    assert conformal_threshold([*scores, math.nan, math.nan], 0.1) == (0.1, 2, 19)
    assert (
        conformal_threshold([0.2, math.inf, math.inf], 0.6).threshold == 0.2
    )  # the 2nd is +inf: kept finite
    assert (
        conformal_threshold([0.2, 0.3, math.inf, math.inf], 0.6).threshold == 0.3
    )  # the largest that is finite
    assert conformal_threshold([math.inf] * 9, 0.5).threshold == 0.0
    assert conformal_threshold(np.arange(1, 100) / 100, 0.29) == (
        0.29,
        29,
        99,
    )  # .29 x 100 is a hair below 29
    assert conformal_threshold([0.5], 1 - 1e-10) == (0.5, 1, 1)  # no more than all
    assert conformal_threshold([math.nan], 1 - 1e-10) == (0.0, 0, 0)
    assert loss_rate([0.1, 0.2, math.nan], 0.2) == 0.5
    for alpha in (0.0, 1.0):
        with pytest.raises(UserError, match="alpha"):
            conformal_threshold(scores, alpha)


def test_the_halves_of_a_split_are_apart():
    """On the questions that it was calibrated on, a threshold would always lose the same share."""
    scores = np.random.default_rng(4).random(60)
    rates = split_rates(scores, 0.2, splits=200)
    assert rates.std() > 0.03  # of Beta(6, 25) and a sample of 30: .1
    assert len(set(rates.tolist())) > 5


def test_ties_only_lower_the_rate():
    rng = np.random.default_rng(3)
    rates = split_rates(np.round(rng.random(200), 1), 0.1, splits=500)
    assert rates.mean() < 0.1


def test_file_comes_back_and_is_checked(tmp_path):
    config = CatConfig(num_branches=4, prune="last", sample=SampleConfig(temperature=0.7, max_new_tokens=32))
    made = Calibration(0.61, 0.1, 5, 49, 60, "abc", held_fixed(config), prompts=("0123", "4567"))
    path = tmp_path / "calibration.json"
    made.save(path, note="x")
    read = Calibration.load(path)
    assert read == made
    assert read.apply(config, "abc").threshold == 0.61
    forked = dataclasses.replace(config, expand=2, min_live=2, num_branches=8, root_branches=4)
    assert read.apply(forked, "abc").threshold == 0.61
    with pytest.raises(UserError, match="policy abc, this is xyz"):
        read.apply(config, "xyz")
    hotter = dataclasses.replace(config, sample=dataclasses.replace(config.sample, temperature=1.0))
    with pytest.raises(UserError, match=r"temperature: 0.7 then, 1.0 now"):
        read.apply(hotter, "abc")
    with pytest.raises(UserError, match="branches: 4 then, 8 now"):
        read.apply(dataclasses.replace(config, num_branches=8), "abc")
    with pytest.raises(UserError, match="the guarantee covers path and last"):
        held_fixed(dataclasses.replace(config, prune="relative"))
    older = json.loads(path.read_text())
    del older["prompts"]
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert Calibration.load(tmp_path / "older.json") == dataclasses.replace(made, prompts=())
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="not a calibration file"):
        Calibration.load(tmp_path / "other.json")
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        Calibration.load(tmp_path / "torn.json")
    with pytest.raises(UserError, match="cannot read"):
        Calibration.load(tmp_path / "nowhere.json")


CHANGES = {
    "temperature": 0.8,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.05,
    "max_new_tokens": 31,
    "stop": ("Q",),
    "step_delimiter": "\n",
    "ignore_eos": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_the_paths_is_held(name):
    assert {f.name for f in dataclasses.fields(SampleConfig)} == {*CHANGES, "num_samples"}
    config = CatConfig(sample=SampleConfig(temperature=0.7, max_new_tokens=32))
    made = Calibration(0.61, 0.1, 5, 49, 60, "abc", held_fixed(config))
    other = dataclasses.replace(config, sample=dataclasses.replace(config.sample, **{name: CHANGES[name]}))
    with pytest.raises(UserError, match=rf"{name}: "):
        made.apply(other, "abc")


def test_a_path_confidence_is_held_where_it_prunes():
    for prune, held in (("path", True), ("last", False)):
        config = CatConfig(prune=prune)
        made = Calibration(0.61, 0.1, 5, 49, 60, "abc", held_fixed(config))
        assert (
            "path_confidence: 'geometric' then, 'min' now" in refusal(made, path_confidence="min")
        ) == held
        assert "step_confidence: 'mean_logprob' then" in refusal(made, step_confidence="entropy")
        assert f"prune: '{prune}' then" in refusal(made, prune="last" if held else "path")


def refusal(made, **changes):
    config = CatConfig(prune=made.search["prune"])
    try:
        made.apply(dataclasses.replace(config, **changes), "abc")
    except UserError as error:
        return str(error)
    return ""


def test_what_the_guarantee_leaves_out_is_said():
    assert outside(CatConfig(expand=1)) == []
    short = SampleConfig(max_new_tokens=8)
    assert outside(CatConfig(expand=2, num_answers=50, sample=short)) == []  # 7 others, at 7 tokens each
    assert "49 answers" in outside(CatConfig(expand=2, num_answers=49, sample=short))[0]
    assert "9 answers" in outside(CatConfig(expand=2, num_answers=9))[0]  # slots are forked into again
    assert "8 answers" in outside(CatConfig(expand=2))[0]
    assert "3 answers" in outside(CatConfig(expand=1, num_answers=3))[0]
    assert outside(CatConfig(expand=1, root_branches=3, num_answers=3)) == []
    assert "budget" in outside(CatConfig(expand=1, token_budget=100))[0]
    assert "decided" in outside(CatConfig(expand=1, stop_decided=True))[0]


def test_the_paths_of_a_calibration_are_whole_whatever_the_search_stops_at():
    config = CatConfig(stop_decided=True, token_budget=100, num_answers=3, threshold=0.9, root_branches=3)
    assert outside(unpruned(config)) == []
    assert unpruned(config) == CatConfig(num_branches=3, expand=1)
