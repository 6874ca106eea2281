"""Answers scored: each once, several at a time, and not within the time that decoding takes."""

import threading

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies import single
from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, graded
from caspo_jax.types import CatNode, CatResult, CatTree, Question, Trace

QUESTIONS = [Question(name, name, gold=name.upper()) for name in "abc"]


def context(score, judges=1):
    return Context(
        model=None,
        tokenizer=None,
        questions=QUESTIONS,
        key=None,
        extract=lambda text: text or None,
        score=score,
        same=lambda one, other: one == other,
        judges=judges,
    )


@pytest.mark.parametrize("judges", [1, 3])
def test_an_answer_to_a_question_is_scored_once(judges):
    asked = []

    def score(answer, question):
        asked.append((answer, question.id))
        return answer == question.gold

    of = context(score, judges)
    a, b, c = QUESTIONS
    assert of.right(["A", "A", "B", None], [a, b, b, c]) == [True, False, True, False]
    assert of.right(["C", "A", "A"], [c, a, b]) == [True, True, False]
    assert sorted(asked) == [("A", "a"), ("A", "b"), ("B", "b"), ("C", "c")]
    assert of.right([], []) == []


def test_as_many_answers_are_scored_at_once_as_there_are_judges():
    all_there = threading.Barrier(3)
    of = context(lambda answer, question: all_there.wait(timeout=30) >= 0, judges=3)
    assert of.right(["x"] * 3, QUESTIONS) == [True] * 3


def test_an_error_ends_the_scoring_without_what_has_not_begun():
    begun = []

    def score(answer, question):
        begun.append(answer)
        raise UserError("not to be scored")

    of = context(score, judges=2)
    with pytest.raises(UserError, match="not to be scored"):
        of.right([str(i) for i in range(2000)], QUESTIONS[:1] * 2000)
    assert len(begun) < 2000
    with pytest.raises(UserError, match="not to be scored"):  # and nothing was learned
        of.right(["0"], QUESTIONS[:1])


def test_graded_answers_keep_all_else_and_their_order():
    answers = [
        Answer("greedy", "1", q.id, text, None, 5, 6, seconds=0.5) for q, text in zip(QUESTIONS, "AxC")
    ]
    found = graded(context(lambda answer, question: answer == question.gold), answers)
    assert [a.correct for a in found] == [True, False, True]
    assert [(a.question, a.answer, a.seconds) for a in found] == [
        (q.id, t, 0.5) for q, t in zip(QUESTIONS, "AxC")
    ]


def test_nothing_is_scored_while_greedy_and_search_are_timed(monkeypatch):
    def forbidden(answer, question):
        raise AssertionError("scored within the time of decoding")

    traces = [Trace(q.id, q.id, None, None, (0,), (1, 2), q.id, "eos") for q in QUESTIONS]
    monkeypatch.setattr(single, "generate", lambda *_, **__: traces)
    node = CatNode(-1, (1, 2), (), (), None, None, "finished", "eos")
    results = [CatResult(t.id, "A", (t,), CatTree("q", (0,), (node,), (0, 0), None), 2) for t in traces]
    monkeypatch.setattr(single, "cat_sweep", lambda *_, **__: [results])
    of = context(forbidden)
    settings = Settings(cat_sizes=(2,))
    assert {a.correct for a in single.greedy(of, settings) + single.cat(of, settings)} == {None}
