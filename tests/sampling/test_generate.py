"""Whole runs on a tiny checkpoint: goldens, prompts, records."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from golden_model import KEY, assert_teacher_forced

import caspo_jax as cj
from caspo_jax.errors import UserError
from caspo_jax.models import token_bytes
from caspo_jax.sampling import question_keys, segment_tokens
from caspo_jax.types import Question


def test_greedy_is_that_of_the_golden(model_and_tokenizer, questions, expected):
    config = cj.SampleConfig(max_new_tokens=32, temperature=0, ignore_eos=True)
    done, usage = [], cj.sampling.Usage(live=5, slots=7)
    traces = cj.generate(
        *model_and_tokenizer, questions, config, KEY, progress=lambda a, b: done.append((a, b)), usage=usage
    )
    assert [t.token_ids for t in traces] == [tuple(row) for row in expected["greedy_new_tokens"].tolist()]
    np.testing.assert_allclose([t.logprob for t in traces], expected["greedy_token_logps"], atol=1e-4)
    np.testing.assert_allclose([t.entropy for t in traces], expected["greedy_entropy_nats"], atol=1e-4)
    assert [(t.id, t.finish_reason, t.strategy) for t in traces] == [
        (f"g{i}", "length", "greedy") for i in range(3)
    ]
    assert done[-1] == (3, 3)
    assert usage == cj.sampling.Usage(live=5 + 3 * 32, slots=7 + 3 * 32)  # counters that go on


def test_an_end_token_ends_the_path(model_and_tokenizer, questions, expected):
    model, tokenizer = model_and_tokenizer
    stop = int(expected["stop_token_id"])
    before = model.config
    model.config = dataclasses.replace(before, eos_token_ids=(stop,))
    try:
        traces = cj.generate(
            model, tokenizer, questions, cj.SampleConfig(max_new_tokens=32, temperature=0), KEY
        )
    finally:
        model.config = before
    ended = 0
    for trace, row in zip(traces, expected["greedy_new_tokens"].tolist(), strict=True):
        length = row.index(stop) + 1 if stop in row else len(row)
        assert trace.token_ids == tuple(row[:length])
        assert trace.finish_reason == ("eos" if stop in row else "length")
        ended += stop in row
    assert ended


def test_steps_and_confidences_of_traces(model_and_tokenizer, sampled):
    model, tokenizer = model_and_tokenizer
    config, traces = sampled
    vocabulary = token_bytes(tokenizer, model.config.vocab_size)
    assert sum(len(t.steps) for t in traces) > len(traces)
    for trace in traces:
        segments = segment_tokens(vocabulary, trace.token_ids, config.step_delimiter)
        assert [(s.token_start, s.token_end) for s in trace.steps] == [(a, b) for a, b, _ in segments]
        confidences = []
        for step, (a, b, counted) in zip(trace.steps, segments, strict=True):
            assert step.text == trace.text[step.start : step.end]
            assert config.step_delimiter not in step.text
            entropy = np.mean(np.array(trace.entropy[a:b])[counted])
            assert step.entropy == pytest.approx(entropy, rel=1e-5)
            assert step.confidence == pytest.approx(np.exp(-entropy), rel=1e-5)
            confidences.append(step.confidence)
        assert trace.path_confidence == pytest.approx(np.exp(np.mean(np.log(confidences))), rel=1e-5)
        assert trace.text == tokenizer.decode(trace.token_ids, skip_special_tokens=True)


def test_statistics_are_those_of_teacher_forcing(model_and_tokenizer, sampled):
    assert_teacher_forced(model_and_tokenizer[0], sampled[1])


def test_each_question_has_its_own_limit(model_and_tokenizer, questions, sampled):
    """Outputs end where theirs does, whatever the others have left, and only it must fit into the context."""
    config, whole = sampled
    most = dataclasses.replace(config, max_new_tokens=model_and_tokenizer[0].config.context)
    limits = [16, 3, 9]
    traces = cj.generate(*model_and_tokenizer, questions, most, KEY, limits=limits)
    for trace, full, limit in zip(traces, whole, np.repeat(limits, 2), strict=True):
        assert trace.token_ids == full.token_ids[:limit]
        assert trace.finish_reason == ("length" if len(full.token_ids) > limit else full.finish_reason)
    assert {len(trace.token_ids) for trace in traces} >= {3, 9}
    for wrong, message in (
        ([16, 3], "2 values for 3 questions"),
        ([16, 0, 9], "holds 0"),
        ([16, 17, 9], "holds 17"),
    ):
        with pytest.raises(UserError, match=message):
            cj.generate(*model_and_tokenizer, questions, config, KEY, limits=wrong)


def test_cat_search_records(model_and_tokenizer, questions, sampled):
    config, traces = sampled
    cat = cj.CatConfig(
        num_branches=4,
        root_branches=2,
        threshold=0.0,
        expand=3,
        num_answers=100,
        sample=dataclasses.replace(config, num_samples=1),
    )
    usage = cj.sampling.Usage()
    results = cj.cat_search(
        *model_and_tokenizer, questions, cat, KEY, extract=lambda text: text[:1], usage=usage
    )
    assert sum(result.tokens for result in results) == usage.live <= usage.slots
    assert usage.slots % (4 * len(questions)) == 0
    keys = question_keys(KEY, [q.id for q in questions])
    for i, (result, question) in enumerate(zip(results, questions, strict=True)):
        tree = result.tree
        assert result.question_id == tree.question_id == question.id
        assert tree.prompt_ids == question.prompt_ids
        assert tree.key == tuple(keys[i].tolist())
        assert result.tokens == sum(len(node.token_ids) for node in tree.nodes)
        assert max(sum(n.parent == p for n in tree.nodes) for p in range(len(tree.nodes))) <= 3
        assert {n.status for n in tree.nodes} <= {"closed", "finished"}
        assert len(result.paths) == sum(n.status == "finished" for n in tree.nodes)
        assert result.answer in {p.answer for p in result.paths}
        assert sum(result.votes.values()) == pytest.approx(1)
        # Branch i of the search is sample i of the same question, as long as forks only take free slots.
        ids = {path.token_ids for path in result.paths}
        assert {t.token_ids for t in traces[2 * i : 2 * i + 2]} <= ids
    # A fork reads the keys and values of the branch it left.
    paths = [path for result in results for path in result.paths]
    assert len(paths) > 2 * len(questions)
    assert_teacher_forced(model_and_tokenizer[0], paths)


def test_self_consistency_keeps_a_question_in_one_tree(model_and_tokenizer):
    """Also where a batch is large enough to be cut down to the branches that are left."""
    questions = [Question(id=f"q{i}", prompt_ids=(5, 6, 7 + i % 3)) for i in range(80)]
    sample = cj.SampleConfig(max_new_tokens=40, step_delimiter="e")
    settings = cj.CatConfig(num_branches=4, sample=sample)
    results = cj.cat_search(*model_and_tokenizer, questions, settings, KEY, strategy="self_consistency")
    assert [len(result.paths) for result in results] == [4] * len(questions)


def test_a_special_token_stops_by_its_name(model_and_tokenizer, questions):
    """It has no bytes in which a stop string could be found; EOS itself may be one where it is ignored."""
    model, tokenizer = model_and_tokenizer
    config = cj.SampleConfig(max_new_tokens=60, temperature=3.0, num_samples=6, ignore_eos=True)
    whole = cj.generate(model, tokenizer, questions, config, KEY)
    for name in ("<|im_start|>", "<|im_end|>"):
        token = tokenizer.convert_tokens_to_ids(name)
        settings = dataclasses.replace(config, stop=(name, "no token's name"))
        stopped = cj.generate(model, tokenizer, questions, settings, KEY)
        for trace, long in zip(stopped, whole, strict=True):
            ends = token in long.token_ids
            length = long.token_ids.index(token) + 1 if ends else len(long.token_ids)
            assert trace.token_ids == long.token_ids[:length]
            assert trace.finish_reason == ("eos" if ends else "length")
        assert any(token in long.token_ids for long in whole)
