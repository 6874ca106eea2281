import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.evaluation import compare
from caspo_jax.evaluation.compare import matched_temperature, sample_tables, tempered
from caspo_jax.evaluation.strategies import VOTE_CONFIDENCE
from caspo_jax.evaluation.tables import tabulate
from caspo_jax.models import load_pretrained, token_bytes
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.steps import StatedEquations, annotate, annotate_traces, segment_trace
from caspo_jax.tasks import extract_answer, get_task
from caspo_jax.types import Question, Trace


@pytest.mark.parametrize("temperature", [0.5, 1.4])
def test_tempered_divides_the_logits_and_leaves_the_model_alone(temperature):
    model, _ = load_pretrained(get_task("graph").policy_path)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 12)))
    before = np.asarray(model(ids))
    other = tempered(model, temperature)
    np.testing.assert_allclose(other(ids), before / temperature, atol=1e-4)
    np.testing.assert_array_equal(model(ids), before)


def test_steps_are_found_once_and_measured_by_both_confidences(monkeypatch):
    """The figures of annotated traces, and of their steps' likelihoods, as if each had been segmented by itself."""
    task = get_task("graph")
    model, tokenizer = load_pretrained(task.policy_path)
    questions, key = task.questions("test", 3, seed=0), jax.random.key(0)
    config = SampleConfig(max_new_tokens=96, num_samples=2)
    answers = {"extract": extract_answer, "equal": str.__eq__}
    segmented = []
    segment = annotate.segment
    monkeypatch.setattr(annotate, "segment", lambda *a: segmented.append(a) or segment(*a))
    found = sample_tables(model, tokenizer, questions, config, key, verifier=task.verifier(), **answers)
    assert len(segmented) == 6

    traces = generate(model, tokenizer, questions, config, key, step_confidence=VOTE_CONFIDENCE)
    spelled = token_bytes(tokenizer, model.config.vocab_size)
    annotated = annotate_traces(
        traces, spelled, verifier=task.verifier(), confidence=VOTE_CONFIDENCE, **answers
    )
    likely = [segment_trace(t, spelled, confidence="sum_logprob") for t in traces]
    ids = [q.id for q in questions for _ in range(2)]
    wanted = tabulate(annotated, ids, [[step.confidence for step in trace.steps] for trace in likely])
    for field in dataclasses.fields(wanted):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name))


def written(question, text, logprob, entropy=0.5):
    """A trace of one token a character; the bytes are its ids."""
    ids = tuple(text.encode())
    return Trace(
        question, question, "5", None, (0,), ids, text, "eos", logprob=(logprob,) * len(ids), entropy=(entropy,) * len(ids)
    )  # fmt: skip


def test_tables_of_samples_know_whose_they_are(monkeypatch):
    traces = [written("p", "2+3=5", -0.1), written("p", "2+3=6\n\n1+4=5", -0.2), written("q", "1+1=2", -0.3), written("q", "1+2=2", -0.4)]  # fmt: skip
    monkeypatch.setattr(compare, "generate", lambda *args, **run: traces)
    monkeypatch.setattr(compare, "token_bytes", lambda tokenizer, size: [bytes([b]) for b in range(256)])
    model, kept = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=256)), []
    found = sample_tables(
        model, None, [Question("p"), Question("q")], SampleConfig(num_samples=2), None,
        verifier=StatedEquations(), extract=lambda text: text[-1:], equal=str.__eq__, keep=kept.extend,
    )  # fmt: skip
    assert found.question.tolist() == ["p", "p", "q", "q"]
    assert found.step_question.tolist() == ["p", "p", "p", "q", "q"]
    assert found.right.tolist() == [1, 0, 1, 1, 0]
    assert found.correct.tolist() == [1, 1, 0, 0]
    sums = np.array([-0.1 * 5, -0.2 * 5, -0.2 * 5, -0.3 * 5, -0.4 * 5])
    np.testing.assert_allclose(found.likelihood, np.exp(sums))
    np.testing.assert_allclose(found.logprob_confidence, np.exp([-0.1, -0.2, -0.2, -0.3, -0.4]))
    assert [t.correct for t in kept] == [True, True, False, False]


def test_the_matched_temperature_is_where_samples_are_as_uncertain(monkeypatch):
    monkeypatch.setattr(compare, "tempered", lambda model, temperature: temperature)
    asked = []

    def generate(temperature, tokenizer, questions, sample, key, **run):
        asked.append(temperature)
        return [written("p", "aa", -1.0, temperature**2), written("q", "b", -1.0, temperature**2)]

    monkeypatch.setattr(compare, "generate", generate)
    found = matched_temperature(None, None, [], SampleConfig(), 0.49, None, iterations=12)
    assert found == pytest.approx(0.7, rel=1e-3)
    assert asked[0] == pytest.approx((0.1 * 1.5) ** 0.5)
    assert len(asked) == 12
