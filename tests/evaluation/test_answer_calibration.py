"""The calibration of strategies' answers, from their records alone."""

import json

import numpy as np
import pytest

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.evaluation import answer_records
from caspo_jax.evaluation.answer_calibration import COLUMNS, calibration_table
from caspo_jax.evaluation.formats import tables
from caspo_jax.evaluation.strategies.base import Answer


def records(scale=1.0, strategy="sample"):
    rng = np.random.default_rng(3)
    made = []
    for q in range(20):
        for i in range(4):
            c = rng.random()
            right = bool(rng.random() < c)
            made.append(Answer(strategy, "1", f"q{q}", "1", right, 9, 10, index=i, path_confidence=scale * c))
    return [answer_records.answer_record(a, "x", {}) for a in made]


def test_a_row_by_hand_and_in_words():
    made = records()
    (row,) = calibration_table(made, draws=50)
    c, right = (np.array([r[f] for r in made], float) for f in ("path_confidence", "correct"))
    question = [r["question"] for r in made]
    assert (row["questions"], row["answers"]) == (20, 80)
    assert row["auroc"] == pytest.approx(metrics.auroc(c, right), abs=1e-3)
    within = metrics.within_question_auroc(c, right, question)
    assert row["within_question"] == pytest.approx(within.value)
    assert row["within_question_groups"] == within.groups
    assert row["bias"] == pytest.approx(metrics.bias(c, right))
    assert row["ece_scaled"] == pytest.approx(metrics.ece_scaled(c, right, question))
    assert row["bias_low"] < row["bias"] < row["bias_high"]
    text = tables([row], COLUMNS)
    assert f"[{row['brier_low']:.3f}, {row['brier_high']:.3f}]" in text


def test_the_order_of_the_file_does_not_matter():
    made = records()
    assert calibration_table(made[::-1], draws=20) == calibration_table(made, draws=20)


def test_a_confidence_beyond_1_is_scaled_alone():
    (row,) = calibration_table(records(scale=8.0), draws=5)
    assert "ece" not in row
    assert 0 < row["brier_scaled"] < 0.25


def test_answers_without_a_path_confidence_have_no_row():
    """Votes; and all answers of an earlier version."""
    votes = [answer_records.answer_record(Answer("vote", "4", "q", "1", True, 9, 10), "x", {})]
    earlier = [{k: v for k, v in r.items() if k != "path_confidence"} for r in records(strategy="greedy")]
    assert calibration_table([*votes, *earlier]) == []


def test_a_path_confidence_that_is_no_number_is_named(tmp_path):
    lines = records()[:2]
    lines[1]["path_confidence"] = "high"
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"answers\.jsonl:2: `path_confidence` of an answer"):
        answer_records.read_answers(tmp_path)
