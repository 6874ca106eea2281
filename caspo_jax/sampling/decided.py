"""Whether the vote of a question can still change: what its live branches could add to it, at the most."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax.confidence import BOUNDED_PATHS, BOUNDED_STEPS
from caspo_jax.sampling import state as codes
from caspo_jax.sampling.config import CatConfig
from caspo_jax.sampling.traces import path_arrays
from caspo_jax.sampling.tree import Tree
from caspo_jax.sampling.votes import answer_of, power_base, vote
from caspo_jax.types import Equal, Extract, Trace


def is_decided(
    tree: Tree, paths: Sequence[Trace], config: CatConfig, extract: Extract, equivalent: Equal
) -> bool:
    """Whether no ending of the search can change the answer, but for its spelling (docs/design.md, section 3, CaT, rule 5).

    With w the leader's weight, w' the runner-up's and a bound on all that can still be added (`most_to_come`):
    w - w' > a; for `best_path`, where weights do not add up, w > a.

    Args:
      tree: the search so far.
      paths: its finished paths, `tree.finished()` in order, with log-probs and path confidences.
      config: the search; `vote` and `gamma` say how paths are weighed.
      extract: text -> answer or None.
      equivalent: (answer, answer) -> bool.
    """
    read = [dataclasses.replace(path, answer=answer_of(path, extract)) for path in paths]
    answered = [path for path in read if path.answer is not None]
    _, weights = vote(answered, config.vote, extract=extract, equivalent=equivalent, gamma=config.gamma)
    if not weights:
        return False
    leader, *others = sorted(weights.values(), reverse=True)
    if config.vote == "best_path":
        return leader > most_to_come(tree, answered, config)
    return leader - (others[0] if others else 0.0) > most_to_come(tree, answered, config)


def most_to_come(tree: Tree, answered: Sequence[Trace], config: CatConfig) -> float:
    """The largest weight that paths not finished yet can add to one answer, in the units of `vote`.

    `majority` and `confidence`: one a path that may still finish. Those are the live branches; where branches fork,
    K - 1 more than the answers that are missing, because all slots may finish at once. `sequence`: continuations of a
    prefix are disjoint events, so together they weigh no more than the prefix itself; live prefixes have one length, so
    distinct ones are disjoint too. Infinite for a confidence without an upper bound, and where it is beyond every
    leader. `answered` are the finished paths with an answer, which alone have a weight.
    """
    live = np.flatnonzero(tree.status == codes.LIVE)
    if not live.size:
        return 0.0
    if config.vote == "sequence":
        # No leader weighs more than 1; exp of a large surplus is no float.
        surplus = _log_mass(_prefixes(tree, live)) - _log_mass(_finished(answered))
        return math.exp(surplus) if surplus < 0 else math.inf
    bounded = config.step_confidence in BOUNDED_STEPS and config.path_confidence in BOUNDED_PATHS
    if config.vote != "majority" and not bounded:
        return math.inf
    if config.vote == "confidence" and power_base([p.path_confidence for p in answered], config.gamma) != 1:
        return math.inf  # all weights so far are next to nothing beside the 1 of a sure path
    if config.vote == "best_path":
        return 1.0
    if config.expand == 1:
        return float(live.size)
    return float(max(config.answers - len(tree.finished()), 1) - 1 + config.num_branches)


def _log_mass(logprobs: Mapping[Any, float]) -> float:
    """Log of the summed probability of distinct token sequences, which may lie far below the smallest float."""
    return float(np.logaddexp.reduce(list(logprobs.values())))


def _finished(paths: Sequence[Trace]) -> dict[tuple[int, ...], float]:
    return {path.token_ids: math.fsum(path.logprob) for path in paths if path.logprob is not None}


def _prefixes(tree: Tree, live: np.ndarray) -> dict[bytes, float]:
    # Told apart as bytes, and summed as arrays: this is done at every look, and lists take three times as long.
    arrays = [path_arrays(tree, tree.path(int(node))) for node in live]
    return {a["token"].tobytes(): float(a["logprob"].sum(dtype=np.float64)) for a in arrays}
