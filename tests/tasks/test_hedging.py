"""Hedges by construction: what is known about them, and the exact judge of contradiction."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import ContradictionItem, ContradictionJudge, LexiconScorer
from caspo_jax.steps import VerifyItem
from caspo_jax.tasks import get_task
from caspo_jax.tasks.hedging import HEDGES, HOWS, hedge, levels, plain
from caspo_jax.types import Question

SCALE = np.array([value for value, _ in HEDGES])
STEPS = (
    "c: k - a, so c = 41",
    "put k: n + w, n = 56, w = 26, 56 + 26, so k = 82",
    "answer: 41",
    "now 62",
    "The total is 36.",
)


@pytest.mark.parametrize("step", STEPS)
def test_the_lexicon_reads_each_hedge_as_meant(step):
    found = LexiconScorer().score([hedge(step, level) for level in range(len(HEDGES))])
    np.testing.assert_allclose(found, SCALE, atol=0.051 if step.startswith("answer") else 1e-9)
    assert np.all(np.diff(found) > 0)


@pytest.mark.parametrize("step", STEPS)
def test_a_hedge_comes_off_again_and_is_replaced(step):
    for level in range(len(HEDGES)):
        assert plain(hedge(step, level)) == step
        assert hedge(hedge(step, 0), level) == hedge(step, level)


def test_a_hedge_stays_inside_the_thought():
    step = "So it is 36.\n</think>"
    assert hedge(step, 2) == "So it is 36, maybe.\n</think>"
    assert plain(hedge(step, 2)) == step
    assert hedge("It is <b>36</b>", 2) == "It is <b>36</b>, maybe"
    for tag in ("<think>", "</think>"):
        assert hedge(tag, 2) == tag


def test_a_long_run_of_spaces_is_read_once():
    """A step of 200,000 spaces took minutes: the end was sought from each of them."""
    step = "a" + " " * 200_000 + "b"
    begun = time.perf_counter()
    assert hedge(step, 2) == step + ", maybe"
    assert time.perf_counter() - begun < 10.0
    assert hedge("a  . \n</think> ", 2) == "a  , maybe. \n</think>"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 99))
def test_the_three_use_the_same_hedges_equally_often(confidence, seed):
    found = {how: levels(confidence, how, seed) for how in HOWS}
    c = np.array(confidence)
    for chosen in found.values():
        assert sorted(chosen) == sorted(found["right"])
    distance = np.abs(SCALE[found["right"]] - c)
    assert np.all(distance <= np.abs(c[:, None] - SCALE).min(axis=1) + 1e-12)
    order = np.argsort(c, kind="stable")
    assert np.all(np.diff(np.array(found["right"])[order]) >= 0)
    ascending = np.array(found["inverted"])[np.lexsort((np.array(found["inverted"]) * -1, c))]
    assert np.all(np.diff(ascending) <= 0)


def test_bad_input():
    with pytest.raises(UserError, match="choose from right"):
        levels([0.5], "wrong")
    with pytest.raises(UserError, match="outside"):
        levels([1.5], "right")


def test_verdicts_do_not_look_at_hedges():
    task = get_task("graph")
    problem = task.parse("a = 41; k: a * 2. k?")
    for level in range(len(HEDGES)):
        steps = [hedge(step, level) for step in ("k: a * 2, so k = 82", "answer: 82")]
        question = Question("q", question=problem.text)
        items = [
            VerifyItem(question, "", steps[0], False),
            VerifyItem(question, steps[0] + "\n\n", steps[1], True),
            VerifyItem(question, steps[0] + "\n\n", hedge("answer: 83", level), True),
        ]
        assert task.verifier().verify(items) == ["correct", "correct", "wrong"]


GRAPH, CHAIN = "a = 41; k: a * 2; c: k - a. c?", "start 37; add 25; minus 48. end?"


@pytest.mark.parametrize(
    "task, question, prefix, step, continuation, verdict",
    [
        ("graph", GRAPH, "", "k: a * 2, so k = 82", "get k: a * 2, a = 41, so k = 82, maybe", False),
        ("graph", GRAPH, "", "k: a * 2, so k = 82, maybe", "k = 84", True),
        ("graph", GRAPH, "", "k: a * 2, so k = 82", "c: k - a, so c = 41", False),
        ("graph", GRAPH, "", "c = 41", "answer: 40", True),
        ("graph", GRAPH, "k: a * 2, so k = 82, I think\n\n", "answer: 41", "answer: 41, no idea", False),
        ("graph", GRAPH, "", "k = 82", "what?", None),
        ("graph", "no problem", "", "k = 82", "k = 83", None),
        ("chain", CHAIN, "", "now 62", "37 + 25 = 63", True),
        ("chain", CHAIN, "", "now 62", "37 + 25 = 62, maybe", False),
        ("chain", CHAIN, "now 62\n\n", "now 14", "now 62", True),
        ("chain", CHAIN, "now 62\n\nnow 14\n\n", "answer: 14", "answer: 15", True),
        ("chain", CHAIN, "now 62\n\nnow 14, maybe\n\n", "answer: 14", "now 15", False),
    ],
)
def test_contradictions(task, question, prefix, step, continuation, verdict):
    judge = get_task(task).contradiction()
    assert isinstance(judge, ContradictionJudge)
    assert judge.judge([ContradictionItem(question, prefix, step, continuation)]) == [verdict]
