"""One batch of questions on the device: how it starts, runs, grows, shrinks, and is fed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.models.cache import (
    KVCache,
    init_cache,
    prefers_prompt_lanes,
    with_layers_apart,
    with_prompt_lanes,
)
from caspo_jax.models.cache_rows import branch, grow, take_prompts
from caspo_jax.sampling.automaton import Automaton
from caspo_jax.sampling.compaction import split_branches, take_questions
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sampling.loop import cat_decode_donated
from caspo_jax.sampling.model_decode import ApartParams
from caspo_jax.sampling.policy import Policy
from caspo_jax.sampling.prefill import fitting_columns, read_prompts
from caspo_jax.sampling.refill import NO_UNIT, Queue
from caspo_jax.sampling.state import CatState, end_decided, grow_state, init_state
from caspo_jax.sampling.tree import Tree, harvest
from caspo_jax.sampling.units import PADDING, QueueRoom, Unit, Usage, bucket

FIRST_SEGMENT = 64  # tokens that the buffers hold at first; they double (lanes: all from the start, since unused ones are not read)
FIRST_SHARE = 64  # or so much of a long limit, a 64th: every doubling is compiled, which takes up to a minute with a large model
CHECK_EVERY = 16  # iterations between two looks at which questions have ended
UNCHECKED = 64  # the same for batches too small to be cut
# And of searches that may end once they are decided, a look at which reads all their tokens: so much of their age at least.
DECIDED_SHARE = 1 / 64
# Batches are cut to about a quarter, a power of two, and not to more sizes: every shape is compiled.
SHRINK = 4
LEAST_ROWS = 128  # nor below this: the compilation would cost more than it saves


def cut_rows(rows: int, least: int = 1) -> int:
    """What a batch of so many rows may be cut to, the power of two next to a `SHRINK`-th; 0: nothing."""
    cut = 1 << max(0, round(math.log2(rows / SHRINK)))
    return cut if max(LEAST_ROWS, least) <= cut < rows else 0


# Jitted whole: each of their small operations would be compiled by itself, for every shape. What only passes through
# (cache, automaton, knobs) stays outside, because a program's outputs are copies.
@functools.partial(jax.jit, static_argnames=("num_slots", "roots", "capacity", "fields", "mesh"))
def _init(*arrays: Any, mesh: Any, **settings: Any) -> CatState:
    return init_state(*arrays, **settings).placed(mesh)


def start_cache(
    cache: KVCache, num_slots: int, capacity: int, prompt_lanes: bool = False, apart: bool = False
) -> KVCache:
    """Rows for `num_slots` branches a prompt, of `capacity` empty columns each; the cache has the prompts alone."""
    cache = with_layers_apart(cache) if apart else cache
    cache = grow(branch(cache, num_slots), capacity)
    return with_prompt_lanes(cache) if prompt_lanes else cache


_branch = jax.jit(start_cache, static_argnums=(1, 2, 3, 4))
_take_prompts = jax.jit(lambda logits, cache, row: (logits[row], take_prompts(cache, row)))
_grow = jax.jit(grow, static_argnums=1)
_grow_state = jax.jit(lambda state, n, mesh: grow_state(state, n).placed(mesh), static_argnums=(1, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What stays the same while trees grow, and the steps of growing them."""

    graphdef: Any
    params: Any
    decode_params: Any  # the same, or `ApartParams`
    policy: Policy
    knobs: Knobs
    automaton: Automaton
    num_slots: int
    roots: int
    prompt_columns: int  # of the longest prompt
    max_new_tokens: int
    fields: tuple[str, ...]
    lanes: bool  # the cache's layout
    shared_heads: int  # query heads a key head
    usage: Usage
    report: Callable[[int], None]  # is told how many units are done
    split: bool = False  # branches may go on without their tree: the policy never forks
    shared: int = 1  # units in a row that have one prompt, or nearly so: what a queue has room for
    decided: Callable[[int, Tree], bool] | None = None  # (unit, its tree so far) -> may its search end now?
    padded: bool = False  # other calls have other numbers of units: prompts are read as if there were `size`

    @property
    def first_capacity(self) -> int:
        """Columns that the buffers have at first."""
        if self.lanes:
            return self.max_new_tokens
        # A power of two, so that limits have their programs in common.
        share = 1 << max(0, (self.max_new_tokens // FIRST_SHARE).bit_length() - 1)
        return min(max(FIRST_SEGMENT, share), self.max_new_tokens)

    def prompt_lanes(self, slots: int) -> bool:
        """The layout of prompts with so many slots each."""
        return prefers_prompt_lanes(self.lanes, slots * self.shared_heads)

    def run(self, state: CatState, iterations: int) -> CatState:
        """So many iterations, or fewer where the buffers are full or all have ended. `state` is used up."""
        before, drawn = int(state.iteration), _drawn(state)
        limit = jnp.asarray(before + iterations, jnp.int32)
        state = cat_decode_donated(self.decode_params, dataclasses.replace(state, limit=limit), self.policy)
        self.usage.slots += (int(state.iteration) - before) * state.slots.live.size
        self.usage.live += _drawn(state) - drawn
        return state

    def full(self, state: CatState) -> bool:
        """Whether a branch that goes on has as many tokens as the buffers hold."""
        age = np.broadcast_to(np.asarray(state.age).reshape(-1), state.done.shape)
        return bool(np.any(~np.asarray(state.done) & (age >= state.capacity)))

    def drain(self, state: CatState, where: np.ndarray, trees: list[list[Tree]], total: int) -> None:
        """Runs until all questions of the state have ended; the batch shrinks as they do.

        Args:
          state: used up.
          where: [B] the unit of each question, -1: none.
          trees: by unit.
          total: units done when these are.
        """
        while True:
            if self.full(state):
                state = self.grown(state)
            state = self.run(state, self.segment(state))
            if self.decided is not None:
                state = self._without_decided(state, where)
            done = np.asarray(state.done)
            self.report(total - len(np.unique(where[~done & (where >= 0)])))
            if done.all():
                harvest(state, where, trees, where >= 0)
                return
            state, where = self.shrunk(state, where, trees)

    def segment(self, state: CatState) -> int:
        """Iterations until the next look."""
        if self.decided is not None:
            return max(CHECK_EVERY, int(DECIDED_SHARE * int(state.iteration)))
        return CHECK_EVERY if self.smaller(state) else UNCHECKED

    def smaller(self, state: CatState) -> int:
        """The rows that the batch may be cut to; 0: none."""
        return cut_rows(state.slots.live.size, 1 if self.split else state.num_slots)

    def shrunk(
        self, state: CatState, where: np.ndarray, trees: list[list[Tree]]
    ) -> tuple[CatState, np.ndarray]:
        """A smaller batch where a quarter of the rows holds all that goes on, else the same one."""
        rows = self.smaller(state)
        if not rows:
            return state, where
        done, live = np.asarray(state.done), np.asarray(state.slots.live)
        each = 1 if self.split else live.shape[1]
        if self.split and live.shape[1] > 1 and int(np.sum(live)) <= rows:
            harvest(state, where, trees, where >= 0)
            keep = np.argsort(~live.reshape(-1), kind="stable")[:rows]
            where = np.where(live.reshape(-1)[keep], np.repeat(where, live.shape[1])[keep], -1)
            state = split_branches(_alone(state), jnp.asarray(keep), self.prompt_lanes(1))
        elif live.shape[1] == each and int(np.sum(~done)) <= rows // each:
            harvest(state, where, trees, done & (where >= 0))
            # Ended questions fill up the batch; they were harvested and stay ended.
            keep = np.argsort(done, kind="stable")[: rows // each]
            where = np.where(done[keep], -1, where[keep])
            state = take_questions(_alone(state), jnp.asarray(keep))
        return state, where

    def _without_decided(self, state: CatState, where: np.ndarray) -> CatState:
        """The state with the questions ended whose vote nothing can change."""
        assert self.decided is not None
        ask = ~np.asarray(state.done) & (np.asarray(state.finished) > 0) & (where >= 0)
        if not ask.any():
            return state
        trees: list[list[Tree]] = [[] for _ in where]
        harvest(state, np.arange(len(where)), trees, ask)
        ended = np.zeros(len(where), bool)
        for b in np.flatnonzero(ask):
            ended[b] = self.decided(int(where[b]), trees[b][0])
        return end_decided(state, ended) if ended.any() else state

    def grown(self, state: CatState) -> CatState:
        """The state with twice the columns, or as many as the longest path needs."""
        capacity = min(2 * state.capacity, self.max_new_tokens)
        ring = None if state.born is None else state.iteration
        cache = _grow(state.cache, capacity, ring)
        cut: dict[str, Any] = dict.fromkeys(("cache", "automaton", "knobs", "queue", "refill"))
        light = dataclasses.replace(state, **cut)
        return dataclasses.replace(
            _grow_state(light, capacity, cache.mesh),
            cache=cache,
            automaton=self.automaton,
            knobs=state.knobs,
            queue=state.queue,
            refill=state.refill,
        )

    def start(self, units: list[Unit], size: int) -> CatState:
        """A batch of `size` questions, the first of which are the units."""
        prompts = list(dict.fromkeys(unit.prompt_ids for unit in units))
        index = {prompt: i for i, prompt in enumerate(prompts)}
        columns = fitting_columns(self.prompt_columns, max(map(len, prompts)))
        logits, cache = self._read(prompts, size if self.padded else bucket(len(prompts)), columns)
        row = np.array([index[unit.prompt_ids] for unit in units] + list(range(len(units), size)))
        row = np.minimum(row, len(logits) - 1)  # padding has any prompt
        if len(logits) != size or (row != np.arange(size)).any():
            logits, cache = _take_prompts(logits, cache, row)
        return self._state(logits, cache, units)

    def empty(self, size: int) -> CatState:
        """A batch of no question, for `stream`."""
        model = nnx.merge(self.graphdef, self.params)
        cache = init_cache(
            model.config, size, 0, model.dtype, prompt_columns=self.prompt_columns, lanes=self.lanes
        )
        return self._state(jnp.zeros((size, model.config.vocab_size)), cache, [])

    def queue(self, units: list[Unit], first: int, room: QueueRoom, more: bool) -> Queue:
        """The units as a queue, each of their prompts read once; unit i is called first + i."""
        prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(unit.prompt_ids for unit in units))}
        logits, cache = self._read(list(prompts), room.prompts, self.prompt_columns, room.read)
        entries = room.entries
        padded = units + [PADDING] * (entries - len(units))
        return Queue(
            cache=cache,
            logits=logits,
            prompt=np.array([prompts.get(unit.prompt_ids, 0) for unit in padded], np.int32),  # type: ignore[arg-type]
            keys=np.array([unit.key for unit in padded], np.uint32),  # type: ignore[arg-type]
            prompt_length=np.array([len(unit.prompt_ids) for unit in padded], np.int32),  # type: ignore[arg-type]
            first_rank=np.array([unit.first_rank for unit in padded], np.int32),  # type: ignore[arg-type]
            unit=np.arange(first, first + entries, dtype=np.int32),  # type: ignore[arg-type]
            size=np.int32(len(units)),  # type: ignore[arg-type]
            roots=np.int32(self.roots),  # type: ignore[arg-type]
            more=np.bool_(more),  # type: ignore[arg-type]
        )

    def _state(self, logits: jax.Array, cache: KVCache, units: list[Unit]) -> CatState:
        size, capacity = len(logits), self.first_capacity
        apart = isinstance(self.decode_params, ApartParams)
        cache = _branch(cache, self.num_slots, capacity, self.prompt_lanes(self.num_slots), apart)
        padded = units + [PADDING] * (size - len(units))
        state = _init(
            None,
            logits,
            np.array([unit.key for unit in padded], np.uint32),
            np.array([len(unit.prompt_ids) for unit in padded], np.int32),
            None,
            None,
            num_slots=self.num_slots,
            roots=self.roots,
            capacity=capacity,
            fields=self.fields,
            real=np.arange(size) < len(units),
            first_rank=np.array([unit.first_rank for unit in padded], np.int32),
            mesh=cache.mesh,
        )
        return dataclasses.replace(state, cache=cache, automaton=self.automaton, knobs=self._knobs_of(padded))

    def _knobs_of(self, padded: list[Unit]) -> Knobs:
        """The knobs, with each question's own threshold and limit where the units have some."""
        own: dict[str, Any] = {}
        for name, dtype in (("threshold", np.float32), ("max_new_tokens", np.int32)):
            values = [getattr(unit, name) for unit in padded]
            if any(value is not None for value in values):
                shared = getattr(self.knobs, name)
                own[name] = np.array([shared if v is None else v for v in values], dtype)[:, None]
        return dataclasses.replace(self.knobs, **own)

    def _read(
        self, prompts: Sequence[tuple[int, ...]], count: int, columns: int, rows: int | None = None
    ) -> tuple[jax.Array, KVCache]:
        """`read_prompts` with this batch's model and layout."""
        return read_prompts(
            self.graphdef,
            self.params,
            prompts,
            count,
            columns,
            lanes=self.lanes,
            rows=rows,
            padded=self.padded,
        )


def _drawn(state: CatState) -> int:
    """Tokens of the questions in a state, and of those whose places went to others."""
    tokens, used = np.asarray(state.tokens), state.refill
    if used is None:
        return int(tokens.sum())
    ended = np.asarray(used.ended.tokens)[: int(used.stored)]
    return int(tokens[np.asarray(used.unit) != NO_UNIT].sum() + ended.sum())


def _alone(state: CatState) -> CatState:
    return dataclasses.replace(state, queue=None, refill=None)
