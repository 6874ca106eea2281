"""CoT-decoding: where its paths end, and which tokens are the answer's."""

import dataclasses
import operator
import types

import numpy as np
import pytest

from caspo_jax.confidence import TokenStats
from caspo_jax.evaluation.strategies import cot_decoding as cot_module
from caspo_jax.evaluation.strategies.base import Context, Settings
from caspo_jax.evaluation.strategies.cot_decoding import answer_tokens
from caspo_jax.sampling import SampleConfig
from caspo_jax.types import Question
from tests.evaluation.test_strategies import trace


@pytest.mark.parametrize(("stop", "limit", "want"), [
    ((), 9, [(0, 2, 1, 3), (2, 2, 1, 3)]), ((), 1, [(0,), (2,)]), (("\n\n",), 9, [(0, 2), (2,)]),
    (("\n\n\n\nb",), 9, [(0, 2, 1, 3), (2, 2, 1)]),
])  # fmt: skip
def test_cot_decoding_ends_at_stop_strings_that_begin_in_the_first_token(monkeypatch, stop, limit, want):
    spelled, outputs = [b"a", b"b", b"\n\n", b""], []

    def generate(model, tokenizer, starts, config, key, **options):
        assert config.max_new_tokens == max(1, limit - 1)  # the first token is there
        rest = (2, 1, 3)[: config.max_new_tokens]
        return [dataclasses.replace(trace(rest), id=q.id) for q in starts]

    def statistics(model, traces, fields):
        outputs.extend(t.token_ids for t in traces)
        return [TokenStats(top1_logprob=np.zeros(len(i)), top2_logprob=np.zeros(len(i))) for i in outputs]

    context = faked(monkeypatch, spelled, [0, 2], generate, statistics)
    settings = Settings(sample=SampleConfig(max_new_tokens=limit, stop=stop), first_tokens=2)
    (found,) = cot_module.cot_decoding(context, settings)
    assert outputs == want
    assert found.tokens == sum(map(len, want))


def faked(monkeypatch, spelled, first, generate, statistics):
    """The context of one question with these first tokens; token 3 ends outputs."""
    fakes = {
        "encode_prompt": lambda tokenizer, question: [0],
        "first_tokens": lambda context, prompts, count: np.array([first]),
        "token_bytes": lambda tokenizer, size: spelled,
        "eos_ids": lambda config, tokenizer: (3,),
        "generate": generate,
        "token_statistics": statistics,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(cot_module, name, fake)
    model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=len(spelled)))
    return Context(model, None, [Question("q", "q", gold="b")], None, str, lambda *_: True, operator.eq)


def test_fewer_first_tokens_cost_what_their_outputs_do(monkeypatch):
    """Of four outputs of 2, 4, 7 and 1 tokens the first two are those of two first tokens."""
    spelled = [b"a", b"b", b"c", b"", b"d"]

    def generate(model, tokenizer, starts, config, key, **options):
        counts = {0: 1, 1: 3, 2: 6}
        return [dataclasses.replace(trace((4,) * counts.get(q.prompt_ids[-1], 6)), id=q.id) for q in starts]

    def statistics(model, traces, fields):
        sizes = [len(t.token_ids) for t in traces]
        return [TokenStats(top1_logprob=np.zeros(n), top2_logprob=np.zeros(n)) for n in sizes]

    context = faked(monkeypatch, spelled, [0, 1, 2, 3], generate, statistics)
    found = cot_module.cot_decoding(context, Settings(first_tokens=4))
    assert [(a.size, a.tokens, a.calls, a.seconds is None) for a in found] == [
        ("2", 2 + 4, 1 + 4, True),
        ("4", 2 + 4 + 7 + 1, 1 + 7, False),
    ]


def test_answer_tokens_are_those_of_the_last_occurrence():
    spelled = [b"4", b"2", b" 42", b"answer: ", b"", b"x4"]
    found = answer_tokens(trace([2, 3, 0, 1, 4]), "42", spelled)
    assert found.tolist() == [False, False, True, True, False]
    assert answer_tokens(trace([3, 5, 1]), "42", spelled).tolist() == [False, True, True]
    assert answer_tokens(trace([3, 0]), "7", spelled).all()
    assert answer_tokens(trace([3, 0]), None, spelled).all()
