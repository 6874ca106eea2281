"""What verifiers that decode ask of a policy."""

import types

import pytest

from caspo_jax.models import tokenizer
from caspo_jax.sampling import batch
from caspo_jax.tasks import get_task
from caspo_jax.training.stages import Policy
from caspo_jax.types import Question
from experiments import common, verifiers

TASK = get_task("graph")


@pytest.fixture(scope="module")
def policy():
    return Policy.load(TASK.policy_path)


def test_outputs_do_not_depend_on_the_questions_beside(policy, monkeypatch):
    monkeypatch.setattr(verifiers, "FLAGS", types.SimpleNamespace(seed=0, batch_size=4))
    context = policy.model.config.context
    text = next(iter(TASK.questions("test", 1, 0))).question
    ids = tuple(policy.tokenizer(text)["input_ids"])
    short = Question("short", prompt_ids=ids)
    tight = Question("tight", prompt_ids=(ids * context)[: context - 5])
    full = Question("full", prompt_ids=(ids * context)[:context])
    generate = verifiers.generate_with(policy, temperature=1.0)
    alone = generate([short], 2)
    together = generate([full, short, tight], 2)
    assert [t.token_ids for t in together[2:4]] == [t.token_ids for t in alone]
    assert all(t.finish_reason in ("eos", "stop") for t in alone)
    assert [(t.token_ids, t.finish_reason) for t in together[:2]] == [((), "length")] * 2
    assert all(len(t.token_ids) <= 4 for t in together[4:])


def test_a_prompt_is_encoded_once(policy, monkeypatch):
    """A judge's prompts hold whole prefixes: those of 256 long traces take minutes to encode."""
    monkeypatch.setattr(verifiers, "FLAGS", types.SimpleNamespace(seed=0, batch_size=4))
    encoded, encode = [], tokenizer._encode_question
    monkeypatch.setattr(
        tokenizer, "_encode_question", lambda *asked: (encoded.append(asked[1]), encode(*asked))[1]
    )
    question = Question("q", question=next(iter(TASK.questions("test", 1, 0))).question)
    (trace,) = verifiers.generate_with(policy, temperature=0.0)([question], 1)
    assert encoded == [question.question]
    assert trace.question == question.question


@pytest.mark.ci
def test_short_prompts_are_not_as_wide_as_the_longest(policy, monkeypatch):
    monkeypatch.setattr(verifiers, "FLAGS", types.SimpleNamespace(seed=0, batch_size=4))
    monkeypatch.setattr(common, "MOST_NEW_TOKENS", 8)
    ids = tuple(policy.tokenizer(TASK.questions("test", 1, 0)[0].question)["input_ids"])
    asked = [Question(str(n), prompt_ids=(ids * 20)[:n]) for n in (9, 300, 20, 40, 299, 64, 65)]
    generate = verifiers.generate_with(policy, temperature=1.0)
    together, widths, read = generate(asked, 2), [], batch.read_prompts

    def reading(graphdef, params, prompts, count, columns, **options):
        widths.append((sorted(map(len, prompts)), columns))
        return read(graphdef, params, prompts, count, columns, **options)

    monkeypatch.setattr(batch, "read_prompts", reading)
    monkeypatch.setattr(verifiers, "ONE_CLASS", 64)
    apart = generate(asked, 2)
    assert [(t.id, t.token_ids) for t in apart] == [(t.id, t.token_ids) for t in together]
    assert all(lengths[0] > max(64, columns // 2) or columns <= 64 for lengths, columns in widths)
    assert sorted(n for lengths, _ in widths for n in lengths) == sorted(len(q.prompt_ids) for q in asked)


@pytest.mark.parametrize(
    ("length", "most"), [(1, 2048), (2048, 2048), (2049, 4096), (4096, 4096), (4097, 8192)]
)
def test_prompt_class(length, most):
    assert verifiers.prompt_class(length) == most


@pytest.mark.parametrize(("left", "most"), [(-3, 0), (0, 0), (1, 1), (9, 8), (1024, 1024), (30_000, 1024)])
def test_new_tokens(left, most):
    assert verifiers.new_tokens(left) == most
