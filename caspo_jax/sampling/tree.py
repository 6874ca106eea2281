"""One question's tree on the host, and how it comes there from the device."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.refill import Ended
from caspo_jax.sampling.state import CatState, History, Nodes


@dataclasses.dataclass(frozen=True)
class Tree:
    """One question's arrays, on the host."""

    parent: np.ndarray  # [N] int32
    rank: np.ndarray  # [N] int32
    slot: np.ndarray  # [N] int32
    start: np.ndarray  # [N] int32
    end: np.ndarray  # [N] int32
    status: np.ndarray  # [N] int32
    reason: np.ndarray  # [N] int32
    confidence: np.ndarray  # [N] f32
    path_confidence: np.ndarray  # [N] f32
    token: np.ndarray  # [T, K] int32
    stats: dict[str, np.ndarray]  # TokenStats field -> [T, K] f32
    tokens: int  # decoded over all slots

    def path(self, node: int) -> list[int]:
        """Nodes from a child of the root down to `node`."""
        chain = []
        while node != codes.NO_PARENT:
            chain.append(node)
            node = int(self.parent[node])
        return chain[::-1]

    def used(self, field: str) -> list[np.ndarray]:
        """A statistic of the tokens of each node."""
        return [self.stats[field][a:b, k] for k, a, b in zip(self.slot, self.start, self.end)]

    def finished(self) -> list[int]:
        """Last nodes of the finished paths, in node order."""
        return [int(i) for i in np.flatnonzero(self.status == codes.FINISHED)]


def harvest(state: CatState, where: np.ndarray, trees: list[list[Tree]], which: np.ndarray) -> None:
    """Copies the trees of the questions `which` [B] to the host, question b's to `trees[where[b]]`."""
    nodes, history, count, tokens, born = jax.device_get(
        (state.nodes, state.history, state.num_nodes, state.tokens, state.born)
    )
    for b in np.flatnonzero(which):
        start = 0 if born is None else int(born[b])
        row = jax.tree.map(lambda x, b=b: x[b], nodes)
        window = jax.tree.map(functools.partial(_window, int(b), start), history)
        age = int(state.iteration) - start
        trees[where[b]].append(_tree(row, window, int(count[b]), int(tokens[b]), age))


def _window(question: int, start: int, x: np.ndarray) -> np.ndarray:
    """One question's columns of [T, B, K], from its birth on."""
    mine = x[:, question]
    return np.roll(mine, -start, axis=0) if start else mine


def harvest_ended(ended: Ended, count: int, trees: list[list[Tree]]) -> None:
    """Copies the first `count` trees that ended to the host, each to `trees[its unit]`."""
    if not count:
        return
    # The room is for four batches of the longest outputs, hundreds of megabytes, and mostly empty at any one time.
    ended = jax.device_get(_first(ended, min(1 << (count - 1).bit_length(), len(ended.unit))))
    for i in range(count):
        nodes, history = (jax.tree.map(lambda x, i=i: x[i], part) for part in (ended.nodes, ended.history))
        # A question that has ended has no open node whose end the age would tell.
        tree = _tree(nodes, history, int(ended.num_nodes[i]), int(ended.tokens[i]), 0)
        trees[int(ended.unit[i])].append(tree)


@functools.partial(jax.jit, static_argnums=1)
def _first(ended: Ended, count: int) -> Ended:
    """The first `count` entries: a power of two, or all, so that few programs are compiled."""
    return jax.tree.map(lambda x: x[:count], ended)


def _tree(nodes: Nodes, history: History, count: int, tokens: int, age: int) -> Tree:
    """A question's nodes [N] and history [T, K] from its birth on, copied: a view would keep the whole batch alive."""
    arrays = {f.name: getattr(nodes, f.name)[:count].copy() for f in dataclasses.fields(nodes)}
    # The open nodes of a question that has not ended reach up to now.
    arrays["end"] = np.where(arrays["status"] == codes.LIVE, age, arrays["end"])
    columns = int(arrays["end"].max())
    return Tree(
        **arrays,
        token=np.array(history.token[:columns]),
        stats={name: np.array(array[:columns]) for name, array in history.stats.items()},
        tokens=tokens,
    )


def tree_of(state: CatState, question: int = 0) -> Tree:
    """One question's tree from a state that `cat_decode` gave back."""
    if not 0 <= question < state.done.shape[0]:
        raise UserError(f"question {question} lies outside the batch of {state.done.shape[0]}")
    trees: list[list[Tree]] = [[]]
    where = np.zeros(state.done.shape[0], np.int64)
    harvest(state, where, trees, np.arange(len(where)) == question)
    return trees[0][0]
