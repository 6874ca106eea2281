"""Which branches are pruned and which fork, and the nodes that end and begin with them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from caspo_jax.errors import UserError
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.keys import fold_in
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sampling.policy import Boundary, Policy
from caspo_jax.sampling.state import CatState, Nodes, Slots


class Forks(NamedTuple):
    """What the next node of each slot descends from."""

    source: jax.Array  # [B, K] int32, a slot: its own where it was not forked into
    child: jax.Array  # [B, K] int32, which child of the source's node; 0 goes on in its slot
    made: jax.Array  # [B, K] bool, whether the slot was forked into


def earlier(first: jax.Array, then: jax.Array) -> jax.Array:
    """[B, K, K] whether slot j (last axis) comes before slot i, by `first` [B, K] and then by `then`, both ascending."""
    mine, other = first[:, :, None], first[:, None, :]
    return (other < mine) | ((other == mine) & (then[:, None, :] < then[:, :, None]))


def rank(among: jax.Array, first: jax.Array, then: jax.Array) -> jax.Array:
    """[B, K] how many of `among` [B, K] come before each slot, in the order of `earlier`."""
    return jnp.sum(earlier(first, then) & among[:, None, :], axis=-1, dtype=jnp.int32)


def pruned(policy: Policy, knobs: Knobs, view: Boundary) -> jax.Array:
    """[B, K] which branches at a boundary are pruned: the worst first, as long as min_live branches remain."""
    score = _per_branch("prune", policy.prune(knobs, view), view)
    condemned = view.boundary & (score < knobs.threshold)
    spare = jnp.sum(view.live, axis=-1, dtype=jnp.int32) - knobs.min_live
    return condemned & (rank(condemned, score, -view.node) < spare[:, None])


def _per_branch(rule: str, given: Any, view: Boundary) -> jax.Array:
    """What a policy's function gave, if it is a number a branch. Raises UserError if not."""
    if jnp.shape(given) != view.live.shape:
        raise UserError(
            f"the policy's `{rule}` gave shape {jnp.shape(given)} for branches of shape {view.live.shape}: "
            "give each branch [B, K] a number"
        )
    return jnp.asarray(given)


def forks(policy: Policy, knobs: Knobs, view: Boundary, free: jax.Array) -> Forks:
    """The j-th free slot takes the j-th fork, the forks in order of path confidence (ties: the lower node).

    Args:
      policy: how many children a node wants.
      knobs: the search's numbers.
      view: the branches after pruning.
      free: [B, K] bool, slots that may be forked into.
    """
    slots_per = view.live.shape[1]
    here = view.boundary
    # More than there are slots change nothing, and their sums may not fit into int32.
    wanted = jnp.where(here, jnp.clip(_per_branch("fork", policy.fork(knobs, view), view), 0, slots_per), 0)
    surer = earlier(-view.path_confidence, view.node) & here[:, None, :]
    first = jnp.sum(jnp.where(surer, wanted[:, None, :], 0), axis=-1)  # forks of surer branches
    turn = jnp.cumsum(free, axis=-1) - free  # which free slot this is
    mine = (first[:, None, :] <= turn[:, :, None]) & (turn[:, :, None] < (first + wanted)[:, None, :])
    mine &= here[:, None, :] & free[:, :, None]
    made = jnp.any(mine, axis=-1)
    source = jnp.where(made, jnp.argmax(mine, axis=-1), jnp.arange(slots_per)[None])
    child = jnp.where(made, 1 + turn - jnp.take_along_axis(first, source, axis=-1), 0)
    return Forks(source, child, made)


def close_nodes(
    nodes: Nodes,
    slots: Slots,
    status: jax.Array,
    reason: jax.Array,
    confidence: jax.Array,
    path_confidence: jax.Array,
    end: jax.Array,
) -> Nodes:
    """The nodes, with how those ended whose branch stops or whose step closes.

    Args:
      nodes: [B, N].
      slots: [B, K], of which those that are live may end.
      status: [B, K] int32, LIVE where nothing ends.
      reason: [B, K] int32.
      confidence: [B, K] f32 of the steps that closed, else NaN.
      path_confidence: [B, K] f32.
      end: scalar or [B, 1] int32, tokens of a live branch.
    """
    ends = slots.live & (status != codes.LIVE)
    return _put(
        nodes,
        jnp.where(ends, slots.node, nodes.parent.shape[1]),
        end=end,
        status=status,
        reason=reason,
        confidence=confidence,
        path_confidence=path_confidence,
    )


def open_nodes(
    state: CatState, nodes: Nodes, going: jax.Array, fork: Forks, start: jax.Array
) -> tuple[Nodes, jax.Array, jax.Array]:
    """New nodes: first the continuations, by the order of their parents, then the forks in the order they were made.

    Args:
      state: before this token.
      nodes: [B, N], the ended ones closed.
      going: [B, K] bool, branches that closed a step and go on.
      fork: where each slot's next node comes from.
      start: scalar or [B, 1] int32, tokens of a live branch.

    Returns:
      The nodes, each slot's open node [B, K] int32, and how many nodes there are [B] int32.
    """
    slots = state.slots
    after = rank(going, slots.node, slots.node)
    turn = jnp.cumsum(fork.made, axis=-1) - fork.made
    count = jnp.sum(going, axis=-1, keepdims=True, dtype=jnp.int32)
    base = state.num_nodes[:, None]
    node = jnp.where(fork.made, base + count + turn, jnp.where(going, base + after, slots.node))
    index = jnp.where(going | fork.made, node, nodes.parent.shape[1])
    nodes = _put(
        nodes,
        index,
        parent=jnp.take_along_axis(slots.node, fork.source, axis=-1),
        rank=fork.child,
        slot=jnp.broadcast_to(jnp.arange(index.shape[1]), index.shape),
        start=start,
        status=codes.LIVE,
    )
    num_nodes = state.num_nodes + jnp.sum(going | fork.made, axis=-1, dtype=jnp.int32)
    return nodes, node, num_nodes


def take_over(slots: Slots, token: jax.Array, fork: Forks, going: jax.Array) -> tuple[Slots, jax.Array]:
    """The slots and their newest tokens [B, K] once children took over: a fork starts as a copy of its source.

    Args:
      slots: [B, K], with the keys of the nodes that were open.
      token: [B, K] int32.
      fork: where each slot's next node comes from.
      going: [B, K] bool, branches that go on in a node of their own.
    """
    take = jax.vmap(lambda x, i: x[i])
    cursor, path, copied = jax.tree.map(
        lambda x: jnp.where(fork.made, take(x, fork.source), x), (slots.cursor, slots.path, token)
    )
    moved = (going | fork.made)[..., None]
    key = jnp.where(moved, fold_in(take(slots.key, fork.source), fork.child), slots.key)
    return dataclasses.replace(slots, key=key, cursor=cursor, path=path), copied


def _put(nodes: Nodes, index: jax.Array, **values: jax.Array | int) -> Nodes:
    """The nodes with these fields [B, K] of the nodes `index` [B, K]; an index past the end is left out."""
    row = jnp.arange(index.shape[0])[:, None]
    changed = {
        name: getattr(nodes, name).at[row, index].set(value, mode="drop") for name, value in values.items()
    }
    return dataclasses.replace(nodes, **changed)
