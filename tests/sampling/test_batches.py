"""How questions share the device changes no output: batches, queues, layouts, sizes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from golden_model import KEY

import caspo_jax as cj
from caspo_jax.errors import UserError
from caspo_jax.models.cpu_layers import TurnedLayer
from caspo_jax.padding import width
from caspo_jax.sampling import batch, loop, model_decode, prefill, search
from caspo_jax.sampling.compaction import split_branches
from caspo_jax.sampling.model_decode import ApartParams


def test_a_question_does_not_depend_on_its_neighbours(model_and_tokenizer, questions, sampled, monkeypatch):
    config, traces = sampled
    again = cj.generate(*model_and_tokenizer, questions[::-1], config, KEY)
    assert [t.token_ids for t in again] == [t.token_ids for i in (2, 1, 0) for t in traces[2 * i : 2 * i + 2]]
    # Small buffers that grow, batches that shrink.
    for name, value in (
        ("FIRST_SEGMENT", 4),
        ("CHECK_EVERY", 4),
        ("LEAST_ROWS", 1),
    ):
        monkeypatch.setattr(batch, name, value)
    monkeypatch.setattr(prefill, "LEAST_WIDTH", 1)
    monkeypatch.setattr(prefill, "MOST_PAIRS", 4000)
    pieces = cj.generate(*model_and_tokenizer, questions, config, KEY, batch_size=4)
    assert [t.token_ids for t in pieces] == [t.token_ids for t in traces]


def test_samples_do_not_depend_on_how_they_share_the_device(
    model_and_tokenizer, questions, sampled, monkeypatch
):
    """Four branches of one tree; those that outlive the others by themselves; and a tree each."""
    config = dataclasses.replace(sampled[0], num_samples=4, stop=(" ",))  # lengths from 1 to 16
    whole = cj.generate(*model_and_tokenizer, questions, config, KEY)
    for short, long in zip(whole[::4], sampled[1][::2], strict=True):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
    for name, value in (("CHECK_EVERY", 2), ("LEAST_ROWS", 3), ("UNCHECKED", 1)):
        monkeypatch.setattr(batch, name, value)
    sizes = []

    def split(state, keep, prompt_lanes):
        sizes.append((state.slots.live.shape, len(keep)))
        return split_branches(state, keep, prompt_lanes)

    monkeypatch.setattr(batch, "split_branches", split)
    done = []
    pieces = cj.generate(
        *model_and_tokenizer, questions, config, KEY, progress=lambda n, of: done.append((n, of))
    )
    assert sizes
    assert done == sorted(done)
    assert {n for n, _ in done} <= {0, 1, 2, 3}
    assert done[-1] == (3, 3)
    assert all(rows == 4 and batch * branches >= 12 for (batch, branches), rows in sizes)
    for piece, trace in zip(pieces, whole, strict=True):
        assert (piece.token_ids, piece.text, piece.finish_reason) == (
            trace.token_ids,
            trace.text,
            trace.finish_reason,
        )
        np.testing.assert_allclose(piece.logprob, trace.logprob, atol=1e-5)
        np.testing.assert_allclose(
            [step.confidence for step in piece.steps], [step.confidence for step in trace.steps], atol=1e-5
        )
    few = cj.generate(*model_and_tokenizer, questions, config, KEY, batch_size=3)
    assert [t.token_ids for t in few] == [t.token_ids for t in whole]


def watched_segments(monkeypatch):
    """A list that every segment adds what it was given to, of loops that from now on are looked at and cut often."""
    monkeypatch.setattr(batch, "CHECK_EVERY", 2)
    monkeypatch.setattr(batch, "LEAST_ROWS", 4)
    seen, run = [], batch.cat_decode_donated

    def spied(params, state, policy):
        seen.append((params, state))
        return run(params, state, policy)

    monkeypatch.setattr(batch, "cat_decode_donated", spied)
    return seen


def sampled_and_searched(model_and_tokenizer, questions, branches, **settings):
    """What six samples a question and a search with so many branches give, to be held against another layout's."""
    sample = cj.SampleConfig(max_new_tokens=16, temperature=0.9, num_samples=6, stop=(" ",))
    cat = cj.CatConfig(
        num_branches=branches, threshold=0.3, sample=dataclasses.replace(sample, num_samples=1, stop=())
    )
    traces = cj.generate(*model_and_tokenizer, questions, sample, KEY, **settings)
    trees = [r.tree.nodes for r in cj.cat_search(*model_and_tokenizer, questions, cat, KEY, **settings)]
    return [(trace.token_ids, trace.finish_reason) for trace in traces], [
        [(n.parent, n.token_ids, n.status) for n in nodes] for nodes in trees
    ]


def test_lanes_change_no_output(model_and_tokenizer, questions, monkeypatch):
    """Two branches read their prompt in lanes, six in matrix products until they have been split."""
    segments, found = watched_segments(monkeypatch), []
    for lanes in (False, True):
        monkeypatch.setattr(search, "prefers_lanes", lambda rows, lanes=lanes: lanes)
        found.append(sampled_and_searched(model_and_tokenizer, questions, 2))
    assert found[0] == found[1]
    layouts = {(state.cache.lanes, state.cache.prompt_lanes, state.num_slots) for _, state in segments}
    assert layouts == {(False, False, k) for k in (1, 2, 6)} | {
        (True, True, 1),
        (True, True, 2),
        (True, False, 6),
    }


@pytest.mark.slow  # what GPUs, and CPUs with larger layers do; `test_decoder` holds one step against that of stacked layers
def test_layers_apart_change_no_output(model_and_tokenizer, questions, monkeypatch):
    """Samples in one batch that is cut, searches with forks, and both through a queue."""
    monkeypatch.setattr(batch, "FIRST_SEGMENT", 10)
    segments, found = watched_segments(monkeypatch), []
    for apart, turned in ((False, False), (True, False), (True, True)):
        monkeypatch.setattr(model_decode, "prefers_apart", lambda params, apart=apart: apart)
        monkeypatch.setattr(model_decode, "_TURNED_FROM", 0 if turned else 1 << 30)
        segments.clear()
        found += [sampled_and_searched(model_and_tokenizer, questions, 3, batch_size=n) for n in (None, 6)]
        seen = {(isinstance(params, ApartParams), state.cache.apart) for params, state in segments}
        assert seen == {(apart, apart)}
        layers = [layer for params, _ in segments if apart for layer in params.layers]
        assert all(isinstance(layer, TurnedLayer) is turned for layer in layers)
    assert all(one == found[0] for one in found)


def test_parts_of_prompts_are_joined_by_one_program(model_and_tokenizer, caplog):
    graphdef, params = nnx.split(model_and_tokenizer[0])
    prompts = [(1, 2, 3), (4, 5), (6,), (7, 8, 9)]
    whole = prefill.read_prompts(graphdef, params, prompts, 4, 16, lanes=False)
    prefill.read_prompts(graphdef, params, prompts[:2], 2, 16, lanes=False)  # a part's program
    caplog.clear()
    with jax.log_compiles():
        parts = prefill.read_prompts(graphdef, params, prompts, 4, 16, lanes=False, rows=2)
    assert len([m for m in caplog.messages if m.startswith("Compiling")]) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parts, whole)


def test_padded_calls_share_their_programs_and_give_the_same(model_and_tokenizer, questions, sampled):
    config, traces = sampled
    longest = max(len(trace.prompt_ids) for trace in traces)
    compiled = []
    for count in (2, 3, 1):
        found = cj.generate(*model_and_tokenizer, questions[:count], config, KEY, pad_to=(4, longest + 20))
        assert [t.token_ids for t in found] == [t.token_ids for t in traces[: 2 * count]]
        compiled.append(loop._donated._cache_size() + prefill._prefill._cache_size())
    assert len(set(compiled)) == 1
    # More questions than was said are no error.
    found = cj.generate(*model_and_tokenizer, questions, config, KEY, pad_to=(2, 1))
    assert [t.token_ids for t in found] == [t.token_ids for t in traces]


def test_a_padded_call_of_few_shares_the_program_of_what_remains_of_many(
    model_and_tokenizer, questions, monkeypatch
):
    config = cj.SampleConfig(
        max_new_tokens=16, temperature=0.9, num_samples=6, step_delimiter="e", stop=(" ",)
    )
    whole = cj.generate(*model_and_tokenizer, questions, config, KEY)
    segments = watched_segments(monkeypatch)
    monkeypatch.setattr(prefill, "PADDED_READ", 2)  # prompts come in several parts, each as wide as it needs
    widths, read = set(), prefill._prefill

    def reading(graphdef, params, token_ids, *rest):
        widths.add(token_ids.shape)
        return read(graphdef, params, token_ids, *rest)

    monkeypatch.setattr(prefill, "_prefill", reading)
    room = (4, 3 * max(len(trace.prompt_ids) for trace in whole))
    compiled = []
    for some in (questions, questions[2:], questions[:1]):
        found = cj.generate(*model_and_tokenizer, some, config, KEY, pad_to=room)
        want = [whole[6 * questions.index(question) + i] for question in some for i in range(6)]
        for a, b in zip(found, want, strict=True):
            assert (a.token_ids, a.finish_reason, a.id) == (b.token_ids, b.finish_reason, b.id)
            assert [step.text for step in a.steps] == [step.text for step in b.steps]
            np.testing.assert_allclose(a.logprob, b.logprob, atol=1e-5)
        shapes = {state.slots.live.shape for _, state in segments}
        compiled.append((loop._donated._cache_size(), shapes))
        segments.clear()
    assert [shapes for _, shapes in compiled] == [{(4, 6), (8, 1)}, {(8, 1)}, {(8, 1)}]
    assert len({size for size, _ in compiled}) == 1
    columns = width(room[1], search.PROMPT_BUCKET)
    assert {rows for rows, _ in widths} == {2}
    assert max(width for _, width in widths) <= -(-columns // 3)


def test_any_number_of_questions_a_batch(model_and_tokenizer, questions):
    """Nine questions at once, where prompts are read in batches of ten."""
    nine = [dataclasses.replace(questions[i % 3], id=f"q{i}") for i in range(9)]
    nine = [
        dataclasses.replace(q, prompt_ids=(*q.prompt_ids[: max(1, len(q.prompt_ids) - i)], 5 + i))
        for i, q in enumerate(nine)
    ]
    config = cj.SampleConfig(max_new_tokens=4, temperature=0, ignore_eos=True)
    together = cj.generate(*model_and_tokenizer, nine, config, KEY, batch_size=9)
    alone = [cj.generate(*model_and_tokenizer, [q], config, KEY, batch_size=9)[0] for q in nine]
    assert [t.token_ids for t in together] == [t.token_ids for t in alone]


@pytest.mark.parametrize("rows", [6, pytest.param(48, marks=pytest.mark.slow)])
def test_a_sweep_is_a_search_at_each_threshold(model_and_tokenizer, questions, monkeypatch, rows):
    """In batches of two, and in large ones that are cut as questions end; their buffers grow."""
    many = [
        dataclasses.replace(q, id=f"w{i}", prompt_ids=q.prompt_ids[i % 5 :])
        for i, q in enumerate(questions[i % 3] for i in range(8))
    ]
    cat = cj.CatConfig(
        num_branches=3,
        root_branches=2,
        expand=3,
        min_live=0,
        sample=cj.SampleConfig(max_new_tokens=32, temperature=0.9, step_delimiter="e"),
    )
    thresholds = (0.02, 0.1, 0.15)
    alone = [
        cj.cat_search(*model_and_tokenizer, many, dataclasses.replace(cat, threshold=t), KEY)
        for t in thresholds
    ]
    for name, value in (("FIRST_SEGMENT", 10), ("LEAST_ROWS", 6), ("CHECK_EVERY", 4), ("SHRINK", 2)):
        monkeypatch.setattr(batch, name, value)
    cuts, taken = [], batch.take_questions
    monkeypatch.setattr(batch, "take_questions", lambda *a: cuts.append(1) or taken(*a))
    done = []
    swept = cj.sampling.cat_sweep(
        *model_and_tokenizer,
        many,
        cat,
        thresholds,
        KEY,
        batch_size=rows,
        progress=lambda n, of: done.append((n, of)),
    )
    assert bool(cuts) == (rows != 6)
    assert done == sorted(done)
    assert done[-1] == (24, 24)
    spent = set()
    for together, apart in zip(swept, alone, strict=True):
        for a, b in zip(together, apart, strict=True):
            assert (a.question_id, a.tree.threshold) == (b.question_id, b.tree.threshold)
            assert [(n.parent, n.token_ids, n.status, n.reason) for n in a.tree.nodes] == [
                (n.parent, n.token_ids, n.status, n.reason) for n in b.tree.nodes
            ]
        spent.add(sum(result.tokens for result in together))
    assert len(spent) == len(thresholds)
    with pytest.raises(UserError, match="thresholds is empty"):
        cj.sampling.cat_sweep(*model_and_tokenizer, many, cat, (), KEY)
    with pytest.raises(UserError, match="threshold=nan is not a number"):
        cj.sampling.cat_sweep(*model_and_tokenizer, many, cat, (0.5, float("nan")), KEY)


@pytest.mark.parametrize(
    ("limit", "first"), [(10, 10), (1024, 64), (8191, 64), (8192, 128), (32_768, 512), (40_000, 512)]
)
def test_buffers_of_long_limits_begin_larger_and_double_seven_times_at_most(limit, first):
    """Each doubling is compiled anew."""
    fields = dict.fromkeys(field.name for field in dataclasses.fields(batch.Batch))
    made = batch.Batch(**fields | {"max_new_tokens": limit, "lanes": False})
    assert made.first_capacity == first
    assert limit <= first << 7
    assert dataclasses.replace(made, lanes=True).first_capacity == limit
