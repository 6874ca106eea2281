"""Scores from a file, and scorers on traces."""

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import (
    DecisivenessScorer,
    LexiconScorer,
    TraceScorer,
    read_scores,
    score_traces,
    scores_to_record,
)
from caspo_jax.store import write_jsonl
from caspo_jax.types import Step, Trace


def trace(name, *texts):
    steps = tuple(Step(0, len(text), 0, 0, text) for text in texts)
    return Trace(name, None, None, None, (), (), "\n\n".join(texts), "eos", steps=steps)


def written(tmp_path, *records):
    write_jsonl(tmp_path / "s.jsonl", records)
    return tmp_path / "s.jsonl"


def test_a_line_a_step_a_line_a_trace_and_a_line_a_text(tmp_path):
    path = written(
        tmp_path,
        {"trace_id": "t", "step_index": 1, "decisiveness": 0.25},
        {"trace_id": "t", "step_index": 0, "score": 1},
        {"id": "u", "scores": [0.5, None], "steps": ["a", {"text": "b"}]},
        {"text": "lonely", "decisiveness": 0.75},
    )
    scores = read_scores(path)
    assert isinstance(scores, DecisivenessScorer)
    assert isinstance(scores, TraceScorer)
    assert not isinstance(LexiconScorer(), TraceScorer)
    assert scores.for_trace("t").score(["x", "y", "z"]) == [1.0, 0.25, None]
    assert scores.for_trace("u").score(["a", "b\n"]) == [0.5, None]
    assert scores.for_trace("none").score(["a"]) == [None]
    assert scores.score([" lonely ", "a", "else"]) == [0.75, 0.5, None]
    traces = [trace("u", "a", "b"), trace("t", "x", "y")]
    assert score_traces(scores, traces) == [[0.5, None], [1.0, 0.25]]


def test_a_text_of_no_trace_is_known_in_every_trace(tmp_path):
    lines = [
        {"text": "a", "decisiveness": 0.25},
        {"text": "b", "decisiveness": 0.5},
        {"trace_id": "t", "step_index": 0, "score": 1},
        {"id": "u", "scores": [None, 0.75], "steps": ["a", "only in u"]},
    ]
    scores = read_scores(written(tmp_path, *lines))
    traces = [trace("none", "a", "b", "c"), trace("t", "a", " b "), trace("u", "a", "only in u")]
    traces.append(trace("other", "only in u"))
    assert score_traces(scores, traces) == [[0.25, 0.5, None], [1.0, 0.5], [None, 0.75], [None]]


def test_what_is_written_is_read_back(tmp_path):
    path = written(tmp_path, scores_to_record("t", [0.1, None], ["a", "b"]), scores_to_record("u", []))
    scores = read_scores(path, name="people")
    assert scores.name == scores.for_trace("t").name == "people"
    assert scores.for_trace("t").score(["a", "b"]) == [0.1, None]
    assert scores.for_trace("u").score([]) == []


def test_one_text_with_two_scores_is_known_by_trace_only(tmp_path):
    lines = [{"trace_id": t, "step_index": 0, "text": "x", "score": s} for t, s in (("t", 0.1), ("u", 0.9))]
    scores = read_scores(written(tmp_path, *lines))
    assert scores.score(["x"]) == [None]
    assert scores.for_trace("u").score(["x"]) == [0.9]


def test_scores_of_other_steps_are_refused(tmp_path):
    path = written(
        tmp_path, scores_to_record("t", [0.1, 0.2], ["a", "b"]), {"id": "u", "step_index": 3, "score": 0}
    )
    scores = read_scores(path)
    with pytest.raises(UserError, match="trace 't' has 3 steps, but scores for 2"):
        scores.for_trace("t").score(["a", "b", "c"])
    with pytest.raises(UserError, match="step 1 was recorded for the text 'b', but the step is 'c'"):
        scores.for_trace("t").score(["a", "c"])
    with pytest.raises(UserError, match="'u' has 1 steps, but scores for 4"):
        scores.for_trace("u").score(["a"])


@pytest.mark.parametrize(
    "record, message",
    [
        ({"id": "t", "step_index": 0, "score": -1}, "score -1 is no number in .*null where it is unknown"),
        ({"id": "t", "step_index": 0, "score": 1.5}, "score 1.5"),
        ({"id": "t", "step_index": 0, "score": True}, "score True"),
        ({"id": "t", "step_index": 0, "score": "0.5"}, "score '0.5'"),
        ({"id": "t", "step_index": -1, "score": 0.5}, "`step_index` must be 0 or more"),
        ({"id": "t", "step_index": 0}, "needs one of"),
        ({"id": "t", "score": 0.5}, "needs `step_index`"),
        ({"step_index": 0, "score": 0.5}, "needs the `trace_id`"),
        ({"scores": [0.5]}, "needs the `trace_id`"),
        ({"id": "t", "scores": [0.5], "steps": ["a", "b"]}, "as many texts as there are scores"),
        ({"id": "t", "scores": [0.5], "steps": [3]}, "must hold texts"),
        ({"text": 3, "score": 0.5}, "`text` must be a string"),
        (
            {"schema": {"name": "trace", "version": 1}, "id": "t", "scores": []},
            "expected a decisiveness record",
        ),
        ({"id": "ok", "step_index": 0, "score": 0.75}, "step 0 of 'ok' was given 0.5 before and 0.75 now"),
        ({"id": "whole", "scores": [0.5]}, "'whole' had 2 steps before, 1 now"),
    ],
)
def test_a_bad_line_is_named(tmp_path, record, message):
    good = [{"id": "ok", "step_index": 0, "score": 0.5}, {"id": "whole", "scores": [0.5, 0.5]}]
    with pytest.raises(UserError, match=rf"s\.jsonl:3: .*{message}"):
        read_scores(written(tmp_path, *good, record))


def test_a_file_that_is_no_jsonl(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_scores(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"b\.jsonl:1: not valid JSON"):
        read_scores(tmp_path / "b.jsonl")


def test_traces_go_to_a_scorer_in_one_call_and_bad_scorers_are_caught():
    class Scripted:
        name = "scripted"
        calls = 0

        def __init__(self, *scores):
            self.scores = list(scores)

        def score(self, steps):
            self.calls += 1
            return self.scores if self.scores else [len(step) / 10 for step in steps]

    scripted = Scripted()
    traces = [trace("t", "a", "bb"), trace("u"), trace("v", "ccc")]
    assert score_traces(scripted, traces) == [[0.1, 0.2], [], [0.3]]
    assert scripted.calls == 1
    with pytest.raises(ValueError, match="gave 1 scores for 3 steps"):
        score_traces(Scripted(0.5), traces)
    with pytest.raises(ValueError, match="gave 4 scores for 3 steps"):
        score_traces(Scripted(*[0.5] * 4), traces)
    for bad in (-1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"gave {bad}"):
            score_traces(Scripted(0.5, bad, 0.5), traces)
