"""Traces to annotated traces, over a vocabulary of bytes."""

import dataclasses
import math

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.steps import (
    ExactChecker,
    FirstKnown,
    GoldAnswer,
    RecordedLabels,
    StatedEquations,
    annotate_trace,
    annotate_traces,
    equivalent,
    extract_answer,
    first_wrong_step,
    is_closed,
    is_flawed_correct,
    measure_steps,
    prefix_verdict,
    step_items,
    verify_traces,
)
from caspo_jax.types import Trace

EOS = 256
VOCABULARY = [bytes([b]) for b in range(256)] + [b""]


def trace(text, finish="eos", **fields):
    ids = (*text.encode(), *([EOS] if finish == "eos" else []))
    entropy = tuple(i / 100 for i in range(len(ids)))
    defaults = {"question": "?", "gold": "7", "prompt": None, "prompt_ids": (1,), "entropy": entropy}
    return Trace(id="t", token_ids=ids, text=text, finish_reason=finish, **{**defaults, **fields})


def test_spans_confidences_verdicts_and_answer():
    text = "1 + 1 = 2\n\n2 + 2 = 5\n\nAnswer: 7"
    verifier = FirstKnown((StatedEquations(), GoldAnswer()))
    done = annotate_trace(
        trace(text), VOCABULARY, verifier=verifier, extract=extract_answer, equal=equivalent
    )
    assert [s.text for s in done.steps] == ["1 + 1 = 2", "2 + 2 = 5", "Answer: 7"]
    assert [s.verdict for s in done.steps] == ["correct", "wrong", "correct"]
    assert (done.answer, done.correct) == ("7", True)
    assert first_wrong_step(done) == 1
    assert is_flawed_correct(done) is True
    first = done.steps[0]
    assert (first.token_start, first.token_end) == (0, 11)
    mean = np.mean([i / 100 for i in range(9)])  # the two delimiter tokens do not count
    assert first.entropy == pytest.approx(mean)
    assert first.confidence == pytest.approx(math.exp(-mean))
    assert done.steps[-1].token_end == len(text) + 1


@pytest.mark.parametrize("text", ["1 + 1 = 2\n\nAnswer: 7", "one", "a\n\nb\n\n", ""])
@pytest.mark.parametrize("confidence", ["entropy", "first_token", "max_entropy"])
def test_steps_that_are_given_are_measured_as_those_that_were_found(text, confidence):
    found = annotate_trace(trace(text), VOCABULARY, confidence=confidence)
    assert measure_steps(found, VOCABULARY, confidence) == found


def test_a_step_may_hold_the_delimiter():
    (whole,) = annotate_trace(trace("a+b\n\n"), VOCABULARY, delimiter="\n\n").steps
    given = dataclasses.replace(whole, text="a\n\nb", start=0, end=4, token_start=0, token_end=6)
    done = measure_steps(dataclasses.replace(trace("a\n\nb\n\n"), steps=(given,)), VOCABULARY)
    assert done.steps[0].entropy == pytest.approx(np.mean([0, 0.01, 0.02, 0.03]))
    with pytest.raises(UserError, match="holds no log-probs"):
        measure_steps(dataclasses.replace(trace("a"), entropy=None), VOCABULARY)


@pytest.mark.parametrize(
    ("finish", "last"), [("eos", True), ("stop", True), ("length", False), ("budget", False)]
)
def test_a_step_is_the_last_where_the_output_ended_itself(finish, last):
    open_end, closed = (annotate_trace(trace(text, finish), VOCABULARY) for text in ("a\n\nb", "a\n\nb\n\n"))
    assert [item.is_last for _, item in step_items(open_end)] == ([False, True] if last else [False])
    assert [item.is_last for _, item in step_items(closed)] == [False, last]
    assert [is_closed(open_end, step) for step in open_end.steps] == [True, last]
    assert [is_closed(closed, step) for step in closed.steps] == [True, True]


def test_verdicts_are_those_of_the_newest_verifier():
    done = annotate_trace(
        trace("1 + 1 = 2\n\n1 + 1 = 3\n\n1 + 2 = 3", "length"), VOCABULARY, verifier=StatedEquations()
    )
    assert [s.verdict for s in done.steps] == ["correct", "wrong", "unknown"]
    labelled = dataclasses.replace(
        done, steps=tuple(dataclasses.replace(s, verdict="correct") for s in done.steps)
    )
    (again,) = verify_traces([labelled], RecordedLabels({"t": ("wrong", "unknown", "wrong")}))
    assert [(s.verdict, s.verifier) for s in again.steps] == [
        (v, "recorded") for v in ("wrong", "unknown", "unknown")
    ]


def test_no_answer_is_not_compared():
    def equal(gold, answer):
        assert (gold, answer) == ("7", "8")
        return True

    silent = annotate_trace(trace("so"), VOCABULARY, extract=lambda text: None, equal=equal)
    assert (silent.answer, silent.correct) == (None, False)
    said = annotate_trace(trace("so"), VOCABULARY, extract=lambda text: "8", equal=equal)
    assert (said.answer, said.correct) == ("8", True)


def test_a_gold_answer_reads_the_whole_output():
    """What marks the answer may stand in a step before the last."""
    seen = []
    verifier = GoldAnswer(
        extract=lambda text: seen.append(text) or "7", equal=lambda gold, answer: gold == answer
    )
    done = annotate_trace(trace("a\n\nb"), VOCABULARY, verifier=verifier)
    assert [s.verdict for s in done.steps] == ["unknown", "correct"]
    assert seen == ["a\n\nb"]


def test_items_hold_the_exact_state():
    done = annotate_trace(trace("ab\n\ncd"), VOCABULARY)
    (_, one), (_, two) = step_items(done)
    assert (one.prefix, one.step, one.is_last) == ("", "ab", False)
    assert (two.prefix, two.step, two.is_last) == ("ab\n\n", "cd", True)
    assert one.prefix_ids + one.step_ids == two.prefix_ids == tuple(b"ab\n\n")
    assert two.step_ids == (*b"cd", EOS)


@pytest.mark.parametrize(
    "finish, asked", [("length", 1), ("budget", 1), ("pruned", 1), ("stop", 2), ("eos", 2)]
)
def test_a_step_that_was_cut_is_not_judged(finish, asked):
    done = annotate_trace(trace("1 + 1 = 2\n\n2 + 2 = 2", finish), VOCABULARY, verifier=StatedEquations())
    assert len(step_items(done)) == asked
    assert done.steps[1].verdict == ("wrong" if asked == 2 else "unknown")


def test_a_pruned_trace_ends_with_a_closed_step():
    done = annotate_trace(trace("2 + 2 = 5\n\n", "pruned"), VOCABULARY, verifier=StatedEquations())
    assert [s.verdict for s in done.steps] == ["wrong"]


@pytest.mark.parametrize("strategy, correct", [("explore", None), ("cat", False)])
def test_what_an_exploration_left_open_is_neither_right_nor_wrong(strategy, correct):
    left = trace("1 + 1 = 2\n\n", "budget", strategy=strategy)
    done = annotate_trace(
        left, VOCABULARY, verifier=StatedEquations(), extract=extract_answer, equal=equivalent
    )
    assert (done.answer, done.correct) == (None, correct)
    assert [s.verdict for s in done.steps] == ["correct"]


def test_other_confidences_and_their_needs():
    done = annotate_trace(trace("ab", logprob=(-1.0, -3.0, -2.0)), VOCABULARY, confidence="mean_logprob")
    assert done.steps[0].confidence == pytest.approx(math.exp(-2.0))
    with pytest.raises(UserError, match="'margin' needs top1_logprob, top2_logprob"):
        annotate_trace(trace("ab"), VOCABULARY, confidence="margin")
    with pytest.raises(UserError, match=r"entropy has shape \(1,\) for 3 token_ids"):
        annotate_trace(trace("ab", entropy=(0.5,)), VOCABULARY)
    bare = annotate_trace(trace("ab", entropy=None), VOCABULARY)
    assert bare.steps[0].confidence is None


def test_flawed_correct_needs_a_right_answer():
    wrong = annotate_trace(trace("2 + 2 = 5", correct=False), VOCABULARY, verifier=StatedEquations())
    assert is_flawed_correct(wrong) is None
    right = annotate_trace(trace("2 + 2 = 4", correct=True), VOCABULARY, verifier=StatedEquations())
    assert is_flawed_correct(right) is False


def test_prefix_verdict():
    done = annotate_trace(trace("1 + 1 = 2\n\nhm\n\n1 + 1 = 3"), VOCABULARY, verifier=StatedEquations())
    assert [prefix_verdict(done.steps[:i]) for i in range(4)] == ["correct", "correct", "unknown", "wrong"]


def test_gold_answer_judges_the_last_step_alone():
    done = annotate_trace(trace("7\n\nAnswer: 8"), VOCABULARY, verifier=GoldAnswer())
    assert [s.verdict for s in done.steps] == ["unknown", "wrong"]
    silent = trace("7\n\nI give up")
    assert annotate_trace(silent, VOCABULARY, verifier=GoldAnswer()).steps[1].verdict == "unknown"
    strict = GoldAnswer(no_answer="wrong")
    assert annotate_trace(silent, VOCABULARY, verifier=strict).steps[1].verdict == "wrong"
    with pytest.raises(UserError, match="no gold answer"):
        annotate_trace(trace("Answer: 8", gold=None), VOCABULARY, verifier=GoldAnswer())


def test_recorded_labels_and_exact_checkers():
    recorded = RecordedLabels({"t": ("correct", "wrong")})
    done = annotate_trace(trace("a\n\nb\n\nc"), VOCABULARY, verifier=recorded)
    assert [s.verdict for s in done.steps] == ["correct", "wrong", "unknown"]
    assert {s.verifier for s in done.steps} == {"recorded"}
    checker = ExactChecker(lambda question, prefix, step, last: "correct" if last else "wrong")
    done = annotate_trace(trace("a\n\nb"), VOCABULARY, verifier=checker)
    assert [s.verdict for s in done.steps] == ["wrong", "correct"]
    with pytest.raises(UserError, match="unknown verdict 'maybe': choose from"):
        RecordedLabels({"t": ("maybe",)})


@pytest.mark.parametrize(
    "given, words",
    [
        (
            [True, "correct"],
            "verifier 'mine' gave True for step 0 of trace 't': give correct, wrong, unknown",
        ),
        (["correct", "right"], "verifier 'mine' gave 'right' for step 1 of trace 't'"),
        (["correct"], "verifier 'mine' gave 1 verdicts for 2 steps"),
    ],
)
def test_verdicts_of_ones_own_verifier_are_looked_at(given, words):
    class Mine:
        name = "mine"

        def verify(self, items):
            return given

    with pytest.raises(UserError, match=words):
        annotate_trace(trace("a\n\nb"), VOCABULARY, verifier=Mine())


def test_one_call_of_the_verifier_for_all_traces():
    calls = []

    class Spy:
        name = "spy"

        def verify(self, items):
            calls.append(len(items))
            return ["correct"] * len(items)

    annotate_traces([trace("a\n\nb"), trace("c")], VOCABULARY, verifier=Spy())
    assert calls == [3]


def test_confidences_are_computed_over_rows_as_long_as_a_step(monkeypatch):
    from caspo_jax import confidence
    from caspo_jax.evaluation import confidence_items as items_module

    text = "\n\n".join(f"step {i} " + "x" * (i % 7) for i in range(90))
    done = annotate_trace(
        trace(text, entropy=tuple((i % 13) / 20 for i in range(len(text) + 1))),
        VOCABULARY,
        verifier=ExactChecker(lambda *_: "correct"),
    )
    shapes = []

    def recorded(name, stats, mask, vocab_size=None, compute=confidence.step_confidence):
        shapes.append(mask.shape)
        return compute(name, stats, mask, vocab_size)

    monkeypatch.setattr(confidence, "step_confidence", recorded)
    monkeypatch.setattr(items_module, "step_confidence", recorded)
    longest = max(step.token_end - step.token_start for step in done.steps)
    entropy, size = np.array(done.entropy), len(VOCABULARY)
    told = dataclasses.replace(done, logprob=tuple(-2 * entropy), correct=True)
    steps, _ = items_module.confidence_items([told], VOCABULARY)
    for name in confidence.STEP_CONFIDENCES:
        if not set(confidence.needed_fields(name)) <= {"entropy", "logprob"}:
            continue
        found = measure_steps(told, VOCABULARY, name)
        # Each step by itself, over the whole trace.
        position = np.arange(len(told.token_ids))
        for i, step in enumerate(found.steps):
            end = step.token_end - (2 if i + 1 < len(found.steps) else 0)
            mask = (step.token_start <= position) & (position < end)
            stats = confidence.TokenStats(entropy=entropy, logprob=-2 * entropy)
            expected = float(confidence.STEP_CONFIDENCES[name](stats, mask, size))
            assert step.confidence == pytest.approx(expected, rel=1e-12), name
            assert step.entropy == pytest.approx(entropy[mask].mean(), rel=1e-12)
            if name != "sum_logprob":  # which the items have where its exponential is 0
                assert steps.scores[name][i] == pytest.approx(math.log(expected), rel=1e-9)
            assert (steps.length[i], steps.entropy[i]) == (mask.sum(), entropy[mask].mean())
    assert set(shapes) == {(90, longest)}
