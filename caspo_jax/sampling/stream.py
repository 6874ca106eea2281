"""Trees grown in one batch whose slots a queue refills: the host feeds the queue and takes what has ended."""

from __future__ import annotations

import numpy as np

from caspo_jax.padding import multiple
from caspo_jax.sampling.batch import Batch
from caspo_jax.sampling.loop import refill_donated
from caspo_jax.sampling.refill import NO_UNIT, harvested, refill_of, refillable, with_queue
from caspo_jax.sampling.room import queue_batches
from caspo_jax.sampling.tree import Tree, harvest_ended
from caspo_jax.sampling.units import QueueRoom, Unit

SEGMENT = 64  # iterations between two looks from the host


def stream(search: Batch, units: list[Unit], size: int, count: int) -> list[list[Tree]]:
    """Grows one tree a unit, `size` at a time, with a queue as for `count` units, at least as many as there are.

    Memory does not grow with the number of units: the queue and what has ended hold `queue_batches` batches.
    """
    trees: list[list[Tree]] = [[] for _ in units]
    batches = queue_batches(search.prompt_columns, search.max_new_tokens)
    entries = multiple(min(count, batches * size), size)
    room = QueueRoom.of(entries, size, search.shared)
    state = refillable(search.empty(size), entries)
    fed = queued = 0
    while True:
        if int(refill_of(state).next) == queued and fed < len(units):
            batch = room.fill(units[fed:])
            more = fed + len(batch) < len(units)
            state = with_queue(state, search.queue(batch, fed, room, more))
            fed, queued = fed + len(batch), len(batch)
            state = refill_donated(state, search.policy)
        if search.full(state):
            state = refillable(search.grown(state), entries)  # nothing is in it: harvested below
        state = search.run(state, SEGMENT)
        harvest_ended(refill_of(state).ended, int(refill_of(state).stored), trees)
        state = harvested(state)
        where, done = np.asarray(refill_of(state).unit), np.asarray(state.done)
        search.report(sum(map(bool, trees)))
        if (done & (where != NO_UNIT)).any():  # there was no room for their trees
            state = refill_donated(state, search.policy)
            continue
        if fed < len(units) or int(refill_of(state).next) < queued:
            continue
        if done.all():
            return trees
        smaller, where = search.shrunk(state, where, trees)
        if smaller is not state:
            search.drain(smaller, where, trees, len(units))
            return trees
