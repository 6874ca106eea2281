"""What pruning would have done, read off paths that were sampled without it.

Exact where forks are off: then pruning only removes branches, every branch draws its tokens by its own key, and all
branches of a question decode in step, so the K unpruned paths hold everything that any threshold could show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.sampling import CatConfig
from caspo_jax.types import CatTree


@dataclasses.dataclass(frozen=True)
class RecordedPath:
    """One unpruned path and its boundaries: the places, none of them final, where a rule could prune it."""

    boundaries: tuple[int, ...]  # tokens emitted up to each boundary
    # What the rule holds against the threshold there; NaN before the first step.
    confidences: tuple[float, ...]
    nodes: tuple[int, ...]  # the node that each boundary closed: ties are pruned from the highest
    tokens: int
    correct: bool

    @property
    def lowest(self) -> float:
        """The smallest pruning confidence, +inf without one: pruned somewhere exactly if a threshold is larger."""
        known = [c for c in self.confidences if not np.isnan(c)]
        return min(known, default=float("inf"))


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a search at one threshold would have kept."""

    finished: tuple[int, ...]  # indices of the paths that finish
    pruned: tuple[tuple[int, int], ...]  # (path, index of the boundary that it falls at)
    tokens: int  # decoded over all branches
    iterations: int  # of the longest branch


def unjudged_paths(tree: CatTree, rule: str) -> list[RecordedPath]:
    """The paths of a tree that was grown without pruning and without forks, in the order of its finished nodes.

    None is right until `judged_paths` says so, and they hold no tokens.

    Args:
      tree: of `cat_search` with threshold 0 and expand 1, or with strategy `self_consistency`.
      rule: `path` or `last`.

    Raises:
      UserError: a tree with forks or pruned branches, another rule.
    """
    if rule not in ("path", "last"):
        raise UserError(f"rule {rule!r} cannot be replayed: choose from path, last")
    children = np.bincount([n.parent for n in tree.nodes if n.parent >= 0], minlength=len(tree.nodes))
    if (children > 1).any() or any(n.status in ("pruned", "expired", "live") for n in tree.nodes):
        raise UserError(
            f"the tree of {tree.question_id!r} was pruned, forked or cut: sample it with threshold 0 and expand 1"
        )
    return [_path(tree, leaf, rule) for leaf, node in enumerate(tree.nodes) if node.status == "finished"]


def judged_paths(
    question_id: str, paths: Sequence[RecordedPath], correct: Sequence[bool]
) -> list[RecordedPath]:
    """The paths of a question's tree with their verdicts. Raises UserError if these are more or fewer."""
    if len(paths) != len(correct):
        raise UserError(f"the tree of {question_id!r} has {len(paths)} paths, {len(correct)} verdicts given")
    return [dataclasses.replace(path, correct=bool(right)) for path, right in zip(paths, correct)]


def _path(tree: CatTree, leaf: int, rule: str) -> RecordedPath:
    chain = [leaf]
    while (parent := tree.nodes[chain[0]].parent) >= 0:
        chain.insert(0, parent)
    boundaries, confidences = [], []
    emitted, newest = 0, float("nan")
    for index in chain:
        node = tree.nodes[index]
        emitted += len(node.token_ids)
        value = node.confidence if rule == "last" else node.path_confidence
        # A delimiter with no step of its own is a boundary at which the newest step is looked at again.
        newest = newest if value is None else value
        boundaries.append(emitted)
        confidences.append(newest)
    return RecordedPath(tuple(boundaries[:-1]), tuple(confidences[:-1]), tuple(chain[:-1]), emitted, False)


def replay(paths: Sequence[RecordedPath], threshold: float, min_live: int = 1) -> Replay:
    """The search with `expand=1` at this threshold, over paths that were recorded without pruning.

    At each token: finished paths leave; then those at a boundary with a confidence strictly below the threshold are
    pruned, the worst first (ties: the higher node), as long as `min_live` branches remain. Compared in float32, as the
    loop does.
    """
    limit = np.float32(threshold)
    places = [dict(zip(p.boundaries, range(len(p.boundaries)))) for p in paths]
    times = sorted({t for p in paths for t in (*p.boundaries, p.tokens)})
    alive = set(range(len(paths)))
    finished: list[int] = []
    pruned: list[tuple[int, int]] = []
    spent = iterations = 0
    for time in times:
        ends = [i for i in alive if paths[i].tokens == time]
        alive -= set(ends)
        finished += ends
        condemned = []
        for i in alive:
            at = places[i].get(time)
            if at is not None and np.float32(paths[i].confidences[at]) < limit:
                condemned.append((paths[i].confidences[at], -paths[i].nodes[at], i, at))
        gone = [(i, at) for _, _, i, at in sorted(condemned)[: max(0, len(alive) - min_live)]]
        alive -= {i for i, _ in gone}
        pruned += gone
        spent += time * (len(ends) + len(gone))
        if ends or gone:
            iterations = time
    return Replay(tuple(sorted(finished)), tuple(pruned), spent, iterations)


def unpruned(config: CatConfig) -> CatConfig:
    """The search whose trees can be replayed: the same K branches, none pruned, none forked, none cut short."""
    return dataclasses.replace(
        config,
        num_branches=config.roots,
        root_branches=None,
        threshold=0.0,
        expand=1,
        num_answers=None,
        token_budget=None,
        stop_decided=False,
    )
