"""Figures of a confidence do not hang on the last bits of a model's numbers, which differ from batch to batch."""

import dataclasses

import jax
import numpy as np
import pytest

from caspo_jax import metrics
from caspo_jax.evaluation.confidence_items import confidence_items
from caspo_jax.evaluation.confidence_statistics import (
    interval_fields,
    level_statistics,
    ranking_statistics,
    scaled_statistics,
)
from caspo_jax.evaluation.confidences import confidence_table
from caspo_jax.evaluation.faithfulness import calibration_record
from caspo_jax.evaluation.faithfulness.table import Table
from caspo_jax.evaluation.rescoring import token_statistics
from caspo_jax.evaluation.tables import Tables, values
from caspo_jax.models import load_pretrained, token_bytes
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.steps import annotate_traces
from caspo_jax.tasks import get_task

# Four prefixes of two questions. The entropies of siblings are equal by definition where they part at their last token.
ENTROPY = np.array([0.2, 0.2, 0.5, 0.5, 0.1, 0.3, 0.4, 0.4])
RIGHT = np.array([1.0, 0, 1, 0, 1, 0, 0, 1])
PREFIX = np.repeat(np.arange(4), 2)
QUESTION = np.repeat(np.array(["a", "b"], dtype=object), 4)
WITHIN = (0.5 + 0.5 + 1.0 + 0.5) / 4


def batches():
    """The entropies as rows of two batches would have them."""
    rng = np.random.default_rng(0)
    return [ENTROPY + rng.uniform(-1e-7, 1e-7, ENTROPY.size) for _ in range(2)]


def test_ties_are_seen_through_the_last_bits():
    for entropy in batches():
        found = ranking_statistics(-entropy, RIGHT, QUESTION, PREFIX)
        assert found["within_prefix"](np.ones(8)) == WITHIN
    raw = [metrics.within_prefix_auroc(-entropy, RIGHT, PREFIX).value for entropy in batches()]
    assert all(value != WITHIN for value in raw)  # what comparing the numbers as they come gives


def test_a_confidence_of_0_has_a_rank():
    np.testing.assert_array_equal(metrics.rank_scores([-np.inf, -2e-6, np.nan]), [-np.inf, 0.0, np.nan])


def test_of_the_quickstart():
    of_traces = (np.array(["a", "b"], dtype=object), *[np.ones(2)] * 8)
    found = []
    for entropy in batches():
        of_steps = (QUESTION, PREFIX, entropy, np.exp(-entropy), np.exp(-4 * entropy), RIGHT)
        found.append(values(Tables(*of_steps, *of_traces)))
    for name in ("within_prefix_auroc", "within_prefix_logprob_auroc", "within_prefix_sum_logprob_auroc"):
        assert [values[name] for values in found] == [WITHIN, WITHIN], name
    assert found[0]["entropy_auroc"] == found[1]["entropy_auroc"]


def test_of_faithfulness():
    nothing = np.full(8, np.nan)
    for entropy in batches():
        table = Table(
            trace_ids=tuple("abcdefgh"),
            trace_group=QUESTION,
            trace=np.arange(8),
            group=QUESTION,
            prefix=PREFIX.astype(object),
            index=np.zeros(8, np.int64),
            position=np.zeros(8),
            right=RIGHT,
            texts=("s",) * 8,
            decisiveness={},
            confidence={"entropy": np.exp(-entropy)},
            trace_confidence={"entropy": nothing},
        )
        found = calibration_record(table, draws=5)["entropy"]
        assert found["within_prefix_auroc"]["value"] == WITHIN


@pytest.fixture(scope="module")
def sampled():
    """64 outputs of the tiny policy with exact verdicts."""
    task = get_task("graph")
    model, tokenizer = load_pretrained(task.policy_path)
    questions = task.questions("train", 8, seed=1)
    config = SampleConfig(max_new_tokens=96, num_samples=8)
    spelled = token_bytes(tokenizer, model.config.vocab_size)
    traces = generate(model, tokenizer, questions, config, jax.random.key(0))
    return model, spelled, annotate_traces(traces, spelled, verifier=task.verifier())


def test_rows_of_another_batch_give_the_same_table(sampled):
    model, spelled, traces = sampled
    items = [
        confidence_items(traces, spelled, token_statistics(model, traces, batch_size=size))[0]
        for size in (4, 64)
    ]
    entropies = [i.scores["entropy"] for i in items]
    assert (entropies[0] != entropies[1]).any()
    np.testing.assert_allclose(*entropies, atol=1e-5)
    kept = ("entropy", "max_prob", "mean_logprob")
    first, second = (
        {
            row["confidence"]: row
            for row in confidence_table(
                dataclasses.replace(i, scores={name: i.scores[name] for name in kept}), draws=5
            )
        }
        for i in items
    )
    for name in kept:
        for field in ("auroc", "auroc_low", "within_question", "within_prefix", "auprc_errors", "aurc"):
            assert first[name][field] == second[name][field], (name, field)


def test_levels_are_those_of_the_metrics_with_intervals():
    rng = np.random.default_rng(1)
    c, question = rng.random(60), np.repeat(np.arange(12), 5)
    right = (rng.random(60) < c).astype(float)
    statistics = level_statistics(c, right) | scaled_statistics(c, right, question)
    found = interval_fields(statistics, question, draws=50)
    assert found["bias"] == pytest.approx(metrics.bias(c, right))
    assert found["ece"] == pytest.approx(metrics.expected_calibration_error(c, right))
    assert found["brier_scaled"] == pytest.approx(metrics.brier_scaled(c, right, question))
    assert found["ece_scaled"] == pytest.approx(metrics.ece_scaled(c, right, question))
    for name in ("bias", "brier", "bias_scaled", "brier_scaled"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert scaled_statistics(c, right, ["one"] * 60) == {}
