"""Taking finished work out of a batch between two segments of the loop."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from caspo_jax.models.cache import KVCache, split_rows, take_prompts, with_prompt_lanes
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.state import CatState
from caspo_jax.sharding import mesh_of


@jax.jit
def take_questions(state: CatState, keep: jax.Array) -> CatState:
    """The state of the questions `keep` [n] alone."""
    first = lambda x: jnp.take(x, keep, axis=0)  # noqa: E731
    cache = state.cache
    taken = dataclasses.replace(
        state,
        prompt_length=first(state.prompt_length),
        cache=take_prompts(cache, keep) if isinstance(cache, KVCache) else cache,
        logits=first(state.logits),
        slots=jax.tree.map(first, state.slots),
        nodes=jax.tree.map(first, state.nodes),
        history=jax.tree.map(lambda x: jnp.take(x, keep, axis=1), state.history),
        num_nodes=first(state.num_nodes),
        finished=first(state.finished),
        tokens=first(state.tokens),
        done=first(state.done),
        born=None if state.born is None else first(state.born),
        knobs=state.knobs.of_questions(keep),
    )
    return taken.placed(mesh_of(cache))


@functools.partial(jax.jit, static_argnames="prompt_lanes")
def split_branches(state: CatState, keep: jax.Array, prompt_lanes: bool = False) -> CatState:
    """Each of the branches `keep` [n] (row b * K + k) as a question with one slot, for searches that never fork.

    The new question has a copy of the old one's nodes; paths that are finished in the old tree are not in the new one.
    With `prompt_lanes` the prompts of the new state lie in lanes.
    """
    question = keep // state.num_slots
    alone = lambda x: jnp.take(x.reshape(-1, *x.shape[2:]), keep, axis=0)[:, None]  # noqa: E731
    slots = jax.tree.map(alone, state.slots)
    cache = state.cache
    if isinstance(cache, KVCache):
        cache = split_rows(cache, keep)
        cache = with_prompt_lanes(cache) if prompt_lanes else cache
    nodes = jax.tree.map(lambda x: jnp.take(x, question, axis=0), state.nodes)
    nodes = dataclasses.replace(
        nodes,
        slot=jnp.zeros_like(nodes.slot),
        status=jnp.where(nodes.status == codes.FINISHED, codes.CLOSED, nodes.status),
    )
    split = dataclasses.replace(
        state,
        prompt_length=state.prompt_length[question],
        cache=cache,
        logits=alone(state.logits),
        slots=slots,
        nodes=nodes,
        history=jax.tree.map(
            lambda x: jnp.take(x.reshape(len(x), -1), keep, axis=1)[..., None], state.history
        ),
        num_nodes=state.num_nodes[question],
        # One more finished path, its own, ends it.
        finished=jnp.broadcast_to(state.knobs.num_answers - 1, keep.shape).astype(jnp.int32),
        tokens=jnp.zeros_like(keep, jnp.int32),
        done=~slots.live[:, 0],
        born=None if state.born is None else state.born[question],
        knobs=state.knobs.of_questions(question),
    )
    return split.placed(mesh_of(state.cache))
