"""`cat_decode`: the tree search as one jitted while_loop. Rule numbers are those of docs/design.md, section 3, CaT."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from caspo_jax.confidence.path import path_update
from caspo_jax.confidence.token import TokenStats, token_stats
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.automaton import Automaton
from caspo_jax.sampling.branching import Forks, close_nodes, forks, open_nodes, pruned, take_over
from caspo_jax.sampling.cursor import Cursor, Reading, advance, counted_mask, next_step
from caspo_jax.sampling.keys import uniforms
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sampling.policy import Boundary, Policy
from caspo_jax.sampling.refill import Queue, refill, starved
from caspo_jax.sampling.sampler import sample
from caspo_jax.sampling.state import CatState
from caspo_jax.sharding import mesh_of, whole

Fixed = tuple[Automaton, Knobs, Queue | None]  # what the loop reads and never changes


def _decode(params: Any, fixed: Fixed, state: CatState, policy: Policy) -> CatState:
    """The loop itself."""
    automaton, knobs, queue = fixed

    def unfinished(state: CatState) -> jax.Array:
        full = ~state.done & (state.age.reshape(-1) >= state.capacity)
        wanted = (
            ~jnp.all(state.done)  # some question still wants tokens
            & (state.iteration < state.limit)  # and its segment
            & ~jnp.any(full)  # and its buffers have room
        )
        return wanted if queue is None else wanted & ~starved(queue, state)

    def body(state: CatState) -> CatState:
        state = _iteration(params, policy, automaton, knobs, state)
        return state if queue is None else refill(policy, queue, state)

    with jax.named_scope("search"):
        state = lax.while_loop(unfinished, body, state)
    return state.placed(mesh_of(state.cache))  # said of the body alone, it leaves the program's outputs free


@functools.partial(jax.jit, static_argnames="policy")
def cat_decode(params: Any, state: CatState, policy: Policy) -> CatState:
    """Runs the tree search until every question has ended or `state.limit` iterations were run.

    Pure: arrays in, arrays out, no call to the host. Works with any model function, e.g. one that draws every token
    from a table of bigrams and has no cache::

        def decode(table, cache, token, position, column):
            return table[token], cache                          # logits [R, V]

        policy = Policy(decode, lambda cache, *_: cache, Sampler(), NamedStepConfidence("entropy"))
        automaton = build_automaton([b"a", b"b", b"\\n\\n", b""], "\\n\\n", eos_ids=[3])
        state = init_state((), table[prompt_token], question_keys, prompt_length, automaton, Knobs.of(config),
                           num_slots=8, capacity=64)
        state = cat_decode(table, state, policy)                # state.nodes, state.history: the trees

    Args:
      params: passed to `policy.decode` as it is.
      state: from `init_state`, or one that came back with `limit` raised.
      policy: static; equal policies share one compilation.

    Returns:
      CatState; `done` [B] says which questions have ended.
    """
    return _restore(state, _decode(params, _fixed(state), _strip(state), policy))


def cat_decode_donated(params: Any, state: CatState, policy: Policy) -> CatState:
    """`cat_decode` that writes into the state's own buffers (automaton, knobs and queue excepted): `state` is used up."""
    return _restore(state, _donated(params, _fixed(state), _strip(state), policy))


_donated = jax.jit(_decode, static_argnames="policy", donate_argnames="state")


def donated_program(params: Any, state: CatState, policy: Policy) -> jax.stages.Lowered:
    """`cat_decode_donated`, lowered and not run; the arrays may be shapes with shardings alone."""
    return _donated.lower(params, _fixed(state), _strip(state), policy)


@functools.partial(jax.jit, static_argnames="policy", donate_argnames="state")
def _refilled(queue: Queue, state: CatState, policy: Policy) -> CatState:
    return refill(policy, queue, state)


def refill_donated(state: CatState, policy: Policy) -> CatState:
    """Puts questions of the queue where there are none; `state` is used up, as by `cat_decode_donated`."""
    return _restore(state, _refilled(state.queue, _strip(state), policy))


def _fixed(state: CatState) -> Fixed:
    # The loop never changes these, and a caller may share them between states that are used up.
    return state.automaton, state.knobs, state.queue


def _strip(state: CatState) -> CatState:
    return dataclasses.replace(state, automaton=None, knobs=None, queue=None)  # type: ignore[arg-type]


def _restore(before: CatState, after: CatState) -> CatState:
    return dataclasses.replace(after, automaton=before.automaton, knobs=before.knobs, queue=before.queue)


def _iteration(params: Any, policy: Policy, automaton: Automaton, knobs: Knobs, state: CatState) -> CatState:
    """One token in every live slot, then the rules."""
    slots, age = state.slots, state.age
    token, stats = _draw(policy, knobs, state)
    history = _record(state, token, stats)
    cursor, reading = advance(automaton, slots.cursor, token, age)

    # Rule 1: steps end at the delimiter and where their path ends.
    at_length = age + 1 >= knobs.max_new_tokens
    finished = slots.live & (reading.eos | reading.stop | at_length)
    delimited = slots.live & reading.closes
    closed = (delimited | finished) & (cursor.first_column >= 0)
    confidence = _confidence(policy, state, history, cursor, reading, closed)
    path = path_update(slots.path, jnp.where(closed, confidence, 1.0), closed)
    path_confidence = policy.path_confidence(path)

    # Rule 2: finished paths leave their slots.
    tokens = state.tokens + jnp.sum(slots.live, axis=-1, dtype=jnp.int32)
    num_finished = state.finished + jnp.sum(finished, axis=-1, dtype=jnp.int32)
    alive = slots.live & ~finished

    # Rule 3: unsure branches are pruned.
    view = Boundary(alive, alive & delimited, path.last, path_confidence, path.count, slots.node)
    cut = pruned(policy, knobs, view)
    alive = alive & ~cut

    # Rule 5, before slots are refilled: no branch is made that would never get a token.
    spent = tokens >= knobs.token_budget
    answered = num_finished >= knobs.num_answers
    done = state.done | answered | ~jnp.any(alive, axis=-1) | spent

    # Rule 4: the surest branches at a boundary fork into free slots.
    view = dataclasses.replace(view, live=alive, boundary=delimited & alive & ~done[:, None])
    fork = forks(policy, knobs, view, free=~alive)

    status = _first(
        (finished, codes.FINISHED),
        (cut, codes.PRUNED),
        (delimited, codes.CLOSED),
        (slots.live & done[:, None], codes.EXPIRED),
        otherwise=codes.LIVE,
    )
    reason = _first(
        (finished & reading.eos, codes.EOS),
        (finished & reading.stop, codes.STOP),
        (finished, codes.LENGTH),
        (cut, codes.THRESHOLD),
        (delimited, codes.DELIMITER),
        (spent[:, None] & ~answered[:, None], codes.BUDGET),
        otherwise=codes.ANSWERS,
    )
    confidence = jnp.where(closed, confidence, jnp.nan)
    nodes = close_nodes(state.nodes, slots, status, reason, confidence, path_confidence, age + 1)
    nodes, node, num_nodes = open_nodes(state, nodes, view.boundary, fork, age + 1)

    live = (alive & ~done[:, None]) | fork.made
    ended = codes.Slots(live=live, node=node, key=slots.key, cursor=next_step(cursor, closed), path=path)
    slots, token = take_over(ended, token, fork, view.boundary)
    logits, cache = _next_logits(params, policy, state, token, fork)
    state = dataclasses.replace(
        state,
        iteration=state.iteration + 1,
        cache=cache,
        logits=logits,
        slots=slots,
        nodes=nodes,
        history=history,
        num_nodes=num_nodes,
        finished=num_finished,
        tokens=tokens,
        done=done,
    )
    return state.placed(mesh_of(cache))


def _draw(policy: Policy, knobs: Knobs, state: CatState) -> tuple[jax.Array, TokenStats]:
    """A token [B, K] in every slot and its statistics [B * K]; what dead slots draw is never read."""
    shape = state.slots.live.shape
    logits = state.logits.reshape(math.prod(shape), -1)

    def draw(attempt: jax.Array | int) -> jax.Array:
        return uniforms(state.slots.key, state.age, attempt).reshape(-1)

    token = sample(policy.sampler, knobs.sample, logits, draw)
    stats = token_stats(logits, token, fields=tuple(state.history.stats))
    token, stats = whole(mesh_of(state.cache), (token, stats))
    return token.reshape(shape), stats


def _record(state: CatState, token: jax.Array, stats: TokenStats) -> codes.History:
    """The history with the tokens [B, K] and their statistics [B * K]."""
    history = state.history
    column = state.iteration if state.born is None else state.iteration % state.capacity

    def write(array: jax.Array, row: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(array, row.reshape(1, *token.shape), column, 0)

    return codes.History(
        token=write(history.token, token),
        byte_start=write(history.byte_start, state.slots.cursor.position),
        stats={field: write(array, getattr(stats, field)) for field, array in history.stats.items()},
    )


def _confidence(
    policy: Policy,
    state: CatState,
    history: codes.History,
    cursor: Cursor,
    reading: Reading,
    closed: jax.Array,
) -> jax.Array:
    """[B, K] confidence of the steps that end now, where `closed` [B, K]; elsewhere it means nothing."""
    with jax.named_scope("step_confidence"):
        return lax.cond(
            jnp.any(closed),
            lambda: _open_confidence(policy, state, history, cursor, reading),
            lambda: jnp.full(closed.shape, jnp.nan, jnp.float32),
        )


def _open_confidence(
    policy: Policy, state: CatState, history: codes.History, cursor: Cursor, reading: Reading
) -> jax.Array:
    """[B, K] confidence of each slot's open step, as if it ended now."""
    columns = jnp.arange(state.capacity, dtype=jnp.int32)

    def by_age(x: jax.Array) -> jax.Array:
        """[T, B, K] in the ring's order -> [B, K, T] from each question's birth on."""
        if state.born is not None:
            place = (state.born + columns[:, None]) % state.capacity
            x = jnp.take_along_axis(x, place[..., None], axis=0)
        return jnp.moveaxis(x, 0, -1)

    mask = counted_mask(cursor, reading, by_age(history.byte_start), state.age, columns)
    stats = {field: by_age(array).reshape(-1, state.capacity) for field, array in history.stats.items()}
    return policy.step_confidence(stats, mask.reshape(-1, mask.shape[-1])).reshape(mask.shape[:-1])


def _first(*cases: tuple[jax.Array, int], otherwise: int) -> jax.Array:
    """[B, K] the code of the first case that holds; each is a condition [B, K] and its code.

    Selections one in the other, which become one kernel with what reads them; `jnp.select` searches by a reduction.
    """
    found: Any = otherwise
    for holds, code in reversed(cases):
        found = jnp.where(holds, code, found)
    return found


def _next_logits(
    params: Any, policy: Policy, state: CatState, token: jax.Array, fork: Forks
) -> tuple[jax.Array, Any]:
    """Logits [B, K, V] f32 of the next tokens, and the cache: forked rows copied, the newest tokens [B, K] read."""
    cache = _fork_rows(policy, state.cache, fork)
    position = jnp.broadcast_to(state.prompt_length[:, None] + state.age, token.shape).reshape(-1)
    logits, cache = policy.decode(params, cache, token.reshape(-1), position, state.iteration)
    return logits.astype(jnp.float32).reshape(state.logits.shape), cache


def _fork_rows(policy: Policy, cache: Any, fork: Forks) -> Any:
    """The model's cache, rows b * K + k, with the sources' rows in the slots that were forked into."""
    batch, slots_per = fork.made.shape
    rows = (jnp.arange(batch)[:, None] * slots_per + fork.source).reshape(-1)
    destination = jnp.nonzero(fork.made.reshape(-1), size=batch * slots_per, fill_value=0)[0]
    with jax.named_scope("forks"):
        return policy.copy_rows(cache, rows[destination], destination, jnp.sum(fork.made, dtype=jnp.int32))
