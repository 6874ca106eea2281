"""Taking finished work out of a batch between two segments of the loop."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.models.cache import KVCache, with_prompt_lanes
from caspo_jax.models.cache_rows import split_rows, take_prompts
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.state import CatState, Nodes
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

    The new question has the nodes of its branch's path, in a table as large as that of a question that starts with one
    slot: what goes on of any batch and what starts in one share a program. With `prompt_lanes` the prompts of the new
    state lie in lanes.
    """
    question = keep // state.num_slots
    alone = lambda x: jnp.take(x.reshape(-1, *x.shape[2:]), keep, axis=0)[:, None]  # noqa: E731
    slots = jax.tree.map(alone, state.slots)
    cache = state.cache
    if isinstance(cache, KVCache):
        cache = split_rows(cache, keep)
        cache = with_prompt_lanes(cache) if prompt_lanes else cache
    nodes = jax.tree.map(lambda x: jnp.take(x, question, axis=0), state.nodes)
    nodes, length = _paths(nodes, slots.node[:, 0], codes.node_capacity(1, state.capacity))
    slots = dataclasses.replace(slots, node=length[:, None] - 1)
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
        num_nodes=length,
        # One more finished path, its own, ends it.
        finished=jnp.broadcast_to(state.knobs.num_answers - 1, keep.shape).astype(jnp.int32),
        tokens=jnp.zeros_like(keep, jnp.int32),
        done=~slots.live[:, 0],
        born=None if state.born is None else state.born[question],
        knobs=state.knobs.of_questions(question),
    )
    return split.placed(mesh_of(state.cache))


def _paths(nodes: Nodes, leaf: jax.Array, room: int) -> tuple[Nodes, jax.Array]:
    """Of each question [n] the path to its node `leaf` [n] alone, in tables of `room` nodes, and its length [n]."""

    def up(node: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        parent = jnp.take_along_axis(nodes.parent, jnp.maximum(node, 0)[:, None], axis=1)[:, 0]
        return jnp.where(node < 0, codes.NO_PARENT, parent), node

    _, chain = lax.scan(up, leaf, length=room)  # [room, n], the leaf first
    length = jnp.sum(chain >= 0, axis=0, dtype=jnp.int32)
    place = jnp.arange(room, dtype=jnp.int32)
    back = length[:, None] - 1 - place
    path = jnp.take_along_axis(chain.T, jnp.maximum(back, 0), axis=1)
    kept = jax.tree.map(
        lambda x, unused: jnp.where(back >= 0, jnp.take_along_axis(x, path, axis=1), unused),
        nodes,
        codes.empty_nodes((len(leaf), room)),
    )
    parent = jnp.where(back >= 0, place - 1, codes.NO_PARENT)
    return dataclasses.replace(kept, parent=parent, slot=jnp.zeros_like(parent)), length
