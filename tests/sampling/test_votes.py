from __future__ import annotations

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
    ],
)
def test_votes(method, gamma, answer, weights):
    got, totals = vote(PATHS, method, equivalent=same_number, gamma=gamma)
    assert got == answer
    assert totals == pytest.approx(weights)


def test_answers_merge_by_equivalence_and_none_abstains():
    assert merge_answers(["1", None, "1.0", "2", "1"], same_number) == [0, None, 0, 3, 0]
    assert vote([path("x", [1])], extract=lambda text: None) == (None, {})


def test_sequence_vote_survives_long_paths():
    a = Trace(**{**path("a", [1]).__dict__, "logprob": (-2000.0,)})
    b = Trace(**{**path("b", [2]).__dict__, "logprob": (-2001.0,)})
    answer, weights = vote([b, a], "sequence")
    assert answer == "a"
    assert weights["a"] == pytest.approx(1 / (1 + math.exp(-1)))


def test_unknown_vote_is_refused():
    with pytest.raises(UserError, match="majority"):
        vote(PATHS, "loudest")
