"""The pass that reads recorded tokens again, against the sampler's own record and the model's whole logits."""

import jax
import numpy as np
import pytest

from caspo_jax import padding
from caspo_jax.evaluation import rescoring
from caspo_jax.evaluation.rescoring import statistics_and_kl, token_statistics
from caspo_jax.models import load_pretrained
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.tasks import get_task

FIELDS = ("entropy", "logprob", "top1_logprob")


@pytest.fixture(scope="module")
def written():
    task = get_task("graph")
    model, tokenizer = load_pretrained(task.policy_path)
    config = SampleConfig(max_new_tokens=64, num_samples=2, temperature=0.7)
    questions = task.questions("test", 3, seed=0)
    return model, generate(model, tokenizer, questions, config, jax.random.key(0))


def test_statistics_are_those_that_the_sampler_recorded(written):
    model, traces = written
    seen = []
    found = token_statistics(model, traces, FIELDS, batch_size=4, progress=lambda *at: seen.append(at))
    assert seen == [(min(done, len(traces)), len(traces)) for done in range(4, len(traces) + 4, 4)]
    for stats, trace in zip(found, traces, strict=True):
        np.testing.assert_allclose(stats.logprob, trace.logprob, atol=2e-5)
        np.testing.assert_allclose(stats.entropy, trace.entropy, atol=2e-5)


def test_of_long_traces_few_are_read_at_once(written, monkeypatch):
    """64 traces of 8,192 tokens took 18 GiB beside a model of 1.5B parameters."""
    model, traces = written
    whole = token_statistics(model, traces, FIELDS)
    monkeypatch.setattr(padding, "MOST_TOKENS", 256)
    shapes = [ids.shape for ids, *_ in rescoring._batches(traces, 64, 1)]
    assert len(shapes) > 1
    assert max(map(np.prod, shapes)) <= 256
    for few, stats in zip(token_statistics(model, traces, FIELDS), whole, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), few, stats)


def test_one_pass_gives_the_statistics_and_the_divergence(written):
    model, traces = written
    context = 1
    alone = token_statistics(model, traces, FIELDS, batch_size=4)
    stats, divergence = statistics_and_kl(model, traces, FIELDS, context, batch_size=4)
    reference = np.asarray(jax.nn.log_softmax(model(np.array([[context]]))[0, 0]), np.float64)
    for trace, mine, same, kl in zip(traces, stats, alone, divergence, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), mine, same)
        ids = np.array([[*trace.prompt_ids, *trace.token_ids]])
        logits = np.asarray(model(ids)[0], np.float64)[len(trace.prompt_ids) - 1 : -1]
        p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        np.testing.assert_allclose(kl, np.sum(np.exp(p) * (p - reference), axis=-1), rtol=1e-4, atol=1e-4)
        assert kl.shape == (len(trace.token_ids),)
        assert (kl >= 0).all()
