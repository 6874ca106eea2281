"""The table of confidences against scikit-learn and against the confidences computed one step at a time."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from caspo_jax import metrics
from caspo_jax.confidence import (
    PATH_CONFIDENCES,
    STEP_CONFIDENCES,
    TokenStats,
    path_confidence,
    register_path_confidence,
    register_step_confidence,
    step_confidence,
)
from caspo_jax.confidence import path as path_module
from caspo_jax.confidence import step as step_module
from caspo_jax.errors import UserError
from caspo_jax.evaluation.confidence_items import confidence_items
from caspo_jax.evaluation.confidences import confidence_table, overview
from caspo_jax.steps import segment_trace
from caspo_jax.types import Trace

SPELLED = [b"a", b"b", b"\n\n", b"c", b""]  # the last is end-of-sequence
FIELDS = ("top1_logprob", "top2_logprob", "mean_top20_logprob", "uniform_kl")


def make(rng, question, verdicts):
    ids = []
    for _ in verdicts:
        ids += [int(i) for i in rng.choice([0, 1, 3], rng.integers(1, 5))] + [2]
    ids[-1] = 4
    n = len(ids)
    trace = Trace(
        question, question, "1", None, (0,), tuple(ids), "", "eos", "1", bool(rng.random() < 0.5),
        entropy=tuple(rng.random(n)), logprob=tuple(-rng.random(n) * 2),
    )  # fmt: skip
    trace = segment_trace(trace, SPELLED)
    steps = tuple(dataclasses.replace(s, verdict=v) for s, v in zip(trace.steps, verdicts, strict=True))
    stats = {"entropy": np.array(trace.entropy), "logprob": np.array(trace.logprob)}
    stats |= {f: (rng.random(n) if f == "uniform_kl" else -rng.random(n)) for f in FIELDS}
    stats["top2_logprob"] = stats["top1_logprob"] - rng.random(n)
    return dataclasses.replace(trace, steps=steps), TokenStats(**stats)


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    kinds = ["correct", "wrong", "unknown"]
    return [
        make(rng, f"q{i % 12}", [str(v) for v in rng.choice(kinds, rng.integers(1, 5), p=[0.5, 0.4, 0.1])])
        for i in range(60)
    ]


def test_every_confidence_is_there_and_is_that_of_the_step(made):
    traces, stats = zip(*made)
    steps, paths = confidence_items(traces, SPELLED, stats)
    assert set(steps.scores) == set(STEP_CONFIDENCES)
    assert set(paths.scores) == {f"{r}({n})" for r in PATH_CONFIDENCES for n in STEP_CONFIDENCES}
    row = path = 0
    for trace, fields in made:
        values = {name: [] for name in STEP_CONFIDENCES}
        for step in trace.steps:
            mask = np.zeros(len(trace.token_ids), bool)
            mask[step.token_start : step.token_end] = True
            mask &= np.array(trace.token_ids) != 2  # delimiters do not count
            for name in STEP_CONFIDENCES:
                values[name].append(float(step_confidence(name, fields, mask, len(SPELLED))))
            if step.verdict != "unknown":
                for name in STEP_CONFIDENCES:
                    assert np.exp(steps.scores[name][row]) == pytest.approx(values[name][-1], rel=1e-9)
                assert steps.right[row] == (step.verdict == "correct")
                assert steps.length[row] == mask.sum()
                assert steps.entropy[row] == pytest.approx(np.array(trace.entropy)[mask].mean())
                row += 1
        for name in STEP_CONFIDENCES:
            for rule in PATH_CONFIDENCES:
                want = path_confidence(rule, np.array(values[name]))
                assert np.exp(paths.scores[f"{rule}({name})"][path]) == pytest.approx(float(want), rel=1e-9)
        assert paths.right[path] == trace.correct
        path += 1
    assert row == steps.right.size
    assert path == len(traces)


def test_table_against_sklearn(made):
    traces, stats = zip(*made)
    steps, _ = confidence_items(traces, SPELLED, stats)
    seen = []
    table = confidence_table(steps, draws=50, progress=lambda *at: seen.append(at))
    rows = {row["confidence"]: row for row in table}
    assert seen == [(done, len(rows)) for done in range(1, len(rows) + 1)]
    assert set(rows) == {*STEP_CONFIDENCES, "length"}
    for name, logs in steps.scores.items():
        row, value, ranked = rows[name], np.exp(logs), np.round(logs, 4)
        assert row["auroc"] == pytest.approx(roc_auc_score(steps.right, ranked))
        assert row["auprc_errors"] == pytest.approx(average_precision_score(1 - steps.right, -ranked))
        assert row["auprc_correct"] == pytest.approx(average_precision_score(steps.right, ranked))
        for field in ("auroc", "auprc_errors", "auprc_correct", "aurc", "augrc"):
            assert row[f"{field}_low"] <= row[field] <= row[f"{field}_high"]
        assert row["within_question"] == pytest.approx(
            metrics.within_question_auroc(ranked, steps.right, steps.question).value
        )
        assert row["aurc"] == pytest.approx(metrics.aurc(ranked, steps.right))
        assert 0 < row["length_controlled_p"] <= 1
        if name in ("deepconf", "self_certainty"):
            assert "ece" not in row
        else:
            assert row["brier"] == pytest.approx(brier_score_loss(steps.right, value))
            assert row["ece"] == pytest.approx(metrics.expected_calibration_error(value, steps.right))
            want = metrics.brier_scaled(value, steps.right, steps.question)
            assert row["brier_scaled"] == pytest.approx(want)
    assert rows["length"]["auroc"] == pytest.approx(roc_auc_score(steps.right, -steps.length))
    head = overview(steps, draws=20)
    assert head["entropy_gap"] == pytest.approx(metrics.entropy_gap(steps.entropy, steps.right))
    assert head["questions"] == 12


def test_without_a_model_only_what_the_records_hold(made):
    steps, _ = confidence_items([t for t, _ in made], SPELLED)
    assert set(steps.scores) == {"entropy", "max_entropy", "tail_entropy", "first_token", "normalised", "mean_logprob", "sum_logprob"}  # fmt: skip


def test_long_paths_do_not_underflow():
    rng = np.random.default_rng(1)
    made = [make(rng, f"q{i}", ["correct"] * 4) for i in range(4)]
    low = [
        dataclasses.replace(t, logprob=tuple(np.array(t.logprob) - 500 - i)) for i, (t, _) in enumerate(made)
    ]
    _, paths = confidence_items(low, SPELLED)
    ranks = paths.scores["product(sum_logprob)"]
    assert len(set(ranks.tolist())) == 4
    counted = [sum(lp for lp, i in zip(t.logprob, t.token_ids) if i != 2) for t in low]
    np.testing.assert_allclose(ranks, counted)


def test_bad_traces_are_named(made):
    trace = made[0][0]
    with pytest.raises(UserError, match="annotate it again"):
        confidence_items([next(t for t, _ in made if len(t.steps) > 1)], SPELLED, delimiter="zz")
    with pytest.raises(UserError, match="no per-token entropy"):
        confidence_items([dataclasses.replace(trace, entropy=None)], SPELLED)
    unknown = dataclasses.replace(
        trace, steps=tuple(dataclasses.replace(s, verdict="unknown") for s in trace.steps)
    )
    with pytest.raises(UserError, match="annotate the traces first"):
        confidence_table(confidence_items([unknown], SPELLED)[0])


@pytest.fixture
def registries():
    """The registries of confidences, as they were again after a test."""
    tables = (STEP_CONFIDENCES, PATH_CONFIDENCES, step_module._FORMULAS, path_module._VALUES)
    before = [dict(table) for table in tables]
    yield
    for table, values in zip(tables, before, strict=True):
        table.clear()
        table.update(values)


def test_registered_confidences_of_any_size_are_in_the_tables(made, registries):
    register_step_confidence("mine", ("entropy",), lambda xp, stats, mask, size: 5.0 + xp.exp(-xp.sum(xp.where(mask, stats.entropy, 0.0), axis=-1)))  # fmt: skip
    register_path_confidence("root", lambda xp, state: xp.sqrt(state.minimum))
    steps, paths = confidence_items([t for t, _ in made], SPELLED)
    np.testing.assert_allclose(paths.scores["root(mine)"], paths.scores["min(mine)"] / 2)
    np.testing.assert_allclose(paths.scores["root(entropy)"], paths.scores["min(entropy)"] / 2)
    of_steps, of_paths = (
        {row["confidence"]: row for row in confidence_table(items, draws=5)} for items in (steps, paths)
    )
    # Nobody says that they lie in [0, 1]: no calibration as they are, only after c / (1 + c) and the scaling.
    for row in (of_steps["mine"], of_paths["min(mine)"], of_paths["root(entropy)"]):
        assert "ece" not in row
        assert 0 <= row["brier_scaled"] <= 1
    sure = 1 / (1 + np.exp(-steps.scores["mine"]))
    assert of_steps["mine"]["brier_scaled"] == pytest.approx(
        metrics.brier_scaled(sure, steps.right, steps.question)
    )
    assert "ece" in of_paths["min(entropy)"]


def test_negative_confidences_are_refused(made, registries):
    register_step_confidence("signed", ("entropy",), lambda xp, stats, mask, size: -xp.sum(xp.where(mask, stats.entropy, 0.0), axis=-1))  # fmt: skip
    with pytest.raises(UserError, match=r"'signed' is -.* must be 0 or more"):
        confidence_items([t for t, _ in made], SPELLED)
