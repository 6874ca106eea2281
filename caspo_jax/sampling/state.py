"""The arrays of the tree search: slots, nodes, history."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from caspo_jax.confidence.path import PathState, path_init
from caspo_jax.errors import UserError
from caspo_jax.models.cache_rows import ring_source
from caspo_jax.sampling.automaton import Automaton
from caspo_jax.sampling.cursor import Cursor, cursor_init
from caspo_jax.sampling.keys import fold_in
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sharding import constrain, whole

if TYPE_CHECKING:
    from caspo_jax.sampling.refill import Queue, Refill

LOGITS_AXES = ("rows", "slots", None)  # of `CatState.logits`, see caspo_jax.sharding
NO_PARENT = -1  # parent of a child of the root
NO_NODE = -1  # node of a slot that was never used

# Status of a node.
UNUSED, LIVE, CLOSED, PRUNED, FINISHED, EXPIRED = range(6)
STATUSES = ("unused", "live", "closed", "pruned", "finished", "expired")
# Why it ended.
NONE, DELIMITER, EOS, STOP, LENGTH, THRESHOLD, BUDGET, ANSWERS, DECIDED = range(9)
REASONS = (None, "delimiter", "eos", "stop", "length", "threshold", "budget", "answers", "decided")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The K places of each question's branches. A live branch has as many tokens as its question is old."""

    live: jax.Array  # [B, K] bool
    node: jax.Array  # [B, K] int32, the branch's open node
    key: jax.Array  # [B, K, 2] uint32, raw data of the open node's threefry key
    cursor: Cursor  # [B, K]
    path: PathState  # [B, K], steps closed so far


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nodes:
    """The trees. Tokens of node i: those of its slot at the question's ages [start, end)."""

    parent: jax.Array  # [B, N] int32, NO_PARENT: child of the root
    rank: jax.Array  # [B, N] int32, which child of its parent
    slot: jax.Array  # [B, N] int32
    start: jax.Array  # [B, N] int32
    end: jax.Array  # [B, N] int32, set when the node ends
    status: jax.Array  # [B, N] int32
    reason: jax.Array  # [B, N] int32
    confidence: jax.Array  # [B, N] f32, NaN where the node closed no step
    path_confidence: jax.Array  # [B, N] f32, of the steps up to here; NaN without any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """What each slot emitted at each iteration: time first, so that an iteration writes one contiguous row.

    Iteration i is in row i % T, and a question's age 0 in row born % T.
    """

    token: jax.Array  # [T, B, K] int32
    byte_start: jax.Array  # [T, B, K] int32, byte of the path at which the token starts
    stats: dict[str, jax.Array]  # TokenStats field -> [T, B, K] f32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CatState:
    """Everything that the loop carries."""

    iteration: jax.Array  # scalar int32, iterations run
    limit: jax.Array  # scalar int32, cat_decode returns at this iteration at the latest
    prompt_length: jax.Array  # [B] int32, real prompt tokens: position of the first new token
    cache: Any  # the model's own pytree, rows b * K + k
    logits: jax.Array  # [B, K, V] f32, of each slot's next token
    slots: Slots
    nodes: Nodes
    history: History
    num_nodes: jax.Array  # [B] int32
    finished: jax.Array  # [B] int32, paths finished
    tokens: jax.Array  # [B] int32, decoded over all slots
    done: jax.Array  # [B] bool
    knobs: Knobs
    automaton: Automaton
    # [B] int32, iteration at which each question started; None: all at 0, and no buffer wraps.
    born: jax.Array | None = None
    queue: Queue | None = None  # questions that take the places of those that end
    refill: Refill | None = None  # how far the queue is used, and the trees of questions that ended

    @property
    def num_slots(self) -> int:
        """K."""
        return self.slots.live.shape[1]

    @property
    def capacity(self) -> int:
        """T, tokens that a branch may have."""
        return self.history.token.shape[0]

    @property
    def age(self) -> jax.Array:
        """Tokens of a question's live branches: [B, 1], or a scalar where all are of one age; int32."""
        return self.iteration if self.born is None else (self.iteration - self.born)[:, None]

    def placed(self, mesh: Mesh | None) -> CatState:
        """The same state, under jit, on a mesh: logits by row over all axes, the tree whole on every device.

        A row's draw and statistics need no other row, so each device reads its share of the logits once. The tree is
        small, and every device follows all of it: its gathers and scatters then stay local, and the host can read it
        without asking other processes.
        """
        if mesh is None:
            return self
        light = dataclasses.replace(self, cache=None, logits=None, automaton=None, knobs=None, queue=None)  # type: ignore[arg-type]
        return dataclasses.replace(
            whole(mesh, light),
            queue=self.queue,
            cache=self.cache,
            logits=constrain(mesh, self.logits, LOGITS_AXES),
            automaton=self.automaton,
            knobs=self.knobs,
        )


def node_capacity(num_slots: int, tokens: int) -> int:
    """Nodes that K slots can make in so many iterations."""
    return num_slots * (tokens + 1)


def empty_nodes(shape: tuple[int, int]) -> Nodes:
    """Tables [B, N] of nodes that nothing uses yet."""

    def full(value, dtype=jnp.int32) -> jax.Array:
        return jnp.full(shape, value, dtype)

    return Nodes(
        parent=full(NO_PARENT),
        rank=full(0),
        slot=full(0),
        start=full(0),
        end=full(0),
        status=full(UNUSED),
        reason=full(NONE),
        confidence=full(jnp.nan, jnp.float32),
        path_confidence=full(jnp.nan, jnp.float32),
    )


@functools.partial(jax.jit, static_argnames=("num_slots", "roots", "capacity", "fields"))
def init_state(
    cache: Any,
    logits: jax.Array,
    keys: jax.Array,
    prompt_length: jax.Array,
    automaton: Automaton,
    knobs: Knobs,
    *,
    num_slots: int,
    roots: int | None = None,
    capacity: int,
    fields: tuple[str, ...] = ("logprob", "entropy"),
    real: jax.Array | np.ndarray | None = None,
    first_rank: jax.Array | int = 0,
) -> CatState:
    """The state before the first token.

    Args:
      cache: the model's cache with B * K rows (row b * K + k is slot k of question b).
      logits: [B, V] f32, next-token logits after each prompt.
      keys: [B, 2] uint32, raw threefry key data of each question.
      prompt_length: [B] int32, real tokens of each prompt.
      automaton: from `build_automaton`.
      knobs: from `Knobs.of`; max_new_tokens may exceed `capacity` (then `grow_state` before going on).
      num_slots: K.
      roots: children of the root, at most K (default K).
      capacity: T, history columns.
      fields: TokenStats fields that the histories keep; the step confidence's `needed_fields` among them.
      real: [B] bool, false for rows that only pad the batch.
      first_rank: [B] or scalar int32, child rank of the first root child.

    Raises:
      UserError: the automaton and the logits are of different vocabularies, or the keys are no raw data of B keys.
    """
    # The host's batches put theirs in afterwards.
    if automaton is not None and automaton.length.shape != logits.shape[1:]:
        raise UserError(
            f"automaton of {automaton.length.shape[0]} tokens does not match logits of shape {logits.shape}: "
            'give build_automaton the bytes of all V tokens, b"" for those that no text has'
        )
    batch = logits.shape[0]
    if jnp.shape(keys) != (batch, 2) or jnp.result_type(keys) != jnp.uint32:
        raise UserError(
            f"keys of shape {jnp.shape(keys)} and dtype {jnp.result_type(keys)}: give raw threefry data "
            f"({batch}, 2) uint32, as question_keys or jax.random.key_data(jax.random.split(key, {batch})) gives it"
        )
    roots = num_slots if roots is None else roots
    shape = (batch, num_slots)
    real = jnp.ones(batch, bool) if real is None else jnp.asarray(real)
    slot = jnp.broadcast_to(jnp.arange(num_slots, dtype=jnp.int32), shape)
    live = (slot < roots) & real[:, None]
    rank = slot + jnp.broadcast_to(jnp.asarray(first_rank, jnp.int32), (batch,))[:, None]
    time = (capacity, *shape)
    return CatState(
        iteration=jnp.asarray(0, jnp.int32),
        limit=jnp.asarray(capacity, jnp.int32),
        prompt_length=jnp.asarray(prompt_length, jnp.int32),
        cache=cache,
        logits=jnp.repeat(logits[:, None].astype(jnp.float32), num_slots, axis=1),
        slots=root_slots(jnp.asarray(keys), live, rank),
        nodes=root_nodes(live, rank, node_capacity(num_slots, capacity)),
        history=History(
            token=jnp.zeros(time, jnp.int32),
            byte_start=jnp.zeros(time, jnp.int32),
            stats={field: jnp.zeros(time, jnp.float32) for field in fields},
        ),
        num_nodes=jnp.full(batch, roots, jnp.int32),
        finished=jnp.zeros(batch, jnp.int32),
        tokens=jnp.zeros(batch, jnp.int32),
        done=~real,
        knobs=knobs,
        automaton=automaton,
    )


def end_decided(state: CatState, decided: np.ndarray) -> CatState:
    """Ends the questions `decided` [B] from the host: their live branches expire as they are."""
    nodes, live, done = _end(state.nodes, state.slots.live, state.done, state.age, decided)
    return dataclasses.replace(
        state, nodes=nodes, slots=dataclasses.replace(state.slots, live=live), done=done
    )


@jax.jit
def _end(
    nodes: Nodes, live: jax.Array, done: jax.Array, age: jax.Array, decided: jax.Array
) -> tuple[Nodes, jax.Array, jax.Array]:
    ends = decided[:, None] & (nodes.status == LIVE)
    nodes = dataclasses.replace(
        nodes,
        end=jnp.where(ends, age, nodes.end),
        status=jnp.where(ends, EXPIRED, nodes.status),
        reason=jnp.where(ends, DECIDED, nodes.reason),
    )
    return nodes, live & ~decided[:, None], done | decided


def root_slots(keys: jax.Array, live: jax.Array, rank: jax.Array) -> Slots:
    """The slots of questions that begin: children `rank` [B, K] of the roots with keys [B, 2], where `live` [B, K]."""
    return Slots(
        live=live,
        node=jnp.where(live, jnp.arange(live.shape[1], dtype=jnp.int32), NO_NODE),
        key=fold_in(jnp.broadcast_to(keys[:, None], (*live.shape, 2)), rank),
        cursor=cursor_init(live.shape),
        path=path_init(live.shape),
    )


def root_nodes(live: jax.Array, rank: jax.Array, count: int) -> Nodes:
    """The `count` nodes a question of trees that hold the roots' children alone: node k in slot k, where `live` [B, K]."""
    nodes, slots = empty_nodes((len(live), count)), live.shape[1]
    return dataclasses.replace(
        nodes,
        slot=nodes.slot.at[:, :slots].set(jnp.arange(slots, dtype=jnp.int32)),
        rank=nodes.rank.at[:, :slots].set(rank),
        status=nodes.status.at[:, :slots].set(jnp.where(live, LIVE, UNUSED)),
    )


@functools.partial(jax.jit, static_argnames="capacity")
def grow_state(state: CatState, capacity: int) -> CatState:
    """The same state with room for `capacity` tokens a branch (the cache is grown by its owner)."""
    extra = capacity - state.capacity
    if extra <= 0:
        return state
    if state.born is None:
        widen = lambda x: jnp.pad(x, [(0, extra), (0, 0), (0, 0)])  # noqa: E731
    else:
        source, _ = ring_source(state.iteration, state.capacity, capacity)
        widen = lambda x: jnp.take(x, source, axis=0)  # noqa: E731
    history = jax.tree.map(widen, state.history)
    more = empty_nodes((len(state.done), extra * state.num_slots))  # a slot makes at most one an iteration
    nodes = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.nodes, more)
    limit = jnp.asarray(capacity, jnp.int32) if state.born is None else state.limit
    return dataclasses.replace(state, history=history, nodes=nodes, limit=limit)
