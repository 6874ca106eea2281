"""Beam and Monte-Carlo tree search over steps, on a policy that is a table of next steps."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest
from flax import nnx

from caspo_jax import padding
from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies import beam as beam_module
from caspo_jax.evaluation.strategies import mcts as mcts_module
from caspo_jax.evaluation.strategies import prefixes as prefixes_module
from caspo_jax.evaluation.strategies.base import Context, Settings, graded
from caspo_jax.evaluation.strategies.prefixes import Prefixes
from caspo_jax.models import Decoder, RopeConfig, load_pretrained
from caspo_jax.sampling import SampleConfig
from caspo_jax.steps import segment_trace
from caspo_jax.tasks import get_task
from caspo_jax.types import Question, Step, Trace
from tests.shapes import small_shape

SPELLED = [b"a", b"b", b"c", b"\n\n", b""]
A, B, C, END, EOS = range(5)
# What may follow a prefix of steps, with the step's confidence; a path is two steps long and ends with EOS.
NEXT = {
    (): [((A, END), 0.9), ((B, END), 0.8)],
    (A, END): [((A, EOS), 0.2), ((B, EOS), 0.3)],
    (B, END): [((B, B, EOS), 0.95), ((C, EOS), 0.5)],
}


@dataclasses.dataclass(frozen=True)
class TablePrefixes:
    """Continues prefixes by the table, a step at a time or to the end, options in turn."""

    questions: int
    asked: list

    def extend(self, wanted, config):
        step_by_step = "\n\n" in config.stop
        found = []
        for question, ids, name in wanted:
            self.asked.append((question, ids, name))
            found.append([self.one(ids, i, step_by_step) for i in range(config.num_samples)])
        return found

    def extend_by_steps(self, wanted, config, room):
        return self.extend(wanted, config), room

    def one(self, ids, turn, step_by_step):
        rest, logprobs = (), []
        while True:
            options = NEXT[(*ids, *rest)]
            step, confidence = options[turn % len(options)]
            rest, logprobs = (*rest, *step), logprobs + [float(np.log(confidence))] * len(step)
            if step[-1] == EOS or step_by_step:
                break
        text = b"".join(SPELLED[i] for i in rest).decode()
        reason = "eos" if rest[-1] == EOS else "stop"
        return Trace("q", "q", None, None, (0,), rest, text, reason, logprob=tuple(logprobs))


@pytest.fixture
def world(monkeypatch):
    asked: list = []
    for module in (beam_module, mcts_module):
        fake = types.SimpleNamespace(of=lambda context, config, places: TablePrefixes(places, asked))
        monkeypatch.setattr(module, "Prefixes", fake)
        monkeypatch.setattr(module, "token_bytes", lambda tokenizer, size: SPELLED)
    context = Context(
        model=types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=5)),
        tokenizer=None,
        questions=[Question("x", "x", gold="bb"), Question("y", "y", gold="c")],
        key=jax.random.key(0),
        extract=lambda text: text.split("\n\n")[-1] or None,
        score=lambda answer, question: answer == question.gold,
        same=lambda a, b: a == b,
    )
    settings = Settings(sample=SampleConfig(max_new_tokens=32, temperature=0.7))
    return context, settings, asked


def test_beam_finds_what_greedy_steps_miss(world):
    context, settings, _ = world
    answers = beam_module.beam(context, dataclasses.replace(settings, beams=((1, 2), (2, 2))))
    by_size = {(a.size, a.question): a for a in answers}
    # One beam follows the surest first step, (a), into a corner: sqrt(.9 x .3); two beams keep (b): sqrt(.8 x .95).
    assert by_size["1x2", "x"].answer == "b"
    assert by_size["2x2", "x"].answer == "bb"
    assert [a.correct for a in graded(context, answers) if a.size == "2x2"] == [True, False]
    # 2 candidates of 2 tokens, then 2 of 2; with two beams 2 of 2, then 2 + 2 candidates of 2 or 3 tokens.
    assert by_size["1x2", "x"].tokens == 2 * 2 + 2 * 2
    assert by_size["2x2", "x"].tokens == 2 * 2 + 2 + 2 + 3 + 2
    assert by_size["2x2", "x"].calls == (1 + 2) + (1 + 3)
    assert all(a.seconds is not None for a in answers)


def test_beam_respects_the_length_limit_and_gives_up(world):
    context, settings, _ = world
    short = dataclasses.replace(settings.sample, max_new_tokens=3)
    answers = beam_module.beam(context, dataclasses.replace(settings, sample=short, beams=((2, 2),)))
    assert all(a.tokens <= 2 * 2 + 4 * 1 for a in answers)
    (one,) = {
        a.calls
        for a in beam_module.beam(context, dataclasses.replace(settings, beams=((2, 2),), most_steps=1))
    }
    assert one == 3


def test_beam_answers_with_what_ended_if_anything_did(world, monkeypatch):
    context, settings, _ = world
    monkeypatch.setitem(NEXT, (), [((A, END), 0.9), ((C, EOS), 0.5)])
    found = beam_module.beam(context, dataclasses.replace(settings, beams=((2, 2),), most_steps=1))
    assert [a.answer for a in found] == ["c", "c"]
    (one, _) = beam_module.beam(context, dataclasses.replace(settings, beams=((1, 1),), most_steps=1))
    assert one.answer is None  # "a" and its delimiter, and no answer behind it


def test_tree_search_counts_an_output_up_to_its_length_limit_and_rewards_no_other_end(world, monkeypatch):
    context, settings, _ = world
    monkeypatch.setitem(NEXT, (A, END), [((A, A, A, EOS), 1.0)])
    monkeypatch.setattr(mcts_module, "encode_prompt", lambda tokenizer, question: [1])
    monkeypatch.setattr(mcts_module, "without_thought", lambda tokenizer, ids: ids)
    context.model.config.context = 10
    short = dataclasses.replace(settings.sample, max_new_tokens=4)
    for judged in ("confidence", "prompt"):
        monkeypatch.setattr(mcts_module, "probability_of_yes", lambda context, prompts: [0.9, 0.2] * 2)
        found = mcts_module.mcts(
            context,
            dataclasses.replace(settings, sample=short, iterations=1, width=2, self_evaluation=judged),
        )
        assert [(a.answer, a.tokens, a.calls) for a in found] == [("c", 4 + 4, 1 + 4)] * 2


def test_the_policy_says_yes_as_it_is_sure_of_it(monkeypatch):
    logits = np.zeros((2, 5))
    logits[0, A], logits[1, B] = np.log(3), 1000.0
    monkeypatch.setattr(mcts_module, "next_logits", lambda model, prompts, read: read(logits))

    def tokenizer(word, add_special_tokens):
        return {"input_ids": [{"Yes": A, "No": B}[word], C]}

    context = types.SimpleNamespace(model=None, tokenizer=tokenizer)
    assert mcts_module.probability_of_yes(context, [[0], [0]]) == pytest.approx([0.75, 0.0])


def test_the_logits_behind_each_prompt_are_those_of_its_last_token(monkeypatch):
    model = Decoder(small_shape(), rngs=nnx.Rngs(0))
    prompts = [[1, 2, 3], [4], [5, 6, 7, 1, 2]]
    found = prefixes_module.next_logits(model, prompts, lambda logits: logits, rows=2)
    assert found.dtype == np.float64
    assert prefixes_module.next_logits(model, [], lambda logits: logits[:, 0]).shape == (0,)
    monkeypatch.setattr(padding, "MOST_TOKENS", 64)  # long prompts: fewer together
    by_one = prefixes_module.next_logits(model, prompts, lambda logits: logits, rows=2)
    np.testing.assert_allclose(by_one, found, rtol=1e-4, atol=1e-5)
    for mine, prompt in zip(found, prompts, strict=True):
        np.testing.assert_allclose(mine, model(np.array([prompt], np.int32))[0, -1], rtol=1e-4, atol=1e-5)


def test_logits_are_made_of_the_last_tokens_alone():
    """Of every token they would take gigabytes: 32 prompts of 640 tokens and a vocabulary of 152k."""
    vocab, rows, length = 20_000, 4, 128
    model = Decoder(dataclasses.replace(small_shape(), vocab_size=vocab), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    rows_of = [jax.ShapeDtypeStruct((rows, length), dtype) for dtype in (np.int32, np.bool_)]
    program = prefixes_module._last_logits.lower(graphdef, params, *rows_of).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * rows * length * vocab / 4


def test_tree_search_rewards_what_it_is_sure_of(world):
    context, settings, asked = world
    found = mcts_module.mcts(context, dataclasses.replace(settings, iterations=4, width=2, exploration=0.1))
    assert [a.size for a in found if a.question == "x"] == ["2", "4", "8"]
    first = next(a for a in found if a.question == "x")
    # Round 1 writes "a, a" (.9, .2) and "b, c" -> turn 1: (b, c): .8, .5: the second is the surer.
    assert first.answer == "c"
    assert first.tokens == 4 + 4
    assert first.calls == 1 + 4
    # Then the search goes on below (b), whose reward was higher, and finds "bb".
    assert (0, (B, END), "round2") in asked
    assert [a.answer for a in found if a.question == "x"][-1] == "bb"
    assert [a.correct for a in graded(context, found) if a.size == "8"] == [True, False]
    assert all(a.scored == 0 for a in found)
    tokens = [a.tokens for a in found if a.question == "x"]
    assert tokens == sorted(tokens)


def test_tree_search_asks_the_policy_where_told_to(world, monkeypatch):
    context, settings, _ = world
    monkeypatch.setattr(
        mcts_module, "encode_prompt", lambda tokenizer, question: [1] * len(question.question)
    )
    # A template that opens a thought would have `Yes` and `No` compared as its first word.
    monkeypatch.setattr(mcts_module, "without_thought", lambda tokenizer, ids: [*ids, 2])
    asked = []

    def yes(context, prompts):
        asked.extend(prompts)
        return [0.25] * len(prompts)

    monkeypatch.setattr(mcts_module, "probability_of_yes", yes)
    context.model.config.context = 10_000
    prompted = dataclasses.replace(settings, iterations=1, width=2, self_evaluation="prompt")
    found = mcts_module.mcts(context, prompted)
    assert len(asked) == 4
    assert {prompt[-1] for prompt in asked} == {2}
    assert [a.scored for a in found] == [sum(map(len, asked[:2])), sum(map(len, asked[2:]))]
    context.model.config.context = 3  # nothing fits: nothing is judged, nothing is rewarded
    assert all(a.scored == 0 for a in mcts_module.mcts(context, prompted))
    with pytest.raises(UserError, match="choose from confidence, prompt"):
        mcts_module.mcts(context, dataclasses.replace(settings, self_evaluation="other"))


def test_a_policy_that_is_asked_about_prompt_ids_reads_what_they_say(world, monkeypatch):
    context, settings, _ = world
    asked = []
    monkeypatch.setattr(mcts_module, "decode", lambda tokenizer, ids: f"<{ids}>")
    monkeypatch.setattr(
        mcts_module, "encode_prompt", lambda tokenizer, question: asked.append(question.question) or [1]
    )
    monkeypatch.setattr(mcts_module, "without_thought", lambda tokenizer, ids: ids)
    monkeypatch.setattr(mcts_module, "probability_of_yes", lambda context, prompts: [0.5] * len(prompts))
    context.model.config.context = 10_000
    questions = [Question("x", prompt_ids=(7, 8)), Question("y", prompt="y?", prompt_ids=(9,))]
    prompted = dataclasses.replace(settings, iterations=1, width=1, self_evaluation="prompt")
    mcts_module.mcts(dataclasses.replace(context, questions=questions), prompted)
    assert [text.partition("\n")[0] for text in asked] == ["<(7, 8)>", "y?"]


def test_prefixes_go_as_far_as_yarn_does():
    rope = RopeConfig("yarn", factor=4.0, original_max_position_embeddings=8)
    plain = {"extract": str, "score": lambda *_: False, "same": lambda a, b: a == b}
    question = Question("q", prompt_ids=(1,) * 6)

    def columns(config):
        model = types.SimpleNamespace(config=config)
        context = Context(model, None, [question], jax.random.key(0), **plain)
        return Prefixes.of(context, SampleConfig(max_new_tokens=10), 1).columns

    assert columns(small_shape(max_position_embeddings=8, rope=rope)) == 16
    with pytest.raises(UserError, match="no room after prompts of 6 tokens"):
        columns(small_shape(max_position_embeddings=8))


@pytest.mark.parametrize("context", [1 + 12, 1 + 2 * 12])
def test_a_prefix_goes_on_to_the_end_of_its_output_however_full_the_context_is(world, monkeypatch, context):
    asked = []

    def generate(model, tokenizer, questions, config, key, *, limits=None, **options):
        limits = limits or [config.max_new_tokens] * len(questions)
        assert all(len(q.prompt_ids) + n <= context for q, n in zip(questions, limits))
        asked.append(limits)
        return [
            Trace(q.id, "q", None, None, (0,), (A,) * n, "a" * n, "length", logprob=(-1.0,) * n)
            for q, n in zip(questions, limits)
        ]

    monkeypatch.setattr(prefixes_module, "generate", generate)
    monkeypatch.setattr(prefixes_module, "encode_prompt", lambda tokenizer, question: [0])
    model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=5, context=context))
    sample = SampleConfig(max_new_tokens=12, temperature=0.7)
    prefixes = Prefixes.of(dataclasses.replace(world[0], model=model), sample, 4)
    wanted = [(0, (A,) * n, str(n)) for n in (0, 5, 11, 12)]
    found = prefixes.extend(wanted, sample)
    tight = context == 13
    assert asked == [[12, 7, 1] if tight else [12, 12, 12]]
    assert [len(traces) for traces in found] == [1, 1, 1, 0]
    short = dataclasses.replace(sample, max_new_tokens=4)
    prefixes.extend(wanted, short)
    assert asked[1] == ([4, 4, 1] if tight else [4, 4, 4])


def test_searches_by_steps_end_at_stop_strings_that_begin_in_a_prefix(world, monkeypatch):
    """After a whole step comes "bb": with the stop string that delimiter and "b" make, the first b ends the path."""
    context, settings, _ = world

    def generate(model, tokenizer, questions, config, key, **options):
        """Steps (b, b, END) for ever, each token with log-prob -1."""
        step_by_step = "\n\n" in config.stop
        count = min(3 if step_by_step else 12, config.max_new_tokens)
        ids = ((B, B, END) * 4)[:count]
        steps = tuple(Step(0, 2, i, min(i + 3, count), "bb", float(np.exp(-1))) for i in range(0, count, 3))
        reason = "stop" if step_by_step and count == 3 else "length"
        text = b"".join(SPELLED[i] for i in ids).decode()
        one = Trace("q", "q", None, None, (0,), ids, text, reason, logprob=(-1.0,) * count, steps=steps)
        return [one] * (config.num_samples * len(questions))

    monkeypatch.setattr(prefixes_module, "generate", generate)
    monkeypatch.setattr(prefixes_module, "token_bytes", lambda tokenizer, size: SPELLED)
    monkeypatch.setattr(prefixes_module, "encode_prompt", lambda tokenizer, question: [0])
    config = types.SimpleNamespace(vocab_size=5, context=99)
    read = []
    context = dataclasses.replace(
        context,
        model=types.SimpleNamespace(config=config),
        extract=lambda text: read.append(text) or text,
        questions=context.questions[:1],
    )
    sample = SampleConfig(max_new_tokens=12, temperature=0.7, stop=("\n\nb",))
    prefixes = Prefixes.of(context, sample, 1)
    (whole,), (rest,) = prefixes.extend([(0, (), "")], sample), prefixes.extend([(0, (A, END), "")], sample)
    assert (len(whole[0].token_ids), whole[0].finish_reason) == (12, "length")
    assert (rest[0].token_ids, rest[0].text, rest[0].finish_reason) == ((B,), "b", "stop")
    assert [step.confidence for step in rest[0].steps] == [pytest.approx(np.exp(-1))]
    monkeypatch.setattr(beam_module, "Prefixes", Prefixes)
    settings = dataclasses.replace(settings, sample=sample, beams=((1, 1),))
    (found,) = beam_module.beam(context, settings)
    assert (found.answer, found.tokens) == ("bb\n\nb", 4)


def test_a_step_past_the_length_limit_is_judged_by_what_the_output_has_of_it(world, monkeypatch):
    def generate(model, tokenizer, questions, config, key, **options):
        asked.append(config.max_new_tokens)
        count = min(4, config.max_new_tokens)
        one = Trace(
            "q", "q", None, None, (0,), (A, B, B, END)[:count], "abb\n\n"[:count], "stop" if count == 4 else "length",
            logprob=(-1.0, -1.0, -5.0, -5.0)[:count], steps=(Step(0, 3, 0, count, "abb"[:count], 0.1),),
        )  # fmt: skip
        return [one] * len(questions)

    asked: list[int] = []
    monkeypatch.setattr(prefixes_module, "generate", generate)
    monkeypatch.setattr(prefixes_module, "token_bytes", lambda tokenizer, size: SPELLED)
    monkeypatch.setattr(prefixes_module, "encode_prompt", lambda tokenizer, question: [0])
    model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=5, context=99))
    sample = SampleConfig(max_new_tokens=5, temperature=0.7, stop=("\n\n",))
    prefixes = Prefixes.of(dataclasses.replace(world[0], model=model), sample, 1)
    for room in (2, 5):
        asked.clear()
        ((trace,),), _ = prefixes.extend_by_steps([(0, (C, C, END), "")], sample, room)
        assert (trace.token_ids, trace.text, trace.finish_reason) == ((A, B), "ab", "length")
        if room == 5:
            assert [step.confidence for step in trace.steps] == [pytest.approx(np.exp(-1))]
        assert asked == [room]  # more room would not lengthen the output


def test_steps_are_the_same_whatever_the_room():
    task = get_task("graph")
    model, tokenizer = load_pretrained(task.policy_path)
    plain = {"extract": str, "score": lambda *_: False, "same": lambda a, b: a == b}
    context = Context(model, tokenizer, task.questions("test", 2, seed=0), jax.random.key(3), **plain)
    config = SampleConfig(
        max_new_tokens=40, num_samples=2, temperature=1.0, step_delimiter="\n", stop=("\n",)
    )
    prefixes = Prefixes.of(context, config, 3)
    wanted = [(0, (), "one"), (1, (), "two"), (1, tuple(tokenizer("m")["input_ids"]), "three")]

    def read(found):
        return [[(t.token_ids, t.finish_reason) for t in traces] for traces in found]

    def confidences(found):
        return [step.confidence for traces in found for trace in traces for step in trace.steps]

    whole = prefixes.extend(wanted, config)
    lengths = [len(t.token_ids) for traces in whole for t in traces]
    assert {t.finish_reason for traces in whole for t in traces} == {"stop"}
    few, first = prefixes.extend_by_steps(wanted, config, 4)
    assert read(few) == read(whole)
    assert 16 <= first < max(lengths) * 4  # many needed more, so the next steps begin with more
    enough, first = prefixes.extend_by_steps(wanted, config, max(lengths) + 1)
    assert read(enough) == read(whole)
    assert first == max(lengths) + 1
    np.testing.assert_allclose(confidences(few), confidences(whole), rtol=1e-5)


RUNS = [b"a", b"b.", b"\n", b"\n\n", b"\n\n\n", b"\nb", b".\n\nA", b".\n\nA\n", b""]  # the last is EOS
LONGEST = 24


def random_outputs(model, tokenizer, questions, config, key, *, limits=None, **options):
    """What a policy that often goes on with a delimiter samples: a function of the question's name and the sample."""
    traces = []
    for question in questions:
        for sample in range(config.num_samples):
            rng = np.random.default_rng([sample, *question.id.encode()])
            ids: list[int] = []
            reason = None
            while reason is None:
                ids.append(int(rng.choice(len(RUNS), p=[0.3, 0.1, 0.2, 0.13, 0.06, 0.06, 0.06, 0.06, 0.03])))
                if RUNS[ids[-1]] == b"":
                    reason = "eos"
                elif any(stop.encode() in b"".join(RUNS[i] for i in ids) for stop in config.stop):
                    reason = "stop"
                elif len(ids) == config.max_new_tokens:
                    reason = "length"
            logprobs = tuple((-3 * rng.random(LONGEST))[: len(ids)].tolist())
            bare = Trace("q", "q", None, None, (0,), tuple(ids), "", reason, logprob=logprobs)
            traces.append(segment_trace(bare, RUNS, confidence="mean_logprob"))
    return traces


@pytest.fixture
def runs(monkeypatch):
    """A context whose policy is `random_outputs`, and settings."""
    monkeypatch.setattr(prefixes_module, "generate", random_outputs)
    for module in (prefixes_module, beam_module, mcts_module):
        monkeypatch.setattr(module, "token_bytes", lambda tokenizer, size: RUNS)
    monkeypatch.setattr(prefixes_module, "encode_prompt", lambda tokenizer, question: [0])
    context = Context(
        model=types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=len(RUNS), context=99)),
        tokenizer=None,
        questions=[Question(f"q{i}", "x", gold="a") for i in range(12)],
        key=jax.random.key(0),
        extract=lambda text: text or None,
        score=lambda answer, question: False,
        same=lambda a, b: a == b,
    )
    sample = SampleConfig(max_new_tokens=LONGEST, temperature=1.0)
    return context, Settings(sample=sample, beams=((3, 3),), iterations=16, width=3, exploration=0.3)


def scored(ids, logprobs):
    """The steps that `annotate` and `score` give these tokens."""
    bare = Trace("q", "q", None, None, (0,), tuple(ids), "", "eos", logprob=tuple(logprobs))
    return segment_trace(bare, RUNS, confidence="mean_logprob").steps


def sure(steps):
    return [pytest.approx(step.confidence) for step in steps]


def test_beams_are_as_sure_as_the_steps_of_their_tokens(runs, monkeypatch):
    context, settings = runs
    grown, child = [], beam_module._child

    def noted(beam, *more):
        grown.append((beam, child(beam, *more)))
        return grown[-1][1]

    monkeypatch.setattr(beam_module, "_child", noted)
    beam_module.beam(context, settings)
    more_newlines = 0
    for before, after in grown:
        steps, old = (scored(beam.ids, beam.logprobs) for beam in (after, before))
        confidences = [step.confidence for step in steps]
        assert after.value == pytest.approx(np.exp(np.mean(np.log(confidences))) if steps else 0.0)
        assert confidences[: len(old)] == sure(old)
        assert len(steps) <= len(old) + 1
        more_newlines += bool(old) and steps[len(old) - 1].token_end > len(before.ids)
    assert more_newlines > 20


def test_states_of_the_tree_are_the_steps_of_their_tokens(runs, monkeypatch):
    context, settings = runs
    paths, outputs = [], []
    reward, rewards = mcts_module._reward, mcts_module._rewards
    monkeypatch.setattr(mcts_module, "_reward", lambda path, value: (paths.append(path), reward(path, value)))
    monkeypatch.setattr(
        mcts_module, "_rewards", lambda a, b, found, d: (outputs.extend(found), rewards(a, b, found, d))[1]
    )
    mcts_module.mcts(context, settings)
    assert max(map(len, paths)) > 3
    more_newlines = 0
    for path in paths:
        last = scored(path[-1].ids, path[-1].logprobs)
        for depth, node in enumerate(path):
            steps = scored(node.ids, node.logprobs)
            assert len(steps) == depth or node.ended
            assert not steps or steps[-1].token_end == len(node.ids)
            assert [step.confidence for step in last[: len(steps)]] == sure(steps)
            more_newlines += 0 < depth < len(last) and last[depth - 1].token_end > len(node.ids)
    assert more_newlines > 5
    for output in outputs:
        assert output.steps == scored(output.ids, output.logprobs)
