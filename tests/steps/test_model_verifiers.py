"""Verifiers that sample from a model, with scripted ones."""

import dataclasses
import json

import pytest

from caspo_jax.errors import UserError
from caspo_jax.steps import (
    ExactChecker,
    FirstKnown,
    GoldAnswer,
    LocalJudge,
    NoisyVerifier,
    RecordedLabels,
    Rollouts,
    StatedEquations,
    VerifyItem,
    load_prompt,
    parse_verdict,
    verifier_settings,
)
from caspo_jax.tasks import get_task
from caspo_jax.types import Question, Trace

QUESTION = Question(id="q", question="How much is {step}?", gold="7")


def item(prefix, step, last=False):
    return VerifyItem(
        question=QUESTION,
        prefix=prefix,
        step=step,
        is_last=last,
        prompt_ids=(9,),
        prefix_ids=tuple(prefix.encode()),
        step_ids=tuple(step.encode()),
    )


def trace(question, text, finish="eos"):
    return Trace(question.id, None, None, None, question.prompt_ids or (), (), text, finish)


class Scripted:
    """Answers 7 in so many of n rollouts as the state's text says."""

    def __init__(self, hits, finish="eos"):
        self.hits, self.finish, self.asked = hits, finish, []

    def __call__(self, questions, n):
        self.asked += [q.id for q in questions]
        traces = []
        for q in questions:
            hits = self.hits[bytes(q.prompt_ids[1:]).decode()]
            traces += [trace(q, f"Answer: {7 if i < hits else 8}", self.finish) for i in range(n)]
        return traces


def test_rollouts_follow_the_value_of_the_states():
    generate = Scripted({"": 2, "good": 1, "bad": 0, "badworse": 0})
    items = [item("", "good"), item("", "bad"), item("bad", "worse"), item("bad", "Answer: 7", last=True)]
    assert Rollouts(generate, n=4).verify(items) == ["correct", "wrong", "unknown", "correct"]
    assert len(generate.asked) == len(set(generate.asked)) == 4  # each state once
    assert Rollouts(generate, n=4, local=False).verify(items)[2] == "wrong"
    assert Rollouts(generate, n=4, threshold=0.25).verify(items)[0] == "wrong"


def test_an_answer_that_follows_from_a_lost_state_is_no_error_of_the_last_step():
    generate = Scripted({"": 2, "good": 1, "bad": 0})
    items = [
        item("", "bad"),
        item("bad", "Answer: 8", last=True),
        item("good", "Answer: 8", last=True),
        item("", "Answer: 8", last=True),
    ]
    assert Rollouts(generate, n=4).verify(items) == ["wrong", "unknown", "wrong", "wrong"]
    assert Rollouts(generate, n=4, local=False).verify(items) == ["wrong"] * 4


def test_rollouts_are_read_behind_the_delimiter_of_the_steps():
    read = []

    def extract(text):
        read.append(text)
        return "7"

    generate = Scripted({"": 1, "good": 1, "one;": 1, "one;two": 1})
    rollouts = Rollouts(generate, n=1, delimiter=";", extract=extract)
    assert rollouts.settings["delimiter"] == ";"
    rollouts.verify([item("", "good"), item("one;", "two")])
    assert read == [f"{text}Answer: 7" for text in ("good;", "", "one;two;", "one;")]


def test_a_state_is_sampled_alike_whoever_got_there():
    """Traces bring questions of their own ids: which stands first, or in which batch, must not matter."""
    generate = Scripted({"": 2, "good": 1})
    one, other = (
        dataclasses.replace(item("", "good"), question=dataclasses.replace(QUESTION, id=name))
        for name in ("q#0", "q#1")
    )
    asked = []
    for items in ([one, other], [other], [other, one]):
        generate.asked.clear()
        Rollouts(generate, n=2).verify(items)
        asked.append(sorted(generate.asked))
    assert asked[0] == asked[1] == asked[2]
    assert len(set(asked[0])) == 2


def test_rollouts_from_one_state_are_held_against_each_gold():
    generate = Scripted({"": 2, "good": 1})  # some reach 7, none 9
    nine = dataclasses.replace(item("", "good"), question=dataclasses.replace(QUESTION, id="r", gold="9"))
    for items in ([item("", "good"), nine], [nine, item("", "good")]):
        generate.asked.clear()
        verdicts = Rollouts(generate, n=2, local=False).verify(items)
        assert dict(zip((i.question.gold for i in items), verdicts)) == {"7": "correct", "9": "wrong"}
        assert len(generate.asked) == 1  # sampled once all the same


def test_rollouts_that_do_not_finish_are_failures():
    generate = Scripted({"": 4, "good": 4}, finish="length")
    assert Rollouts(generate, n=4, local=False).verify([item("", "good")]) == ["wrong"]


def test_rollouts_need_a_gold_and_sane_numbers():
    bare = VerifyItem(Question(id="x", question="?"), "", "s", False, prompt_ids=(1,))
    with pytest.raises(UserError, match="no gold"):
        Rollouts(Scripted({})).verify([bare])
    with pytest.raises(UserError, match="n=0"):
        Rollouts(Scripted({}), n=0)
    with pytest.raises(UserError, match=r"n=2\.5"):
        Rollouts(Scripted({}), n=2.5)
    with pytest.raises(UserError, match=r"threshold=1\.0"):
        Rollouts(Scripted({}), threshold=1.0)


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ("It holds.\nVerdict: correct", "correct"),
        ("**Verdict: wrong**\n\n", "wrong"),
        ("verdict : Correct.", "correct"),
        ("### `Verdict: wrong`", "wrong"),
        ("It fails.\n```\nVerdict: wrong\n```\n", "wrong"),
        ("Verdict: wrong? No.\n</think>Verdict: correct", "correct"),
        ("Verdict: wrong\n</think>", "unknown"),
        ("Verdict: wrong\n</think>\n\nI cannot tell.", "unknown"),
        ("Verdict: correct\nbut who knows", "unknown"),
        ("Verdict: correct or wrong", "unknown"),
        ("not Verdict: correct", "unknown"),
        ("Verdict: incorrect", "unknown"),
        ("", "unknown"),
    ],
)
def test_verdicts_are_parsed_strictly(reply, verdict):
    assert parse_verdict(reply) == verdict


def test_the_mark_that_windows_editors_put_before_a_prompt_is_not_asked(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbf{question} {prefix} {step}")
    assert load_prompt(path) == "{question} {prefix} {step}"


def test_judge_asks_once_a_prompt_and_takes_no_cut_reply():
    seen = []

    def generate(questions, n):
        assert n == 1
        seen.extend(questions)
        return [
            trace(q, "Verdict: wrong", "length" if "\nlong\n" in q.question else "eos") for q in questions
        ]

    judge = LocalJudge(generate)
    items = [item("", "2 + 2 = 5"), item("", "2 + 2 = 5"), item(r"a {step} \frac{1}{2}", "long")]
    assert judge.verify(items) == ["wrong", "wrong", "unknown"]
    assert len(seen) == 2
    assert "How much is {step}?" in seen[0].question  # braces in the texts are no fields
    assert r"a {step} \frac{1}{2}" in seen[1].question
    assert judge.verify([]) == []


def test_settings_say_what_verdicts_depend_on():
    ways = [
        Rollouts(Scripted({}), n=4, extract=str, decoding={"seed": 0}),
        Rollouts(Scripted({}), n=8, extract=str, decoding={"seed": 0}),
        Rollouts(Scripted({}), n=4, threshold=0.5, extract=str, decoding={"seed": 0}),
        Rollouts(Scripted({}), n=4, extract=str, decoding={"seed": 1}),
        LocalJudge(Scripted({})),
        LocalJudge(Scripted({}), template="{question} {prefix} {step}"),
        LocalJudge(Scripted({}), decoding={"checkpoint": "abc"}),
        RecordedLabels({"a": ["correct"]}),
        RecordedLabels({"a": ["wrong"]}),
        FirstKnown((StatedEquations(), RecordedLabels({"a": ["wrong"]}))),
    ]
    settings = [json.dumps(verifier_settings(way)) for way in ways]
    assert len(set(settings)) == len(ways)
    assert settings[-2] == json.dumps(verifier_settings(RecordedLabels({"a": ("wrong",)})))
    noisy = NoisyVerifier(ways[0], 0.1)
    assert verifier_settings(noisy) == verifier_settings(ways[0])
    for plain in (StatedEquations(), GoldAnswer(), ExactChecker(None), get_task("graph").verifier()):
        assert verifier_settings(plain) == {}
    assert verifier_settings(StatedEquations(rounding=False)) == {"rounding": False}
    assert verifier_settings(GoldAnswer(no_answer="wrong")) == {"no_answer": "wrong"}


@dataclasses.dataclass(frozen=True)
class Short:
    """Forgets the last step."""

    name: str = "short"

    def verify(self, items):
        return ["wrong"] * (len(items) - 1)


@pytest.mark.parametrize("wrapped", [FirstKnown((Short(), GoldAnswer())), NoisyVerifier(Short(), 0.1)])
def test_a_verifier_within_another_must_judge_every_step(wrapped):
    with pytest.raises(UserError, match="verifier 'short' gave 1 verdicts for 2 steps"):
        wrapped.verify([item("", "good"), item("good", "bad")])


def test_the_template_must_have_its_fields(tmp_path):
    assert "{step}" in load_prompt()
    (tmp_path / "p.txt").write_text("{question} {step}")
    with pytest.raises(UserError, match=r"lacks \{prefix\}"):
        load_prompt(tmp_path / "p.txt")
    with pytest.raises(UserError, match="cannot read"):
        load_prompt(tmp_path / "none.txt")
