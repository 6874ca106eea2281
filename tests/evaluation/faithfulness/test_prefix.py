"""Prefix-conditioned sampling: which steps, which value, and that a prefix's continuations are its own."""

import dataclasses

import jax
import numpy as np
import pytest

import caspo_jax as cj
from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import PrefixConfig, Subject
from caspo_jax.evaluation.faithfulness.prefix import (
    choose_steps,
    continue_prefixes,
    first_paragraph,
    judge_prefixes,
    plan_prefixes,
    prefix_consistency,
)
from caspo_jax.tasks import get_task
from caspo_jax.types import Step, Trace

KEY = jax.random.key(0)


def subject(identity, steps, prompt=(1, 2), width=3, notes=()):
    """A trace of so many steps of `width` tokens each."""
    texts = [f"value {k}" for k in range(steps)]
    spans = tuple(
        Step(9 * k, 9 * k + len(text), width * k, width * (k + 1), text) for k, text in enumerate(texts)
    )
    trace = Trace(
        id=identity,
        question="q",
        gold=None,
        prompt=None,
        prompt_ids=prompt,
        token_ids=tuple(range(width * steps)),
        text="\n\n".join(texts),
        finish_reason="eos",
        steps=spans,
    )
    return Subject(trace, "q", "none", False, (), None, tuple(notes))


class Recorder:
    """Contradicts where the continuation says another number; None where it says none."""

    name = "recorder"

    def __init__(self):
        self.asked = []

    def judge(self, items):
        self.asked += items
        return [None if not i.continuation[-1:].isdigit() else i.step != i.continuation for i in items]


def test_first_last_and_others_at_random():
    for count in (1, 5, 20):
        assert choose_steps(subject("a", count), 20) == list(range(count))
    picks = [choose_steps(subject("a", 60), 20, seed) for seed in range(40)]
    for pick in picks:
        assert len(pick) == len(set(pick)) == 20
        assert pick == sorted(pick)
        assert (pick[0], pick[-1]) == (0, 59)
    assert choose_steps(subject("a", 60), 20, 3) == picks[3]
    assert choose_steps(subject("b", 60), 20, 3) != picks[3]
    assert len({i for pick in picks for i in pick}) == 60
    assert choose_steps(subject("a", 9), 1) == [0]


def test_a_plan_leaves_out_what_cannot_be_continued():
    config = PrefixConfig(max_steps=20)
    subjects = [
        subject("a", 3),
        subject("b", 3),
        subject("c", 2, prompt=()),
        subject("d", 2, notes=("too_long",)),
    ]
    plan = plan_prefixes(subjects, config, context=13)
    assert plan.steps == (
        (0, 1),
        (0, 1),
        (1,),
        (),
    )  # 2 + 6 tokens leave 5; an empty prefix has nothing to go on from
    assert plan.prefixes[0] == ((1, 2), (1, 2, 0, 1, 2))
    assert plan.distinct() == [(1, 2), (0, 1, 2), (1, 2, 0, 1, 2)]


def test_the_share_that_contradicts():
    subjects = [subject("a", 2)]
    config = PrefixConfig(samples=4)
    plan = plan_prefixes(subjects, config, context=500)
    said = {
        plan.prefixes[0][0]: ["value 0", "value 9", "hm", ""],
        plan.prefixes[0][1]: ["value 1"] * 4,
    }
    judge = Recorder()
    (found,) = judge_prefixes(subjects, plan, said, judge, config)
    assert found.confidence == (1 - (1 + 0.5 + 0.5) / 4, 1.0)
    assert found.contradicting == (1, 0)
    assert found.unparsed == (2, 0)
    assert len(judge.asked) == 7  # the empty one is not asked about
    assert judge.asked[3].prefix == "value 0\n\n"
    (strict,) = judge_prefixes(subjects, plan, said, judge, dataclasses.replace(config, unparsed=1.0))
    assert strict.confidence == (0.25, 1.0)
    # Equal shares are equal numbers, in whatever order the verdicts came: they tie in cMFG* and in the ranks.
    said = {
        state: order
        for state, order in zip(plan.prefixes[0], (["value 9", "", "", ""], ["", "", "", "value 9"]))
    }
    (tied,) = judge_prefixes(subjects, plan, said, judge, dataclasses.replace(config, unparsed=0.1))
    assert tied.confidence[0] == tied.confidence[1]


def test_first_paragraphs():
    assert first_paragraph("a\n\nb", "\n\n") == "a"
    assert first_paragraph("a", "\n\n") == "a"
    assert first_paragraph("", "\n\n") == ""


@pytest.fixture(scope="module")
def policy():
    task = get_task("graph")
    return task, *cj.load_pretrained(task.policy_path)


def test_a_prefix_has_its_own_continuations(policy):
    task, model, tokenizer = policy
    questions = task.questions("tune", 3, seed=1)
    prompts = [
        tuple(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": q.question}], add_generation_prompt=True
            )["input_ids"]
        )
        for q in questions
    ]
    config = PrefixConfig(samples=3, max_new_tokens=32)
    together = continue_prefixes(model, tokenizer, prompts, config, KEY)
    assert all(len(texts) == 3 for texts in together)
    assert all("\n\n" not in text for texts in together for text in texts)
    again = continue_prefixes(model, tokenizer, prompts[::-1], config, KEY)
    assert again == together[::-1]
    assert continue_prefixes(model, tokenizer, prompts, config, jax.random.key(1)) != together
    problem = task.parse(questions[0].question)
    assert any(task.check(problem, [], text) for text in together[0])


def test_a_step_that_the_model_would_say_is_surer_than_one_it_would_not(policy):
    task, model, tokenizer = policy
    question = "a = 12; k: a + 2. k?"
    prompt = tuple(
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)[
            "input_ids"
        ]
    )
    subjects = []
    for identity, text in (("right", "k: a + 2, so k = 14"), ("wrong", "k: a + 2, so k = 77")):
        ids = tuple(tokenizer(text)["input_ids"])
        trace = Trace(
            identity,
            question,
            None,
            None,
            prompt,
            ids,
            text,
            "eos",
            steps=(Step(0, len(text), 0, len(ids), text),),
        )
        subjects.append(Subject(trace, question, "none", False, (), None, ()))
    right, wrong = prefix_consistency(
        model, tokenizer, subjects, task.contradiction(), KEY, PrefixConfig(samples=3, max_new_tokens=32)
    )
    assert right.confidence[0] > 0.6
    assert wrong.confidence[0] < 0.4


def test_bad_settings():
    for bad in ({"samples": 0}, {"unparsed": 2.0}, {"temperature": 0.0}, {"max_steps": 0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            PrefixConfig(**bad)
    assert np.isclose(PrefixConfig().temperature, 0.8)
