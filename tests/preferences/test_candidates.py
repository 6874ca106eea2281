"""Annotated traces to candidates by hand: what each step followed, and what ended it."""

import dataclasses

import pytest

from caspo_jax.preferences import build_candidates
from caspo_jax.types import Question, Step, Trace

STEPS = (
    Step(0, 1, 0, 2, "a", 0.9, 0.1, "correct", "v"),
    Step(3, 4, 2, 4, "b", 0.5, 0.2, "wrong", "v"),
    Step(6, 7, 4, 6, "c", None, 0.3, "correct", "v"),
)
TRACE = Trace(
    "t", "?", "1", "Q: ?", (7, 8), (1, 10, 2, 10, 3, 0), "a\n\nb\n\nc", "eos", steps=STEPS, entropy=tuple(map(float, range(6))), logprob=(-1.0,) * 6
)  # fmt: skip


def test_a_candidate_is_a_step_and_what_stood_before_it():
    found, counts = build_candidates([TRACE], other_ids=[[20, 21, 22, 23, 24, 25]])
    assert counts == {"steps": 3, "unfinished": 0, "empty": 0}
    assert [c.text for c in found] == ["a", "b", "c"]
    assert [c.token_ids for c in found] == [(1, 10), (2, 10), (3, 0)]
    assert [c.prefix for c in found] == ["", "a\n\n", "a\n\nb\n\n"]
    assert [c.prefix_ids for c in found] == [(), (1, 10), (1, 10, 2, 10)]
    assert [c.prefix_verdict for c in found] == ["correct", "correct", "wrong"]
    assert [(c.verdict, c.confidence) for c in found] == [("correct", 0.9), ("wrong", 0.5), ("correct", None)]
    assert [c.entropy for c in found] == [(0.0, 1.0), (2.0, 3.0), (4.0, 5.0)]
    assert [c.other_ids for c in found] == [(20, 21), (22, 23), (24, 25)]
    assert all((c.prompt, c.prompt_ids, c.trace_id) == ("Q: ?", (7, 8), "t") for c in found)
    assert [c.step_index for c in found] == [0, 1, 2]


@pytest.mark.parametrize(
    ("reason", "candidates", "ends_trace", "is_last"),
    [
        ("eos", 3, True, True),
        ("stop", 3, False, True),
        ("length", 2, False, False),
        ("budget", 2, False, False),
    ],
)
def test_a_step_ends_its_trace_by_eos_alone_and_is_finished_by_it_or_by_a_stop(
    reason, candidates, ends_trace, is_last
):
    found, counts = build_candidates([dataclasses.replace(TRACE, finish_reason=reason)])
    assert counts["unfinished"] == 3 - candidates
    assert len(found) == candidates
    assert not any(c.ends_trace or c.is_last for c in found[:2])
    if candidates == 3:
        assert (found[2].ends_trace, found[2].is_last) == (ends_trace, is_last)
    # Behind a delimiter a last step is finished, whatever cut the trace there; it is not the last to be said.
    closed = dataclasses.replace(TRACE, finish_reason=reason, text=TRACE.text + "\n\n")
    assert len(build_candidates([closed])[0]) == 3


def test_traces_of_one_question_share_their_prefixes():
    other = dataclasses.replace(TRACE, id="u")
    for change in ({"question": "!"}, {"prompt": "Q"}, {"prompt_ids": (7, 9)}, {"gold": "2"}):
        found, _ = build_candidates([TRACE, other, dataclasses.replace(TRACE, **change)])
        assert len({c.key for c in found}) == 6, change
    given = {"t": Question(id="x"), "u": Question(id="y")}
    found, _ = build_candidates([TRACE, other], questions=given)
    assert [c.question.id for c in found] == ["x"] * 3 + ["y"] * 3
