"""Which branches fork, and the nodes that end and begin with them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from caspo_jax.sampling import state as codes
from caspo_jax.sampling.policy import Boundary, Policy
from caspo_jax.sampling.state import CatState


def rank(among: jax.Array, first: jax.Array, then: jax.Array) -> jax.Array:
    """[B, K] how many of `among` come before each slot, ordered by `first` and then by `then`, both ascending."""
    a, b = first[:, :, None], first[:, None, :]
    earlier = (b < a) | ((b == a) & (then[:, None, :] < then[:, :, None]))
    return jnp.sum(earlier & among[:, None, :], axis=-1, dtype=jnp.int32)


def forks(
    policy: Policy, knobs: Any, view: Boundary, free: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which slot each slot's next node descends from: source slot, child rank, and whether it is a fork; [B, K] each.

    The j-th free slot takes the j-th fork, the forks in order of path confidence (ties: the lower node).
    """
    slots_per = view.live.shape[1]
    here = view.boundary
    # More than there are slots change nothing, and their sums may not fit into int32.
    wanted = jnp.where(here, jnp.clip(policy.fork(knobs, view), 0, slots_per), 0)
    a, b = -view.path_confidence[:, :, None], -view.path_confidence[:, None, :]
    earlier = (b < a) | ((b == a) & (view.node[:, None, :] < view.node[:, :, None]))
    first = jnp.sum(
        jnp.where(earlier & here[:, None, :], wanted[:, None, :], 0), axis=-1
    )  # forks of surer branches
    turn = jnp.cumsum(free, axis=-1) - free  # which free slot this is
    mine = (first[:, None, :] <= turn[:, :, None]) & (turn[:, :, None] < (first + wanted)[:, None, :])
    mine &= here[:, None, :] & free[:, :, None]
    forked = jnp.any(mine, axis=-1)
    own = jnp.arange(slots_per)[None]
    source = jnp.where(forked, jnp.argmax(mine, axis=-1), own)
    child = jnp.where(forked, 1 + turn - jnp.take_along_axis(first, source, axis=-1), 0)
    return source, child, forked


def close_nodes(nodes, slots, status, reason, confidence, path_confidence, end) -> codes.Nodes:
    """The nodes of slots that stop being live, with how they ended; all [B, K]."""
    ends = slots.live & (status != codes.LIVE)
    index = jnp.where(ends, slots.node, nodes.parent.shape[1])  # past the end: dropped
    row = jnp.arange(index.shape[0])[:, None]

    def put(array: jax.Array, value: jax.Array) -> jax.Array:
        return array.at[row, index].set(value, mode="drop")

    return dataclasses.replace(
        nodes,
        end=put(nodes.end, end),
        status=put(nodes.status, status),
        reason=put(nodes.reason, reason),
        confidence=put(nodes.confidence, confidence),
        path_confidence=put(nodes.path_confidence, path_confidence),
    )


def open_nodes(state: CatState, nodes, going, source, child, forked, start):
    """New nodes: first the continuations, by the order of their parents, then the forks in the order they were made."""
    slots = state.slots
    after = rank(going, slots.node, slots.node)
    turn = jnp.cumsum(forked, axis=-1) - forked
    count = jnp.sum(going, axis=-1, keepdims=True, dtype=jnp.int32)
    base = state.num_nodes[:, None]
    node = jnp.where(forked, base + count + turn, jnp.where(going, base + after, slots.node))
    index = jnp.where(going | forked, node, nodes.parent.shape[1])
    row = jnp.arange(index.shape[0])[:, None]

    def put(array: jax.Array, value: jax.Array | int) -> jax.Array:
        return array.at[row, index].set(value, mode="drop")

    nodes = dataclasses.replace(
        nodes,
        parent=put(nodes.parent, jnp.take_along_axis(slots.node, source, axis=-1)),
        rank=put(nodes.rank, child),
        slot=put(nodes.slot, jnp.broadcast_to(jnp.arange(index.shape[1]), index.shape)),
        start=put(nodes.start, start),
        status=put(nodes.status, codes.LIVE),
    )
    num_nodes = state.num_nodes + jnp.sum(going | forked, axis=-1, dtype=jnp.int32)
    return nodes, node, num_nodes
