"""Runs the loop over many questions: prompts in buckets, bounded segments, finished work taken out in between."""

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

from caspo_jax.errors import UserError
from caspo_jax.models.cache import KVCache, branch, concatenate, copy_rows, grow, prefers_lanes, take_prompts
from caspo_jax.sampling.automaton import Automaton
from caspo_jax.sampling.compaction import split_branches, take_questions
from caspo_jax.sampling.loop import cat_decode_donated
from caspo_jax.sampling.policy import Policy
from caspo_jax.sampling.state import CatState, Knobs, end_decided, grow_state, init_state
from caspo_jax.sampling.tree import Tree, harvest
from caspo_jax.sharding import batch_ways, mesh_of

PROMPT_BUCKET = 16  # the longest prompt is padded to a multiple of this
FIRST_SEGMENT = 64  # tokens that the buffers hold at first; they double (lanes: all from the start, since unused ones are not read)
CHECK_EVERY = 16  # iterations between two looks at which questions have ended
SHRINK = (
    4  # batches are cut to about a quarter, a power of two, and not to more sizes: every shape is compiled
)
LEAST_ROWS = 64  # nor below this: the compilation would cost more than it saves
CACHE_BYTES = 1 << 30  # what the default batch size lets the KV cache and the logits take
LOGITS_COPIES = 4  # float32 arrays of the logits' shape that an iteration may hold
PREFILL_PAIRS = 1 << 24  # pairs of prompt columns (rows x P x P) that one prefill may attend over
MOST_ROWS = 2048

Progress = Callable[[int, int], None]  # (questions done, questions in all)
Decided = Callable[[int, Tree], bool]  # (unit, its tree so far) -> may its search end now?


@dataclasses.dataclass
class Usage:
    """How well the slots were used: a caller's counters, to which every batch adds."""

    live: int = 0  # steps of slots that held a live branch: tokens decoded
    slots: int = 0  # steps of all slots


@dataclasses.dataclass(frozen=True)
class ModelDecode:
    """A Decoder's `decode_step` as the policy's model function."""

    graphdef: Any

    def __call__(self, params, cache, token, position, column):
        """One token a row (see Policy.decode)."""
        return nnx.merge(self.graphdef, params).decode_step(cache, token, position, column)


@dataclasses.dataclass(frozen=True)
class Unit:
    """One tree to grow: a prompt, the key of its question, and which child of the root comes first."""

    prompt_ids: tuple[int, ...]
    key: tuple[int, int]  # raw threefry key data
    first_rank: int = 0


def key_data(key: Any) -> np.ndarray:
    """Raw threefry data [2] of a key, typed or raw."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    data = np.asarray(key)
    if data.shape != (2,) or data.dtype != np.uint32:
        raise UserError(
            f"key has shape {data.shape} and dtype {data.dtype}: give one threefry key, e.g. jax.random.key(0)"
        )
    return data


def default_rows(model: Any, columns: int) -> int:
    """Slots whose KV cache of so many columns, and logits, stay within CACHE_BYTES a device."""
    config = model.config
    row = (
        2
        * config.num_layers
        * columns
        * config.num_kv_heads
        * config.head_dim
        * jnp.dtype(model.dtype).itemsize
    )
    row += LOGITS_COPIES * 4 * config.vocab_size
    return int(min(MOST_ROWS, max(1, CACHE_BYTES * batch_ways(mesh_of(model)) // row)))


def grow_trees(
    model: Any,
    units: Sequence[Unit],
    policy: Callable[[Callable, Callable], Policy],
    knobs: Knobs,
    automaton: Automaton,
    *,
    num_slots: int,
    roots: int,
    max_new_tokens: int,
    fields: tuple[str, ...],
    batch_size: int | None = None,
    progress: Progress | None = None,
    usage: Usage | None = None,
    split: bool = False,
    decided: Decided | None = None,
) -> list[list[Tree]]:
    """Grows one tree a unit and returns them in the units' order.

    With `split`, the few branches of a batch that outlive the others go on by themselves: such a unit has several
    trees, and each of its branches is finished in one of them.

    Args:
      model: a Decoder.
      units: at least one token of prompt each.
      policy: makes the policy from the model's decode and copy_rows functions.
      knobs: the search's numbers.
      automaton: of the model's vocabulary.
      num_slots: K.
      roots: children of the root.
      max_new_tokens: limit of a path.
      fields: TokenStats fields to keep.
      batch_size: slots on the device at once (default: what CACHE_BYTES holds).
      progress: called with (units done, units in all).
      usage: counters to add to.
      split: whether branches may leave their tree; for a policy that never forks.
      decided: asked between two segments about each question with a finished path; goes without `split`.
    """
    graphdef, params = nnx.split(model)
    search = policy(ModelDecode(graphdef), copy_rows)
    longest = max(len(unit.prompt_ids) for unit in units)
    columns = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
    limit = max(1, (batch_size or default_rows(model, longest + max_new_tokens)) // num_slots)
    batches = -(-len(units) // limit)
    size = min(_bucket(-(-len(units) // batches)), limit)  # even batches of one shape
    ways = batch_ways(mesh_of(model))
    size = -(-size // ways) * ways  # that the mesh splits evenly
    # Prompts of one length together; the order comes back at the end.
    order = sorted(range(len(units)), key=lambda i: len(units[i].prompt_ids))
    trees: list[list[Tree]] = [[] for _ in units]
    for first in range(0, len(units), size):
        batch = order[first : first + size]

        def report(count: int, before: int = first) -> None:
            if progress is not None:
                progress(before + count, len(units))

        run = _Batch(
            graphdef,
            params,
            search,
            knobs,
            automaton,
            num_slots,
            roots,
            columns,
            max_new_tokens,
            fields,
            report,
            Usage() if usage is None else usage,
            split,
            None if decided is None else functools.partial(_of_batch, decided, batch),
        )
        for index, found in zip(batch, run([units[i] for i in batch], size), strict=True):
            trees[index] = found
    if usage is not None:
        usage.live += sum(tree.tokens for found in trees for tree in found)
    return trees


def _of_batch(decided: Decided, batch: Sequence[int], unit: int, tree: Tree) -> bool:
    return decided(batch[unit], tree)


def _quarter(rows: int) -> int:
    """The power of two next to a `SHRINK`-th."""
    return 1 << max(0, round(math.log2(rows / SHRINK)))


def _bucket(count: int) -> int:
    """The next number of the form 2^k or 3 * 2^k: few shapes, at most a third of padding."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= count else power


@functools.partial(jax.jit, static_argnames=("graphdef", "lanes"))
def _prefill(graphdef: Any, params: Any, token_ids: jax.Array, mask: jax.Array, lanes: bool):
    return nnx.merge(graphdef, params).prefill(token_ids, mask, 0, lanes=lanes)


# Jitted whole: each of their small operations would be compiled by itself, for every shape. What only passes through
# (cache, automaton, knobs) stays outside, because a program's outputs are copies.
@functools.partial(jax.jit, static_argnames=("num_slots", "roots", "capacity", "fields", "mesh"))
def _init(*arrays: Any, mesh: Any, **settings: Any) -> CatState:
    return init_state(*arrays, **settings).placed(mesh)


def start_cache(cache: KVCache, num_slots: int, capacity: int) -> KVCache:
    """Rows for `num_slots` branches a prompt, of `capacity` empty columns each; the cache has the prompts alone."""
    return grow(branch(cache, num_slots), capacity)


_branch = jax.jit(start_cache, static_argnums=(1, 2))
_take_prompts = jax.jit(lambda logits, cache, row: (logits[row], take_prompts(cache, row)))
_grow = jax.jit(grow, static_argnums=1)
_grow_state = jax.jit(lambda state, n, mesh: grow_state(state, n).placed(mesh), static_argnums=(1, 2))


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Runs up to `size` units at once."""

    graphdef: Any
    params: Any
    policy: Policy
    knobs: Knobs
    automaton: Automaton
    num_slots: int
    roots: int
    prompt_columns: int  # of the longest prompt of all batches
    max_new_tokens: int
    fields: tuple[str, ...]
    report: Callable[[int], None]
    usage: Usage
    split: bool
    decided: Decided | None

    def __call__(self, units: list[Unit], size: int) -> list[list[Tree]]:
        lanes = prefers_lanes(size * self.num_slots)
        capacity = self.max_new_tokens if lanes else min(FIRST_SEGMENT, self.max_new_tokens)
        state = self._start(units, size, capacity, lanes)
        trees: list[list[Tree]] = [[] for _ in units]
        where = np.arange(size)  # which unit each question of the state belongs to
        where[len(units) :] = -1
        while True:
            iteration = int(state.iteration)
            if iteration == capacity:
                capacity = min(2 * capacity, self.max_new_tokens)
                state = self._grown(state, capacity)
            limit = jnp.asarray(min(iteration + CHECK_EVERY, capacity), jnp.int32)
            state = cat_decode_donated(self.params, dataclasses.replace(state, limit=limit), self.policy)
            if self.decided is not None:
                state = self._without_decided(state, where)
            done = np.asarray(state.done)
            self.usage.slots += (int(state.iteration) - iteration) * state.slots.live.size
            self.report(len(units) - len(np.unique(where[~done & (where >= 0)])))
            if done.all():
                harvest(state, where, trees, where >= 0)
                return trees
            live = np.asarray(state.slots.live)
            each = 1 if self.split else live.shape[1]
            rows = _quarter(live.size)
            if rows < max(LEAST_ROWS, each) or rows >= live.size:
                continue
            if self.split and live.shape[1] > 1 and int(np.sum(live)) <= rows:
                harvest(state, where, trees, where >= 0)
                keep = np.argsort(~live.reshape(-1), kind="stable")[:rows]
                where = np.where(live.reshape(-1)[keep], np.repeat(where, live.shape[1])[keep], -1)
                state = split_branches(state, jnp.asarray(keep))
            elif live.shape[1] == each and int(np.sum(~done)) <= rows // each:
                harvest(state, where, trees, done & (where >= 0))
                # Ended questions fill up the batch; they were harvested and stay ended.
                keep = np.argsort(done, kind="stable")[: rows // each]
                where = np.where(done[keep], -1, where[keep])
                state = take_questions(state, jnp.asarray(keep))

    def _without_decided(self, state: CatState, where: np.ndarray) -> CatState:
        """The state with the questions ended whose vote nothing can change."""
        assert self.decided is not None
        ask = ~np.asarray(state.done) & (np.asarray(state.finished) > 0) & (where >= 0)
        if not ask.any():
            return state
        trees: list[list[Tree]] = [[] for _ in where]
        harvest(state, np.arange(len(where)), trees, ask)
        decided = np.zeros(len(where), bool)
        for b in np.flatnonzero(ask):
            decided[b] = self.decided(int(where[b]), trees[b][0])
        return end_decided(state, decided) if decided.any() else state

    def _grown(self, state: CatState, capacity: int) -> CatState:
        cache = _grow(state.cache, capacity)
        light = dataclasses.replace(state, cache=None, automaton=None, knobs=None)  # type: ignore[arg-type]
        return dataclasses.replace(
            _grow_state(light, capacity, cache.mesh), cache=cache, automaton=self.automaton, knobs=self.knobs
        )

    def _start(self, units: list[Unit], size: int, capacity: int, lanes: bool) -> CatState:
        longest = max(len(unit.prompt_ids) for unit in units)
        columns = self.prompt_columns
        while columns % 2 == 0 and longest <= columns // 2:  # few widths: every shape is compiled
            columns //= 2
        prompts = list(dict.fromkeys(unit.prompt_ids for unit in units))
        index = {prompt: i for i, prompt in enumerate(prompts)}
        token_ids = np.zeros((_bucket(len(prompts)), columns), np.int32)
        mask = np.zeros(token_ids.shape, bool)
        mask[:, 0] = True  # rows that only pad the batch have one token, so that no softmax is empty
        for i, prompt in enumerate(prompts):
            token_ids[i, : len(prompt)] = prompt
            mask[i, : len(prompt)] = True
        logits, cache = self._read(token_ids, mask, lanes)
        row = np.array([index[unit.prompt_ids] for unit in units] + [0] * (size - len(units)))
        if len(logits) != size or (row != np.arange(size)).any():
            logits, cache = _take_prompts(logits, cache, row)
        cache = _branch(cache, self.num_slots, capacity)
        pad = [Unit((0,), (0, 0))] * (size - len(units))
        state = _init(
            None,
            logits,
            np.array([unit.key for unit in units + pad], np.uint32),
            np.array([len(unit.prompt_ids) for unit in units + pad], np.int32),
            None,
            None,
            num_slots=self.num_slots,
            roots=self.roots,
            capacity=capacity,
            fields=self.fields,
            real=np.arange(size) < len(units),
            first_rank=np.array([unit.first_rank for unit in units + pad], np.int32),
            mesh=cache.mesh,
        )
        return dataclasses.replace(state, cache=cache, automaton=self.automaton, knobs=self.knobs)

    def _read(self, token_ids: np.ndarray, mask: np.ndarray, lanes: bool) -> tuple[jax.Array, KVCache]:
        rows = max(1, PREFILL_PAIRS // token_ids.shape[1] ** 2)
        parts = [
            _prefill(self.graphdef, self.params, token_ids[i : i + rows], mask[i : i + rows], lanes)
            for i in range(0, len(token_ids), rows)
        ]
        if len(parts) == 1:
            return parts[0]
        logits, caches = zip(*parts)
        return jnp.concatenate(logits), concatenate(caches)
