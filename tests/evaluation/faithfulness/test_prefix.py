"""Prefix-conditioned sampling: which steps, which value, and that a prefix's continuations are its own."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

import caspo_jax as cj
from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import (
    AnswerEquivalence,
    PrefixConfig,
    Source,
    Stage,
    Subject,
    prefix_stage,
    prepare,
)
from caspo_jax.evaluation.faithfulness.prefix import (
    State,
    choose_steps,
    continue_prefixes,
    first_step,
    judge_prefixes,
    plan_prefixes,
    prefix_consistency,
    state_id,
)
from caspo_jax.models import token_bytes
from caspo_jax.outputs import manifest_path
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
    assert plan.prefixes[0] == (State((1, 2)), State((1, 2, 0, 1, 2)))
    room = [len(plan_prefixes(subjects[:1], config, context).steps[0]) for context in (9, 10, 15, 16)]
    assert room == [0, 1, 2, 3]  # eight tokens are enough
    assert plan.distinct() == [State(ids) for ids in ((1, 2), (0, 1, 2), (1, 2, 0, 1, 2))]


def test_a_plan_holds_each_trace_once():
    """Not each of its prefixes: those of 2,000 traces of 8,000 tokens would take 1.2 GB."""
    plan = plan_prefixes([subject("a", 20)], PrefixConfig(), context=500)
    held = [vars(state)["ids"] for state in plan.prefixes[0]]
    assert len({id(beginning.whole) for beginning in held}) == 1
    assert [beginning.end for beginning in held] == [len(state.ids) for state in plan.prefixes[0]]
    assert {state: i for i, state in enumerate(plan.prefixes[0])} == {
        State(state.ids): i for i, state in enumerate(plan.prefixes[0])
    }


def test_the_same_prefix_before_a_paragraph_and_before_a_line():
    giant = dataclasses.replace(subject("b", 3), giant=True, uncounted=(0, 2))
    plan = plan_prefixes([subject("a", 3), giant], PrefixConfig(), context=500)
    assert plan.prefixes[0] == tuple(State((1, 2, *range(3 * k))) for k in (0, 1, 2))
    # Line breaks before the first line stand in its prefix: a continuation that began with one would end there.
    assert plan.prefixes[1] == tuple(State((1, 2, *range(n)), True) for n in (1, 3, 6))
    names = {state_id(state) for state in plan.distinct()}
    assert len(names) == 6
    assert len({name.removesuffix("/line") for name in names}) == 4
    whole = dataclasses.replace(subject("c", 1), giant=True)  # without line breaks: a paragraph
    by_line = PrefixConfig(delimiter="\n")  # lines are steps, giant or not
    for plan in (plan_prefixes([whole], PrefixConfig(), 500), plan_prefixes([giant], by_line, 500)):
        assert not any(state.line for state in plan.distinct())


def test_a_delimiter_before_the_first_word_stands_in_the_prefix():
    """`\\n\\nSo` at a text's beginning, or behind `<think></think>`: a continuation that wrote it again would end there."""
    plan = plan_prefixes(
        [dataclasses.replace(subject("a", 2), uncounted=(0, 1, 5))], PrefixConfig(), context=500
    )
    assert plan.prefixes == ((State((1, 2, 0, 1)), State((1, 2, 0, 1, 2))),)


@pytest.mark.parametrize("begin", ["<think>\n", "\n", "\n\n", "<think>\n\n</think>\n\n"])
def test_a_certain_model_is_certain_of_every_line(tokenizer, config, monkeypatch, begin):
    """Whatever it goes on from, it says what the trace says: paragraphs, or the lines of one giant paragraph."""
    opened = begin == "\n"
    lines = [f"k{i}: we add {i} to the total and write it down in words, so k = {100 + i}" for i in range(40)]
    shown, model = {}, SimpleNamespace(config=config)
    monkeypatch.setattr(
        "caspo_jax.evaluation.faithfulness.prefix.generate",
        lambda m, t, questions, sample, *_, **__: replayed(questions, sample),
    )
    spelled = token_bytes(tokenizer, config.vocab_size)

    def replayed(questions, sample):
        found = []
        for q in questions:
            done = len(q.prompt_ids) - len(shown["trace"].prompt_ids)
            ids = shown["trace"].token_ids[done : done + sample.max_new_tokens]
            before, stop, _ = b"".join(spelled[i] for i in ids).decode().partition(sample.stop[0])
            said = Trace(q.id, None, None, None, q.prompt_ids, (), before + stop, "stop")
            found += [said] * sample.num_samples
        return found

    for between in ("\n\n", "\n"):
        text = begin + between.join(lines)
        if opened or begin == "<think>\n":
            text += "\n</think>\n\nIt is 139."
        prompt = "q?<think>" if opened else "q?"
        (found,) = prepare([Source("t", text, "text", prompt=prompt)], tokenizer, config)
        found = dataclasses.replace(found, notes=())  # too long for the tiny policy, which is not asked
        assert (found.giant, len(found.trace.steps)) == (between == "\n", 40)
        shown["trace"] = found.trace
        model.config = SimpleNamespace(context=10**6)
        (sure,) = prefix_consistency(model, tokenizer, [found], AnswerEquivalence(), KEY)
        assert sure.confidence == (1.0,) * 20


def test_continuations_are_judged_a_few_traces_at_a_time(tmp_path, tokenizer, config, monkeypatch):
    """Beside each stands all the text before its step: of many long thoughts gigabytes. What was judged before a kill stays."""

    def generate(model, tokenizer, questions, sample, *rest, **options):
        said = [f"value {k % 2}" for k in range(sample.num_samples)]
        return [Trace(q.id, None, None, None, q.prompt_ids, (), t, "stop") for q in questions for t in said]

    class Killed(Recorder):
        def judge(self, items):
            assert len(items) <= 2048
            assert len({id(item.prefix) for item in items}) <= 5 * 100  # one text for all beside a step
            if self.asked:
                raise KeyboardInterrupt
            return super().judge(items)

    monkeypatch.setattr("caspo_jax.evaluation.faithfulness.prefix.generate", generate)
    subjects = [subject(f"t{k}", 5, prompt=(1, k)) for k in range(30)]
    settings = PrefixConfig(samples=20, max_steps=5)
    model = SimpleNamespace(config=config)
    stage = Stage(subjects, tmp_path, {})
    killed, rest, whole = Killed(), Recorder(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        prefix_stage(stage, model, tokenizer, killed, settings)
    prefix_stage(stage, model, tokenizer, rest, settings)
    prefix_stage(Stage(subjects, tmp_path / "whole", {}), model, tokenizer, whole, settings)
    assert killed.asked + rest.asked == whole.asked
    assert (tmp_path / "prefix.jsonl").read_text() == (tmp_path / "whole" / "prefix.jsonl").read_text()


def test_filters_reach_the_sampler_and_are_named(tmp_path, tokenizer, config, monkeypatch):
    samples = []

    def generate(model, tokenizer, questions, sample, *rest, **options):
        samples.append(sample)
        return [Trace(q.id, None, None, None, q.prompt_ids, (), "value 0", "stop") for q in questions]

    monkeypatch.setattr("caspo_jax.evaluation.faithfulness.prefix.generate", generate)
    off = {"top_k": 0, "min_p": 0.0, "ignore_eos": False}
    for name, filters in (("off", {}), ("on", {"top_k": 7, "min_p": 0.25, "ignore_eos": True})):
        stage = Stage([subject("a", 1)], tmp_path / name, {})
        settings = PrefixConfig(samples=1, **filters)
        prefix_stage(stage, SimpleNamespace(config=config), tokenizer, Recorder(), settings)
        for field in ("top_k", "min_p", "ignore_eos"):
            assert getattr(samples[-1], field) == getattr(settings, field)
        for file in ("continuations", "prefix"):
            manifest = json.loads(manifest_path(stage.folder / f"{file}.jsonl").read_text())
            assert manifest["config"].items() >= (off | filters).items()
    with pytest.raises(UserError, match="min_p"):
        PrefixConfig(min_p=2.0)


def test_continuations_end_with_the_context_at_the_latest(monkeypatch):
    """Of few lengths, so that there are few calls: all that was asked for, or a power of two that there is room for."""
    asked = {}

    def generate(model, tokenizer, questions, sample, *rest, **options):
        asked.update({len(q.prompt_ids): sample.max_new_tokens for q in questions})
        assert sample.num_samples == 2
        return [
            Trace(q.id, None, None, None, q.prompt_ids, (), f"{len(q.prompt_ids)}", "stop")
            for q in questions
            for _ in range(2)
        ]

    monkeypatch.setattr("caspo_jax.evaluation.faithfulness.prefix.generate", generate)
    model, config = (
        SimpleNamespace(config=SimpleNamespace(context=100)),
        PrefixConfig(samples=2, max_new_tokens=20),
    )
    lengths = range(1, 93)
    said = continue_prefixes(model, None, [State((0,) * n) for n in lengths], config, KEY)
    assert said == [[f"{n}"] * 2 for n in lengths]
    assert asked == {n: 20 if n <= 80 else 16 if n <= 84 else 8 for n in lengths}


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


def test_first_steps():
    assert first_step("a\n\nb", "\n\n") == "a"
    assert first_step("a\nb", "\n\n") == "a\nb"
    assert first_step("a\nb", "\n") == "a"
    assert first_step("a", "\n\n") == "a"
    assert first_step("", "\n\n") == ""
    assert first_step("a\n</think>\n\nb", "\n\n") == "a"  # the thought ends
    assert first_step("\n</think>\n\nb", "\n\n") == ""


@pytest.fixture(scope="module")
def policy():
    task = get_task("graph")
    return task, *cj.load_pretrained(task.policy_path)


def test_a_prefix_has_its_own_continuations(policy):
    task, model, tokenizer = policy
    questions = task.questions("tune", 3, seed=1)
    prompts = [
        State(
            tuple(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": q.question}], add_generation_prompt=True
                )["input_ids"]
            )
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
    for bad in (
        {"samples": 0},
        {"samples": 2.5},
        {"unparsed": 2.0},
        {"temperature": 0.0},
        {"temperature": "0.8"},
        {"top_p": 0.0},
        {"max_steps": 0},
    ):
        with pytest.raises(UserError, match=next(iter(bad))):
            PrefixConfig(**bad)
    published = {
        "samples": 10,
        "temperature": 0.8,
        "top_p": 0.95,
        "max_new_tokens": 200,
        "max_steps": 20,
        "unparsed": 0.5,
    }
    assert PrefixConfig() == PrefixConfig(**published)
