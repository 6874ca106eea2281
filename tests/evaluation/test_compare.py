import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.evaluation.compare import sample_tables, tempered
from caspo_jax.evaluation.strategies import VOTE_CONFIDENCE
from caspo_jax.evaluation.tables import tabulate
from caspo_jax.models import load_pretrained, token_bytes
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.steps import annotate, annotate_traces, segment_trace
from caspo_jax.tasks import extract_answer, get_task


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
