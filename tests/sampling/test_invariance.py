"""A question's tree depends on nothing but its key, its model and the settings: exactly, for table-driven models."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import BATCH, CAPACITY, VOCABULARY, config, make_policy, question_keys, start, tables

from caspo_jax.errors import UserError
from caspo_jax.sampling import cat_decode, tree_of
from caspo_jax.sampling.compaction import split_branches, take_questions
from caspo_jax.sampling.policy import fork_expand, score_last
from caspo_jax.sampling.state import grow_state

POLICY = make_policy(score_last, fork_expand, "dyadic", "min")
SETTINGS = config(
    num_branches=4, root_branches=3, threshold=0.5, num_answers=6, max_new_tokens=CAPACITY, temperature=1.2
)


def describe(tree):
    """All of a tree that must not change: everything but which slot a node sat in."""
    tokens = [tuple(tree.token[a:b, k].tolist()) for a, b, k in zip(tree.start, tree.end, tree.slot)]
    rest = zip(tree.parent.tolist(), tree.rank.tolist(), tree.status.tolist(), tree.reason.tolist())
    confidence = [str(c) for c in tree.confidence.tolist()]
    return list(zip(tokens, rest, confidence)), tree.tokens


@pytest.fixture(scope="module")
def batch():
    model, keys = tables(11), question_keys(12)
    state = start(model, keys, SETTINGS)
    result = jax.device_get(cat_decode(jnp.asarray(model), state, POLICY))
    trees = [describe(tree_of(result, b)) for b in range(BATCH)]
    assert len({str(tree) for tree in trees}) == BATCH
    return model, keys, state, trees


def run(model, state):
    result = jax.device_get(cat_decode(jnp.asarray(model), state, POLICY))
    return [describe(tree_of(result, b)) for b in range(BATCH)]


def test_order_of_the_batch(batch):
    model, keys, _, trees = batch
    order = np.random.default_rng(0).permutation(BATCH)
    assert run(model[order], start(model[order], keys[order], SETTINGS)) == [trees[i] for i in order]


def test_question_alone(batch):
    model, _, state, trees = batch
    real = np.arange(BATCH) == 5
    alone = dataclasses.replace(
        state,
        done=jnp.asarray(~real),
        slots=dataclasses.replace(state.slots, live=state.slots.live & jnp.asarray(real)[:, None]),
    )
    assert run(model, alone)[5] == trees[5]


def test_permuted_slots(batch):
    model, _, state, trees = batch
    order = jnp.asarray([2, 0, 3, 1])  # new slot i holds what slot order[i] held
    back = jnp.argsort(order)
    slots = jax.tree.map(lambda x: x[:, order], state.slots)
    nodes = dataclasses.replace(
        state.nodes, slot=state.nodes.slot.at[:, :4].set(back[state.nodes.slot[:, :4]])
    )
    permuted = dataclasses.replace(state, slots=slots, nodes=nodes, logits=state.logits[:, order])
    assert run(model, permuted) == trees


def test_segments_change_nothing(batch):
    model, _, state, trees = batch
    for limit in (5, 6, 17, CAPACITY):
        state = cat_decode(
            jnp.asarray(model), dataclasses.replace(state, limit=jnp.asarray(limit, jnp.int32)), POLICY
        )
        if limit < CAPACITY:
            assert int(state.iteration) <= limit
    state = jax.device_get(state)
    assert [describe(tree_of(state, b)) for b in range(BATCH)] == trees


def test_growth_and_compaction_change_nothing(batch):
    model, keys, _, trees = batch
    state = start(model, keys, SETTINGS, capacity=10)
    state = cat_decode(jnp.asarray(model), state, POLICY)
    keep = np.array([3, 9, 0, 14])
    state = grow_state(take_questions(state, jnp.asarray(keep)), CAPACITY)
    state = jax.device_get(cat_decode(jnp.asarray(model[keep]), state, POLICY))
    assert [describe(tree_of(state, b)) for b in range(4)] == [trees[i] for i in keep]


def test_no_node_is_lost_where_every_token_closes_a_step():
    """There is room for as many nodes as slots can make, in buffers that grow too."""
    keys, every = question_keys(12), VOCABULARY.index(b"b\n\na")
    model = tables(11)
    model[..., every] = 60
    trees = []
    for capacity in (10, CAPACITY):
        state = start(model, keys, SETTINGS, capacity=capacity)
        state = cat_decode(jnp.asarray(model), state, POLICY)
        if capacity < CAPACITY:
            assert int(state.num_nodes.max()) == 3 + 4 * capacity
            state = grow_state(state, CAPACITY)
            state = cat_decode(jnp.asarray(model), state, POLICY)
        trees.append([describe(tree_of(jax.device_get(state), b)) for b in range(BATCH)])
    assert trees[0] == trees[1]


def test_what_is_cut_out_of_a_batch_keeps_its_numbers(batch):
    """Thresholds and limits of single questions, and those of all."""
    _, _, state, _ = batch
    number = np.arange(BATCH)[:, None]
    knobs = dataclasses.replace(
        state.knobs, threshold=number.astype(np.float32), max_new_tokens=number.astype(np.int32)
    )
    state = dataclasses.replace(state, knobs=knobs)
    keep = np.array([9, 2, 2])
    taken = take_questions(state, jnp.asarray(keep)).knobs
    split = split_branches(state, jnp.asarray(4 * keep + [3, 0, 1])).knobs
    for few in (taken, split):
        for name in ("threshold", "max_new_tokens"):
            np.testing.assert_array_equal(getattr(few, name), number[keep])
        assert (int(few.num_answers), int(few.expand)) == (6, 2)


def test_a_branch_that_goes_on_by_itself_starts_to_count_anew(batch):
    """What it was before stays in the tree that it left: nothing is counted twice."""
    model, keys, _, _ = batch
    state = start(model, keys, dataclasses.replace(SETTINGS, expand=1))  # a branch is then in one slot
    state = cat_decode(jnp.asarray(model), dataclasses.replace(state, limit=jnp.int32(9)), POLICY)
    keep = np.flatnonzero(np.asarray(state.slots.live))[:7]
    split = split_branches(state, jnp.asarray(keep))
    assert int(state.tokens.min()) > 0
    np.testing.assert_array_equal(split.tokens, np.zeros(7))
    np.testing.assert_array_equal(split.finished, [SETTINGS.answers - 1] * 7)
    for i, row in enumerate(keep):
        whole, alone = tree_of(state, row // 4), tree_of(split, i)
        path = whole.path(int(state.slots.node[row // 4, row % 4]))
        tokens = [
            whole.token[a:b, k].tolist()
            for a, b, k in zip(whole.start[path], whole.end[path], whole.slot[path])
        ]
        assert [alone.token[a:b, 0].tolist() for a, b in zip(alone.start, alone.end)] == tokens
        np.testing.assert_array_equal(alone.rank, whole.rank[path])
        np.testing.assert_array_equal(alone.confidence, whole.confidence[path])


@pytest.mark.parametrize("question", [-1, BATCH])
def test_a_tree_of_no_question_is_refused(batch, question):
    with pytest.raises(UserError, match=f"question {question} lies outside the batch of {BATCH}"):
        tree_of(batch[2], question)


def test_forks_leave_the_original_paths_alone(batch):
    """The K original branches, followed along child rank 0, are those of sampling without pruning and forks."""
    model, keys, _, _ = batch
    changes = {"num_branches": 4, "root_branches": 3, "max_new_tokens": CAPACITY, "temperature": 1.2}
    never = {"num_answers": 99, "threshold": 0.0}
    plain, forked = (
        jax.device_get(
            cat_decode(jnp.asarray(model), start(model, keys, config(**changes, **never, expand=e)), POLICY)
        )
        for e in (1, 3)
    )
    for b in range(BATCH):
        a, c = tree_of(plain, b), tree_of(forked, b)
        assert len(c.parent) > len(a.parent)
        originals = [n for n in c.finished() if all(c.rank[i] == 0 for i in c.path(n)[1:])]
        paths = [
            sorted(
                tuple(
                    int(t)
                    for i in tree.path(n)
                    for t in tree.token[tree.start[i] : tree.end[i], tree.slot[i]]
                )
                for n in ends
            )
            for tree, ends in ((a, a.finished()), (c, originals))
        ]
        assert paths[0] == paths[1]
