"""Questions from what a caller gives, and bad input refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_model import KEY

import caspo_jax as cj
from caspo_jax.errors import UserError
from caspo_jax.sampling import CatConfig, Knobs, NamedStepConfidence, build_automaton, init_state
from caspo_jax.sampling.questions import as_questions, question_keys
from caspo_jax.types import Question


def test_records_of_a_file_are_questions():
    given = [{"id": 7, "problem": "one", "answer": 3}, types.MappingProxyType({"prompt_ids": [1, 2]}), "one"]
    a, b, c = as_questions(given)
    assert (a.id, a.question, a.gold) == ("7", "one", "3")
    assert b.prompt_ids == (1, 2)
    assert b.id
    assert as_questions([{"question": "one"}])[0].id == c.id  # as the string's
    for ids in ((1, 2), np.array([1, 2], np.int32), [np.int64(1), 2]):
        (question,) = as_questions([{"prompt_ids": ids}])
        assert question == dataclasses.replace(b, id=question.id)
        assert [type(i) for i in question.prompt_ids] == [int, int]
    for ids in (np.array([1.0]), np.array([[1]]), (1, True)):
        with pytest.raises(UserError, match="token ids"):
            as_questions([{"prompt_ids": ids}])
    for record, word in (({"id": "a"}, "needs one of"), ({"prompt_ids": "ab"}, "token ids")):
        with pytest.raises(UserError, match=rf"questions\[1\].*{word}"):
            as_questions(["one", record])


def test_token_ids_of_a_question_may_be_an_array():
    given = Question(id="a", prompt_ids=np.array([1, 2]))
    assert (
        as_questions([given, dataclasses.replace(given, prompt_ids=[1, 2])])
        == [Question(id="a", prompt_ids=(1, 2))] * 2
    )


def test_string_questions_have_stable_ids():
    a, b = as_questions(["one", "two"])
    assert as_questions(["two"])[0].id == b.id != a.id


def test_ids_and_keys_are_those_of_every_version():
    """What was sampled can be sampled again: a question's id, its hash and its key have their definitions."""
    (question,) = as_questions(["How many?"])
    assert question.id == hashlib.blake2b(b"How many?", digest_size=8).hexdigest()
    number = int(hashlib.blake2b(question.id.encode(), digest_size=4).hexdigest(), 16)
    (key,) = question_keys(KEY, [question.id])
    np.testing.assert_array_equal(key, jax.random.key_data(jax.random.fold_in(KEY, np.uint32(number))))


def test_keys_of_any_number_of_questions_come_of_few_programs(caplog):
    """Strategies ask about other numbers of prefixes at every step: each number was three programs to compile."""
    names = [f"q{i}" for i in range(130)]
    many = question_keys(KEY, names)
    assert many.shape == (130, 2)
    caplog.clear()
    with jax.log_compiles():
        for count in (0, 1, 7, 64, 65, 100, 128):
            np.testing.assert_array_equal(question_keys(KEY, names[:count]), many[:count])
    compiled = [m for m in caplog.messages if m.startswith("Compiling")]
    assert len(compiled) <= 2, compiled  # of 64 keys and of 128; 130 were made before


def test_numbers_beyond_integers_of_32_bits_are_no_limit():
    most, huge = np.iinfo(np.int32).max, 10**12
    config = CatConfig(
        expand=huge, num_answers=huge, min_live=huge, sample=cj.SampleConfig(max_new_tokens=huge)
    )
    knobs = Knobs.of(config)
    numbers = (knobs.expand, knobs.num_answers, knobs.min_live, knobs.token_budget, knobs.max_new_tokens)
    assert [int(number) for number in numbers] == [most] * 5


@pytest.mark.parametrize(
    "questions, match",
    [
        ("one", "list"),
        ({"question": "one"}, "questions is one question: give a list of them"),
        (types.SimpleNamespace(iterrows=None), r'give a list of its rows, table.to_dict\("records"\)'),
        (["x", "\ud800"], r"questions\[1\]: character 0 is a lone surrogate"),
        ([{"question": "\ud800"}], r"questions\[0\]: character 0 is a lone surrogate"),
        (
            [Question(id="a", prompt_ids=(5.5, 6))],
            r"questions\[0\]: `prompt_ids` must be a list of token ids",
        ),
        ([3], "int"),
        ([Question(id="a", question="x"), Question(id="a", question="y")], "'a'"),
        ([Question(id=3, question="x")], r"questions\[0\]: id=3 is a int: give a string"),
        (["x", " "], r"questions\[1\]: the prompt is empty"),
        ([Question(id="a", question="")], r"questions\[0\]: the prompt is empty"),
    ],
)
def test_bad_questions(questions, match):
    with pytest.raises(UserError, match=match):
        as_questions(questions)


def test_bad_prompts_and_keys(model_and_tokenizer, questions):
    config = cj.SampleConfig(max_new_tokens=4)
    with pytest.raises(UserError, match="vocabulary"):
        cj.generate(*model_and_tokenizer, [Question(id="x", prompt_ids=(10**6,))], config, KEY)
    with pytest.raises(UserError, match="context"):
        cj.generate(*model_and_tokenizer, questions, cj.SampleConfig(max_new_tokens=10**6), KEY)
    with pytest.raises(UserError, match="key"):
        cj.generate(*model_and_tokenizer, questions, config, 0)
    for size in (0, 4.0):
        with pytest.raises(UserError, match=f"batch_size={size}: give an integer"):
            cj.generate(*model_and_tokenizer, questions, config, KEY, batch_size=size)
    with pytest.raises(UserError, match="generate takes a SampleConfig as config, not a CatConfig"):
        cj.generate(*model_and_tokenizer, questions, CatConfig(), KEY)
    with pytest.raises(UserError, match="cat_search takes a CatConfig as config, not a SampleConfig"):
        cj.cat_search(*model_and_tokenizer, questions, config, KEY)
    assert cj.generate(*model_and_tokenizer, [], config, KEY) == []


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-38}, "temperature=1e-38"),
        ({"temperature": 0, "top_p": 0.9}, "greedy"),
        ({"temperature": 0, "num_samples": 2}, "greedy"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"step_delimiter": ""}, "step_delimiter"),
        ({"step_delimiter": 5}, "step_delimiter=5: give a string"),
        ({"stop": ("",)}, "stop"),
        ({"stop": 5}, "stop=5: give a string"),
        ({"stop": ("a", 5)}, "give a string"),
        ({"max_new_tokens": "5"}, "max_new_tokens='5': give an integer"),
        ({"max_new_tokens": np.float32(5)}, "max_new_tokens=5.0: give an integer"),
        ({"temperature": "1"}, r"temperature='1': give a number in \[0, inf\)"),
        ({"temperature": True}, "temperature=True: give a number in"),
        ({"top_p": "0.9"}, "top_p='0.9': give a number"),
        ({"top_p": None}, "top_p=None: give a number"),
        ({"min_p": "0.1"}, "min_p='0.1': give a number"),
    ],
)
def test_contradictory_sampling_is_refused(changes, match):
    with pytest.raises(UserError, match=match):
        cj.SampleConfig(**changes)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"sample": cj.SampleConfig(temperature=0)}, "temperature=0"),
        ({"sample": cj.SampleConfig(temperature=0), "expand": 1}, "temperature=0"),
        ({"sample": cj.SampleConfig(temperature=0), "root_branches": 1}, "temperature=0"),
        ({"sample": cj.SampleConfig(num_samples=3)}, "num_samples"),
        ({"num_branches": 2, "root_branches": 3}, "root_branches"),
        ({"num_branches": 8, "token_budget": 3}, "token_budget"),
        ({"token_budget": 100.5}, "token_budget=100.5: give an integer"),
        ({"step_confidence": "vibes"}, "vibes"),
        ({"path_confidence": "mean"}, "geometric"),
        ({"prune": "first"}, "relative"),
        ({"vote": "loudest"}, "majority"),
        ({"expand": 0}, "expand"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "0.5"}, "threshold='0.5' is not a number"),
        ({"threshold": None}, "threshold=None is not a number"),
    ],
)
def test_contradictory_searches_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        cj.CatConfig(**changes)


def test_what_lies_on_a_limit_is_allowed():
    search = cj.CatConfig(num_branches=4, root_branches=4, token_budget=4)
    assert (search.roots, search.token_budget) == (4, 4)
    assert cj.SampleConfig(temperature=2.0**-126).temperature == 2.0**-126
    assert len(as_questions([Question(id="a", question="x"), Question(id="a", question="x")])) == 2


@pytest.mark.parametrize("key", [np.zeros(2, np.int32), np.zeros(2), np.zeros((1, 2), np.uint32)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(UserError, match="give one threefry key"):
        question_keys(key, ["a"])


def test_numpy_numbers_are_numbers():
    sample = cj.SampleConfig(max_new_tokens=np.int64(5), temperature=np.float32(0.5), top_p=np.float64(0.5))
    assert sample == cj.SampleConfig(max_new_tokens=5, temperature=0.5, top_p=0.5)
    search = cj.CatConfig(num_branches=np.int8(4), threshold=np.float32(0.5), token_budget=np.int64(90))
    assert search == cj.CatConfig(num_branches=4, threshold=0.5, token_budget=90)
    assert json.loads(json.dumps(dataclasses.asdict(search))) == {
        **dataclasses.asdict(search),
        "sample": {**dataclasses.asdict(search.sample), "stop": []},
    }


def test_greedy_turns_off_what_contradicts_it_and_keeps_where_outputs_end():
    sampled = cj.SampleConfig(
        32, 0.7, top_k=4, top_p=0.9, min_p=0.1, num_samples=3, stop=("x",), ignore_eos=True
    )
    assert sampled.greedy() == cj.SampleConfig(32, 0.0, stop=("x",), ignore_eos=True)


def test_inside_a_trace_the_host_functions_are_refused(model_and_tokenizer, questions):
    model, tokenizer = model_and_tokenizer
    config = cj.SampleConfig(max_new_tokens=4)

    def sampled(key):
        return cj.generate(model, tokenizer, questions, config, key)

    for call in (lambda: jax.jit(lambda x: sampled(KEY) and x)(1), lambda: jax.vmap(sampled)(KEY[None])):
        with pytest.raises(UserError, match="run on the host: call them outside of jit"):
            call()


def test_an_automaton_of_another_vocabulary_is_refused():
    automaton = build_automaton([b"a", b"b", b""], "\n\n", eos_ids=[2])
    with pytest.raises(UserError, match=r"automaton of 3 tokens does not match logits of shape \(1, 4\)"):
        init_state(
            (),
            jnp.zeros((1, 4)),
            jnp.zeros((1, 2), jnp.uint32),
            jnp.ones(1, jnp.int32),
            automaton,
            Knobs.of(CatConfig()),
            num_slots=1,
            capacity=4,
        )


@pytest.mark.parametrize(
    "keys",
    [jax.random.split(KEY, 2), jax.random.key_data(KEY), np.zeros((2, 2)), np.zeros((1, 2), np.uint32)],
)
def test_keys_that_are_no_raw_data_of_each_question_are_refused(keys):
    with pytest.raises(UserError, match=r"give raw threefry data \(2, 2\) uint32, as question_keys or"):
        init_state(
            (),
            jnp.zeros((2, 3)),
            keys,
            jnp.ones(2, jnp.int32),
            build_automaton([b"a", b"b", b""], "\n\n", eos_ids=[2]),
            Knobs.of(CatConfig()),
            num_slots=1,
            capacity=4,
        )


def test_histories_without_what_the_confidence_reads_are_refused():
    with pytest.raises(UserError, match="'entropy' needs the token statistic 'entropy'"):
        NamedStepConfidence("entropy")({"logprob": jnp.zeros((1, 2))}, jnp.ones((1, 2), bool))


def test_an_unknown_strategy_is_refused(model_and_tokenizer, questions):
    with pytest.raises(UserError, match="'Cat': choose from cat, self_consistency, explore"):
        cj.cat_search(*model_and_tokenizer, questions, cj.CatConfig(), KEY, strategy="Cat")
