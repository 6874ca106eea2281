"""Slots of a finished question go to the next one of a queue on the device, inside the loop.

The queue holds prompts that were read together, many at a time, as matrix units want them; the loop only copies. A question that
ends leaves its tree in `Ended` and its slots to the queue's next entry, whose age starts at 0: token indices, positions
and limits go by a question's age, so that its tree is that of a loop of its own. The history and the cache's own columns
are rings as long as the longest path; a new question owns no column yet.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.sampling.policy import Policy
from caspo_jax.sampling.state import CatState, History, Nodes, root_nodes, root_slots

NO_UNIT = -1  # unit of slots that hold no question


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """Q questions that wait, with U prompts between them. The loop reads it and changes nothing."""

    cache: Any  # the model's own pytree, of the U prompts
    logits: jax.Array  # [U, V] f32, after each prompt
    prompt: jax.Array  # [Q] int32, which of the prompts each question has
    keys: jax.Array  # [Q, 2] uint32, raw data of the questions' threefry keys
    prompt_length: jax.Array  # [Q] int32
    first_rank: jax.Array  # [Q] int32, child rank of the first root child
    unit: jax.Array  # [Q] int32, what the caller calls each question
    size: jax.Array  # scalar int32, entries that are questions
    roots: jax.Array  # scalar int32, children of a root
    more: jax.Array  # scalar bool, the caller has more: the loop returns when a slot would stay empty


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ended:
    """Trees of O questions that ended, in the order in which they did."""

    unit: jax.Array  # [O] int32
    nodes: Nodes  # [O, N]
    history: History  # [O, T, K], from the question's birth on
    num_nodes: jax.Array  # [O] int32
    tokens: jax.Array  # [O] int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Refill:
    """How far the queue is used, and what came out."""

    unit: jax.Array  # [B] int32, the question in each place, NO_UNIT: none
    next: jax.Array  # scalar int32, the queue's first entry that is not taken
    stored: jax.Array  # scalar int32, entries of `ended` in use
    ended: Ended


def refill_of(state: CatState) -> Refill:
    """The `Refill` of a state that a queue feeds."""
    assert state.refill is not None
    return state.refill


def refillable(state: CatState, room: int) -> CatState:
    """The state ready for a queue, with room for `room` trees that ended (O).

    Args:
      state: from `init_state`, with `real` false everywhere; or one that has been refilled and has grown since, whose ended
        trees were copied.
      room: O.
    """
    # Each array by itself: one buffer in two places could not be given to a loop that writes into its state.
    integers = lambda *shape: jnp.zeros(shape, jnp.int32)  # noqa: E731
    ended = Ended(
        unit=integers(room),
        nodes=jax.tree.map(lambda x: jnp.zeros((room, *x.shape[1:]), x.dtype), state.nodes),
        history=jax.tree.map(lambda x: jnp.zeros((room, len(x), x.shape[2]), x.dtype), state.history),
        num_nodes=integers(room),
        tokens=integers(room),
    )
    if state.refill is not None:
        used = dataclasses.replace(state.refill, stored=integers(), ended=ended)
        return dataclasses.replace(state, refill=used)
    questions = len(state.done)
    nobody = jnp.full(questions, NO_UNIT, jnp.int32)
    return dataclasses.replace(
        state, born=integers(questions), refill=Refill(nobody, integers(), integers(), ended)
    )


def with_queue(state: CatState, queue: Queue) -> CatState:
    """The state with another queue, of which nothing is taken yet."""
    used = dataclasses.replace(refill_of(state), next=jnp.zeros((), jnp.int32))
    return dataclasses.replace(state, queue=queue, refill=used)


def starved(queue: Queue, state: CatState) -> jax.Array:
    """Whether places stay empty that the caller could fill: no room for trees, or no entry where there are more."""
    return jnp.any(state.done & ((refill_of(state).unit != NO_UNIT) | queue.more))


def refill(policy: Policy, queue: Queue, state: CatState) -> CatState:
    """Puts away the trees of questions that ended, and queued questions into the places that are free.

    Two loops of as many trips as there are questions to move, in place; none in most iterations.
    """

    def storable(state: CatState) -> jax.Array:
        used = refill_of(state)
        room = used.stored < len(used.ended.unit)
        return state.done & (used.unit != NO_UNIT) & room

    def loadable(state: CatState) -> jax.Array:
        used = refill_of(state)
        return state.done & (used.unit == NO_UNIT) & (used.next < queue.size)

    def store(state: CatState) -> CatState:
        return _store(state, jnp.argmax(storable(state)))

    def load(state: CatState) -> CatState:
        return _load(policy, queue, state, jnp.argmax(loadable(state)))

    def both(state: CatState) -> CatState:
        state = lax.while_loop(lambda state: jnp.any(storable(state)), store, state)
        return lax.while_loop(lambda state: jnp.any(loadable(state)), load, state)

    with jax.named_scope("refill"):
        # One question, not two, in the many iterations with nothing to move: an accelerator's host waits for the answer.
        return lax.while_loop(lambda state: jnp.any(storable(state) | loadable(state)), both, state)


def _put(array: jax.Array, row: jax.Array, place: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(array, row, place, 0)


def _store(state: CatState, question: jax.Array) -> CatState:
    used, born = refill_of(state), state.born
    assert born is not None
    ended, shift = used.ended, -(born[question] % state.capacity)

    def window(x: jax.Array) -> jax.Array:  # [T, B, K] -> [T, K], from the question's birth on
        return jnp.roll(lax.dynamic_index_in_dim(x, question, 1, keepdims=False), shift, axis=0)

    def put(array: jax.Array, row: jax.Array) -> jax.Array:
        return _put(array, row, used.stored)

    ended = Ended(
        unit=put(ended.unit, used.unit[question]),
        nodes=jax.tree.map(lambda out, x: put(out, x[question]), ended.nodes, state.nodes),
        history=jax.tree.map(lambda out, x: put(out, window(x)), ended.history, state.history),
        num_nodes=put(ended.num_nodes, state.num_nodes[question]),
        tokens=put(ended.tokens, state.tokens[question]),
    )
    unit = _put(used.unit, jnp.int32(NO_UNIT), question)
    return dataclasses.replace(
        state, refill=dataclasses.replace(used, unit=unit, stored=used.stored + 1, ended=ended)
    )


def _load(policy: Policy, queue: Queue, state: CatState, question: jax.Array) -> CatState:
    used, born = refill_of(state), state.born
    assert born is not None
    entry, slots = used.next, state.num_slots
    own = jnp.arange(slots, dtype=jnp.int32)[None]
    live, rank = own < queue.roots, own + queue.first_rank[entry]
    prompt = queue.prompt[entry]
    logits = jnp.broadcast_to(queue.logits[prompt], state.logits.shape[1:])

    def put(array: jax.Array, row: Any) -> jax.Array:
        return _put(array, jnp.asarray(row, array.dtype), question)

    first = lambda array, rows: put(array, rows[0])  # noqa: E731
    return dataclasses.replace(
        state,
        prompt_length=put(state.prompt_length, queue.prompt_length[entry]),
        cache=policy.load_prompt(state.cache, queue.cache, question, prompt),
        logits=put(state.logits, logits),
        slots=jax.tree.map(first, state.slots, root_slots(queue.keys[entry][None], live, rank)),
        nodes=jax.tree.map(first, state.nodes, root_nodes(live, rank, state.nodes.parent.shape[1])),
        num_nodes=put(state.num_nodes, queue.roots),
        finished=put(state.finished, 0),
        tokens=put(state.tokens, 0),
        done=put(state.done, False),
        born=put(born, state.iteration),
        refill=dataclasses.replace(used, unit=put(used.unit, queue.unit[entry]), next=entry + 1),
    )


def harvested(state: CatState) -> CatState:
    """The state after its caller has copied `refill.ended`: there is room again."""
    used = dataclasses.replace(refill_of(state), stored=jnp.zeros((), jnp.int32))
    return dataclasses.replace(state, refill=used)
