"""Trees of a loop whose slots are refilled are the reference's, node for node, whatever the queue, the ring and the room."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tree import PROGRAMS, assert_same, random_config, reference
from toy_model import CAPACITY, PROMPT, VOCABULARY, make_policy, padded, question_keys, tables

from caspo_jax.sampling import Knobs, build_automaton, cat_decode, init_state
from caspo_jax.sampling.policy import fork_expand
from caspo_jax.sampling.refill import Queue, harvested, refill, refillable, with_queue
from caspo_jax.sampling.state import grow_state
from caspo_jax.sampling.tree import harvest_ended

# Places of the loop, entries of a queue, trees that ended: fewer than may end at once.
QUESTIONS, ENTRIES, ROOM = 5, 8, 2


def decode(tables, cache, token, position, column):
    """The cache says which table each question's rows read."""
    return tables[jnp.repeat(cache, token.shape[0] // cache.shape[0]), token], cache


def load(cache, queued, question, entry):
    return cache.at[question].set(queued[entry])


@functools.partial(jax.jit, static_argnames="policy")
def fill(state, policy):
    return refill(policy, state.queue, state)


def queue_of(model, keys, units, roots, more):
    """Entries for the questions `units`, padded to ENTRIES."""
    index = np.zeros(ENTRIES, np.int32)
    index[: len(units)] = units
    back = np.arange(ENTRIES, dtype=np.int32)[::-1]  # the prompts lie in another order than the questions
    return Queue(
        cache=jnp.asarray(index[back]),
        logits=jnp.asarray(model[index[back], PROMPT]),
        prompt=jnp.asarray(back),
        keys=jnp.asarray(keys[index]),
        prompt_length=jnp.ones(ENTRIES, jnp.int32),
        first_rank=jnp.zeros(ENTRIES, jnp.int32),
        unit=jnp.asarray(index),
        size=jnp.int32(len(units)),
        roots=jnp.int32(roots),
        more=jnp.asarray(more),
    )


def stream(model, keys, settings, policy, rng, ring):
    """All questions through QUESTIONS places: queues of random sizes, rings that grow, bounded segments."""
    s = settings.sample
    automaton = build_automaton(VOCABULARY, s.step_delimiter, s.stop, () if s.ignore_eos else (9,))
    state = init_state(
        jnp.zeros(QUESTIONS, jnp.int32),
        jnp.zeros((QUESTIONS, len(VOCABULARY))),
        jnp.zeros((QUESTIONS, 2), jnp.uint32),
        jnp.ones(QUESTIONS, jnp.int32),
        padded(automaton),
        Knobs.of(settings),
        num_slots=settings.num_branches,
        capacity=ring,
        real=jnp.zeros(QUESTIONS, bool),
    )
    state = refillable(state, ROOM)
    trees: list[list] = [[] for _ in keys]
    fed, params = 0, jnp.asarray(model)
    while True:
        if fed < len(keys) and (fed == 0 or int(state.refill.next) == int(state.queue.size)):
            count = min(int(rng.integers(1, ENTRIES + 1)), len(keys) - fed)
            units = np.arange(fed, fed + count)
            fed += count
            state = with_queue(state, queue_of(model, keys, units, settings.roots, fed < len(keys)))
            state = fill(state, policy)
        limit = state.iteration + int(rng.integers(1, 40))
        state = cat_decode(params, dataclasses.replace(state, limit=limit), policy)
        harvest_ended(state.refill.ended, int(state.refill.stored), trees)
        state = harvested(state)
        state = fill(state, policy)  # those for which there was no room
        if fed == len(keys) and bool(state.done.all()) and (np.asarray(state.refill.unit) < 0).all():
            harvest_ended(state.refill.ended, int(state.refill.stored), trees)
            return trees
        live = ~np.asarray(state.done)
        if (live & (np.asarray(state.age)[:, 0] >= state.capacity)).any():
            harvest_ended(state.refill.ended, int(state.refill.stored), trees)
            state = refillable(grow_state(state, min(CAPACITY, 2 * state.capacity)), ROOM)


@pytest.mark.parametrize("ring", [False, True])
def test_a_state_that_has_grown_is_as_large_as_one_that_began_so(ring):
    def state(capacity):
        begun = init_state(
            jnp.zeros(QUESTIONS, jnp.int32),
            jnp.zeros((QUESTIONS, len(VOCABULARY))),
            jnp.zeros((QUESTIONS, 2), jnp.uint32),
            jnp.ones(QUESTIONS, jnp.int32),
            None,
            None,
            num_slots=4,
            capacity=capacity,
            real=jnp.full(QUESTIONS, not ring),
        )
        return refillable(begun, ROOM) if ring else begun

    grown, want = grow_state(state(3), 7), state(7)
    for name in ("nodes", "history", "slots", "num_nodes"):
        for a, b in zip(
            jax.tree.leaves(getattr(grown, name)), jax.tree.leaves(getattr(want, name)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert ring or int(grown.limit) == 7


def compare(name, slots, rounds, seed):
    score, _, step, path = PROGRAMS[name]
    policy = dataclasses.replace(make_policy(score, fork_expand, step, path), decode=decode, load_prompt=load)
    compared = wrapped = 0
    for round_ in range(rounds):
        rng = np.random.default_rng([seed, round_])
        settings = random_config(rng, slots, step == "dyadic")
        count = int(rng.integers(1, 30))
        model, keys = tables(int(rng.integers(2**31)), count), question_keys(int(rng.integers(2**31)), count)
        trees = stream(model, keys, settings, policy, rng, int(rng.choice([6, CAPACITY])))
        for b in range(count):
            search = reference(name, settings, model[b], keys[b])
            if search.ambiguous:
                continue
            (tree,) = trees[b]
            assert_same(
                tree, search, f"{name} seed {seed} round {round_} question {b} of {count}: {settings}"
            )
            compared += 1
        wrapped += sum(int(tree.end.max()) for (tree,) in trees) > QUESTIONS * CAPACITY
    return compared, wrapped


def test_refilled_trees_are_the_references():
    compared, wrapped = compare("last-dyadic-min", slots=4, rounds=5, seed=0)
    assert compared > 100
    assert wrapped >= 4  # the ring went round


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 4, 7])
@pytest.mark.parametrize("name", PROGRAMS)
def test_refilled_trees_are_the_references_at_length(name, slots):
    compared, wrapped = compare(name, slots=slots, rounds=40, seed=1)
    assert compared > 300
    assert wrapped >= 10
