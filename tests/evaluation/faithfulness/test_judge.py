"""A scripted model as judge of decisiveness."""

import inspect

import pytest

import caspo_jax.sampling
from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import (
    DecisivenessScorer,
    LocalDecisivenessJudge,
    judge_from_model,
    load_rubric,
    parse_rating,
)
from caspo_jax.types import Trace


def reply(question, text, finish="eos"):
    return Trace(question.id, None, None, None, (), (), text, finish)


@pytest.mark.parametrize(
    "text, rating",
    [
        ("It is asserted.\nDecisiveness: 0.9", 0.9),
        ("**Decisiveness: 1**\n\n", 1.0),
        ("decisiveness : 0", 0.0),
        ("<think>0.2? no</think>\nDecisiveness: 0.75.", 0.75),
        ("Decisiveness: 0.2? No.\n</think>Decisiveness: 0.75", 0.75),
        ("Decisiveness: 1.0", 1.0),
        ("`Decisiveness: 1.0`", 1.0),
        ("Decisiveness: 0.75\n</think>", None),
        ("Decisiveness: 0.9\nbut who knows", None),
        ("Decisiveness: 1.2", None),
        ("Decisiveness: -0.5", None),
        ("Decisiveness: 9", None),
        ("Decisiveness: .5", None),
        ("Decisiveness: 0.5 or 0.6", None),
        ("Decisiveness: 80%", None),
        ("Decisiveness: N", None),
        ("My decisiveness: 0.5", None),
        ("0.5", None),
        ("", None),
        ("Decisiveness:" + " " * 100_000 + "x", None),
    ],
)
def test_ratings_are_parsed_strictly(text, rating):
    assert parse_rating(text) == rating


def test_the_judge_asks_once_a_step_in_one_batch_and_fails_to_none():
    calls = []
    replies = {"sure": "Decisiveness: 1", "cut": "Decisiveness: 1", "mute": "I would not say."}

    def generate(questions, n):
        assert n == 1
        calls.append(questions)
        step = [q.question.split("==========\n")[1].split("\n")[0] for q in questions]
        return [
            reply(q, replies.get(s, "Decisiveness: 0.25"), "length" if s == "cut" else "eos")
            for q, s in zip(questions, step)
        ]

    judge = LocalDecisivenessJudge(generate)
    assert isinstance(judge, DecisivenessScorer)
    assert judge.score(["sure", " sure\n", "", "cut", "mute", r"a {step} \frac{1}{2}"]) == [
        1.0,
        1.0,
        None,
        None,
        None,
        0.25,
    ]
    assert len(calls) == 1
    assert len(calls[0]) == 4
    assert len({q.id for q in calls[0]}) == 4
    assert r"a {step} \frac{1}{2}" in calls[0][3].question  # braces in a step are no fields
    assert judge.score([]) == []
    assert judge.score(["  "]) == [None]
    assert len(calls) == 1


def test_a_judge_that_loses_a_reply_is_an_error():
    with pytest.raises(ValueError, match="0 traces for 1"):
        LocalDecisivenessJudge(lambda questions, n: []).score(["x"])


def test_a_judge_of_a_loaded_model_decodes_greedily_in_one_call(monkeypatch):
    signature = inspect.signature(caspo_jax.sampling.generate)
    seen = []

    def generate(*args, **kwargs):
        bound = signature.bind(*args, **kwargs).arguments  # the library's own arguments, no others
        seen.append(bound)
        return [reply(q, "Decisiveness: 0.5") for q in bound["questions"]]

    monkeypatch.setattr("caspo_jax.evaluation.faithfulness.judge.generate", generate)
    judge = judge_from_model("model", "tokenizer", max_new_tokens=64, batch_size=8, name="small")
    assert judge.score(["a", "b"]) == [0.5, 0.5]
    (call,) = seen
    config = call["config"]
    assert (config.temperature, config.num_samples, config.max_new_tokens) == (0.0, 1, 64)
    assert (call["model"], call["tokenizer"], call["batch_size"], judge.name) == (
        "model",
        "tokenizer",
        8,
        "small",
    )


def test_the_rubric_must_have_the_place_of_the_step(tmp_path):
    assert "{step}" in load_rubric()
    assert load_rubric().strip().endswith("Decisiveness: N")
    (tmp_path / "r.md").write_text("Rate it.")
    with pytest.raises(UserError, match=r"lacks \{step\}"):
        load_rubric(tmp_path / "r.md")
    with pytest.raises(UserError, match="cannot read"):
        load_rubric(tmp_path / "none.md")
    (tmp_path / "l.md").write_bytes(b"\xff{step}")
    with pytest.raises(UserError, match="not UTF-8"):
        load_rubric(tmp_path / "l.md")
