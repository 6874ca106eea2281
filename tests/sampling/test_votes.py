from __future__ import annotations

import dataclasses
import math

import pytest

from caspo_jax.errors import UserError
from caspo_jax.sampling import merge_answers, vote
from caspo_jax.types import Trace


def path(answer, ids, confidence=0.5, logprob=0.5):
    return Trace(
        id="q", question=None, gold=None, prompt=None, prompt_ids=(1,), token_ids=tuple(ids), text=f"so\n{answer}\n",
        finish_reason="eos", path_confidence=confidence, logprob=(math.log(logprob),),
    )  # fmt: skip


def same_number(a, b):
    return float(a) == float(b)


PATHS = [
    path("2", [1], 0.9, 0.3),
    path("3", [2], 0.8, 0.4),
    path("2.0", [3], 0.1, 0.2),
    path("3", [2], 0.8, 0.4),
]


@pytest.mark.parametrize(
    "method, gamma, answer, weights",
    [
        ("majority", 1.0, "2", {"2": 2, "3": 2}),  # tie: the answer that came first
        ("confidence", 1.0, "3", {"2": 1.0, "3": 1.6}),
        ("confidence", 25.0, "2", {"2": 0.9**25 + 0.1**25, "3": 2 * 0.8**25}),
        ("sequence", 1.0, "2", {"2": 0.5 / 0.9, "3": 0.4 / 0.9}),  # the duplicate of 3 counts once
        ("best_path", 1.0, "2", {"2": 0.9, "3": 0.8}),
        ("best_path", 25.0, "2", {"2": 0.9, "3": 0.8}),  # gamma is of the confidence vote
    ],
)
def test_votes(method, gamma, answer, weights):
    got, totals = vote(PATHS, method, equivalent=same_number, gamma=gamma)
    assert got == answer
    assert totals == pytest.approx(weights)


def test_answers_merge_by_equivalence_and_none_abstains():
    assert merge_answers(["1", None, "1.0", "2", "1"], same_number) == [0, None, 0, 3, 0]
    assert vote([path("x", [1])], extract=lambda text: None) == (None, {})


def rounds_to(gold, answer):
    """As a benchmark scores: an answer will do that rounds to the gold one's places."""
    places = len(gold.partition(".")[2])
    return round(float(answer), places) == float(gold)


def test_answers_merge_only_where_each_will_do_for_the_other():
    assert merge_answers(["3", "3.14", "3.140", "3.1"], rounds_to) == [0, 1, 1, 3]
    found = [path("3", [1]), path("3.14", [2]), path("3.14", [3])]
    assert vote(found, "majority", equivalent=rounds_to) == ("3.14", {"3": 1.0, "3.14": 2.0})


@pytest.mark.parametrize(
    ("method", "spelling"),
    [("majority", "2.0"), ("confidence", "2"), ("sequence", "2.0"), ("best_path", "2")],
)
def test_an_answer_is_spelled_as_its_heaviest_spelling(method, spelling):
    found = [path("2", [1], 0.9), path("2.0", [2], 0.4), path("3", [3], 0.1), path("2.0", [4], 0.4)]
    answer, weights = vote(found, method, equivalent=same_number)
    assert answer == spelling
    assert list(weights) == [spelling, "3"]


def test_of_spellings_of_one_weight_the_first_counts():
    assert vote([path("2", [1]), path("2.0", [2])], "majority", equivalent=same_number)[0] == "2"


def test_sequence_vote_survives_long_paths():
    a = Trace(**{**path("a", [1]).__dict__, "logprob": (-2000.0,)})
    b = Trace(**{**path("b", [2]).__dict__, "logprob": (-2001.0,)})
    answer, weights = vote([b, a], "sequence")
    assert answer == "a"
    assert weights["a"] == pytest.approx(1 / (1 + math.exp(-1)))


def unanswered(text):
    return None if "loop" in text else text.strip().removeprefix("so\n")


def with_logprob(trace, value):
    return dataclasses.replace(trace, logprob=(value,))


def test_a_likelier_path_without_an_answer_changes_no_sequence_vote():
    """Not even where it is so much likelier that no float holds the others beside it."""
    answered = [
        with_logprob(path("a", [1]), -1200.0),
        with_logprob(path("b", [2]), -1000.0),
        with_logprob(path("b", [3]), -1001.0),
    ]
    looping = with_logprob(path("loop", [4]), -50.0)
    alone = vote(answered, "sequence", extract=unanswered)
    assert alone[0] == "b"
    assert sum(alone[1].values()) == pytest.approx(1)
    assert vote([looping, *answered], "sequence", extract=unanswered) == alone


@pytest.mark.parametrize(("scale", "gamma"), [(1e-20, 25.0), (1e-200, 2.0), (20.0, 300.0), (1.0, 1e6)])
def test_confidence_votes_survive_powers_beyond_floats(scale, gamma):
    found = [
        path("wrong", [1], 0.1 * scale),
        path("none", [2], 0.0),
        path("right", [3], scale * 0.99),
        path("right", [4], scale * 0.99),
        path("loop", [5], scale * 1e20),  # has no answer
    ]
    answer, weights = vote(found, "confidence", extract=unanswered, gamma=gamma)
    assert answer == "right"
    assert weights == {"wrong": pytest.approx((0.1 / 0.99) ** gamma, abs=1e-12), "none": 0.0, "right": 2.0}


def test_confidence_votes_survive_sums_beyond_floats_and_infinite_confidences():
    largest = 6.5e307  # which a float holds, and not three times
    answer, weights = vote(
        [path("a", [i], largest) for i in range(3)] + [path("b", [4], 6.5e306)], "confidence"
    )
    assert (answer, weights) == ("a", {"a": 3.0, "b": pytest.approx(0.1)})
    answer, weights = vote([path("b", [1], 2.0), path("a", [2], math.inf)], "confidence", gamma=2.0)
    assert (answer, weights) == ("a", {"b": 4.0, "a": math.inf})


def test_an_answer_that_is_set_is_not_read_again():
    said = dataclasses.replace(path("3", [1]), answer="")
    assert vote([said, path("3", [2])], "majority")[1] == {"": 1.0, "3": 1.0}


def test_confidence_votes_that_floats_hold_are_plain_powers():
    found = [path("2", [1], 0.9), path("3", [2], 1e-20), path("4", [3], 0.0)]
    assert vote(found, "confidence", gamma=25.0)[1] == {"2": 0.9**25.0, "3": 0.0, "4": 0.0}
    assert vote(found, "confidence", gamma=0.0)[1] == {"2": 1.0, "3": 1.0, "4": 1.0}


def test_unknown_vote_is_refused():
    with pytest.raises(UserError, match="majority"):
        vote(PATHS, "loudest")
