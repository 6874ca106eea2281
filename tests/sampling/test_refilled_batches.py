"""Slots that are refilled from a queue give what batches of their own give."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from golden_model import KEY, assert_teacher_forced

import caspo_jax as cj
from caspo_jax.sampling import batch, prefill, run, search, stream
from caspo_jax.sampling.refill import Ended


def test_refilled_slots_change_nothing(model_and_tokenizer, questions, monkeypatch):
    """Fourteen searches of uneven lengths through two places, with rings that go round and grow."""
    many = [
        dataclasses.replace(q, id=f"r{i}", prompt_ids=q.prompt_ids[i % 5 :])
        for i, q in enumerate(questions[i % 3] for i in range(14))
    ]
    cat = cj.CatConfig(
        num_branches=3,
        root_branches=2,
        threshold=1e-3,
        expand=3,
        num_answers=3,
        sample=cj.SampleConfig(max_new_tokens=20, temperature=0.9, step_delimiter="e", stop=(" ",)),
    )
    together, apart = (cj.sampling.Usage() for _ in range(2))
    whole = cj.cat_search(*model_and_tokenizer, many, cat, KEY, usage=together)
    monkeypatch.setattr(batch, "FIRST_SEGMENT", 10)
    monkeypatch.setattr(stream, "SEGMENT", 7)
    monkeypatch.setattr(stream, "queue_batches", lambda *_: 2)
    pieces = cj.cat_search(*model_and_tokenizer, many, cat, KEY, batch_size=6, usage=apart)
    for piece, result in zip(pieces, whole, strict=True):
        assert [(n.parent, n.token_ids, n.status, n.reason) for n in piece.tree.nodes] == [
            (n.parent, n.token_ids, n.status, n.reason) for n in result.tree.nodes
        ]
        for a, b in zip(piece.paths, result.paths, strict=True):
            # Products of other shapes add up in another order: some units in the last place of the logits.
            np.testing.assert_allclose(a.logprob, b.logprob, rtol=1e-5, atol=1e-5)
    lengths = [max(len(path.token_ids) for path in result.paths) for result in whole]
    assert len(set(lengths)) > 3
    assert max(lengths) > 10  # the ring grew
    # Two places, three slots each: as many steps as the longer of two queues needs, not the longest of each batch.
    assert together.live == apart.live == sum(result.tokens for result in whole)
    assert apart.live <= apart.slots <= 3 * (sum(lengths) + 2 * 20)
    assert_teacher_forced(model_and_tokenizer[0], [path for result in pieces for path in result.paths])


@pytest.mark.parametrize(
    "samples", [1, pytest.param(3, marks=pytest.mark.ci), pytest.param(5, marks=pytest.mark.ci)]
)
def test_samples_are_refilled_one_by_one(model_and_tokenizer, questions, monkeypatch, samples):
    """Samples of uneven lengths through three places: those of a question, often of two, share a prompt."""
    many = [
        dataclasses.replace(q, id=f"s{i}", prompt_ids=q.prompt_ids[i % 4 // 2 :])
        for i, q in enumerate(questions[i % 3] for i in range(12))
    ]
    config = cj.SampleConfig(
        max_new_tokens=24, temperature=0.9, num_samples=samples, step_delimiter="e", stop=(" ",)
    )
    together, apart = (cj.sampling.Usage() for _ in range(2))
    whole = cj.generate(*model_and_tokenizer, many, config, KEY, usage=together)
    reads, read, done = [], prefill._prefill, []

    def counting(graphdef, params, token_ids, mask, lanes, columns):
        reads.extend(tuple(row[real].tolist()) for row, real in zip(token_ids, mask))
        return read(graphdef, params, token_ids, mask, lanes, columns)

    batches = 4
    monkeypatch.setattr(prefill, "_prefill", counting)
    monkeypatch.setattr(stream, "queue_batches", lambda *_: batches)
    monkeypatch.setattr(stream, "SEGMENT", 7)
    copied, get = [], jax.device_get

    def counted(tree):
        if isinstance(tree, Ended):
            copied.append(len(tree.unit))
        return get(tree)

    monkeypatch.setattr(jax, "device_get", counted)
    pieces = cj.generate(
        *model_and_tokenizer,
        many,
        config,
        KEY,
        batch_size=3,
        usage=apart,
        progress=lambda n, of: done.append((n, of)),
    )
    assert [piece.id for piece in pieces] == [trace.id for trace in whole]
    # A draw at the border of two tokens may fall either way in products of other shapes.
    alike = [(a, b) for a, b in zip(pieces, whole) if a.token_ids == b.token_ids]
    assert len(alike) >= len(whole) - 1
    for piece, trace in alike:
        assert piece.finish_reason == trace.finish_reason
        np.testing.assert_allclose(piece.logprob, trace.logprob, atol=1e-5)
        np.testing.assert_allclose(
            [step.confidence for step in piece.steps], [step.confidence for step in trace.steps], atol=1e-5
        )
    lengths = [len(trace.token_ids) for trace in whole]
    assert len(set(lengths)) > 3
    assert together.live == sum(lengths)
    assert apart.live == sum(len(piece.token_ids) for piece in pieces)
    # Three places are busy until the queue is empty; then at most the longest output is waited for.
    assert apart.slots <= apart.live + 2 * config.max_new_tokens + 3 * stream.SEGMENT
    assert done[-1] == (12, 12)
    # The host takes what has ended, not the room that there is for it.
    assert 12 * samples <= sum(copied) <= 2 * 12 * samples
    # No prompt is read again for another sample of its question, and seldom for another fill of the queue.
    prompts = {q.prompt_ids for q in many}
    fills = -(-12 * samples // (3 * batches))
    assert prompts <= set(reads)
    assert sum(prompt in prompts for prompt in reads) <= len(many) + fills


@pytest.mark.ci
def test_samples_that_share_a_long_prompt_are_refilled_together(model_and_tokenizer, questions, monkeypatch):
    """Four questions with three slots each, which wait for one another; what the queue leaves goes on branch by branch."""
    many = [
        dataclasses.replace(q, id=f"t{i}", prompt_ids=q.prompt_ids[i % 4 :])
        for i, q in enumerate(questions[i % 3] for i in range(11))
    ]
    config = cj.SampleConfig(
        max_new_tokens=24, temperature=0.9, num_samples=3, step_delimiter="e", stop=(" ",)
    )
    whole = cj.generate(*model_and_tokenizer, many, config, KEY)
    streamed, rows = [], []
    monkeypatch.setattr(search, "default_rows", lambda *_: (12, False))
    monkeypatch.setattr(run, "default_rows", lambda *_, **__: (12, False))
    monkeypatch.setattr(batch, "LEAST_ROWS", 2)
    monkeypatch.setattr(batch, "FIRST_SEGMENT", 10)
    monkeypatch.setattr(stream, "SEGMENT", 3)
    grow, smaller = search.stream, batch.split_branches
    monkeypatch.setattr(search, "stream", lambda *given: streamed.append(given[0]) or grow(*given))
    monkeypatch.setattr(batch, "split_branches", lambda *given: rows.append(given[1]) or smaller(*given))
    pieces = cj.generate(*model_and_tokenizer, many, config, KEY)
    assert [search.num_slots for search in streamed] == [3]
    assert len(rows) == 1
    alike = [(a, b) for a, b in zip(pieces, whole, strict=True) if a.token_ids == b.token_ids]
    assert len(alike) >= len(whole) - 1
    for piece, trace in alike:
        assert (piece.id, piece.finish_reason) == (trace.id, trace.finish_reason)
        np.testing.assert_allclose(piece.logprob, trace.logprob, atol=1e-5)
