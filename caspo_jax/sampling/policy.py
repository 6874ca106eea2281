"""What to prune and what to fork: pure functions that the loop is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from caspo_jax.confidence.path import path_value
from caspo_jax.confidence.registering import is_registered
from caspo_jax.confidence.step import needed_fields, step_confidence
from caspo_jax.confidence.token import TokenStats
from caspo_jax.errors import UserError
from caspo_jax.sampling.config import PRUNE_RULES, CatConfig
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sampling.sampler import Sampler


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Boundary:
    """What a policy sees at each iteration, after steps were closed and finished slots taken out.

    Attributes:
      live: [B, K] bool, branches that go on.
      boundary: [B, K] bool, those that closed a step now.
      step_confidence: [B, K] f32, of the newest closed step; NaN before the first.
      path_confidence: [B, K] f32; NaN before the first step.
      steps: [B, K] int32, steps closed.
      node: [B, K] int32, the node just closed where `boundary`.
    """

    live: jax.Array  # [B, K] bool
    boundary: jax.Array  # [B, K] bool
    step_confidence: jax.Array  # [B, K] f32
    path_confidence: jax.Array  # [B, K] f32
    steps: jax.Array  # [B, K] int32
    node: jax.Array  # [B, K] int32


PruneScore = Callable[
    [Knobs, Boundary], jax.Array
]  # -> [B, K] f32, pruned where strictly below knobs.threshold
ForkCount = Callable[[Knobs, Boundary], jax.Array]  # -> [B, K] int32, further children wanted at boundaries


def score_path(knobs: Knobs, view: Boundary) -> jax.Array:
    """The path confidence: the paper's cumulative rule."""
    return view.path_confidence


def score_last(knobs: Knobs, view: Boundary) -> jax.Array:
    """The confidence of the step just closed."""
    return view.step_confidence


def score_relative(knobs: Knobs, view: Boundary) -> jax.Array:
    """The path confidence divided by the best among the question's live branches that closed a step."""
    known = view.live & (view.steps > 0)
    best = jnp.max(jnp.where(known, view.path_confidence, -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(best == 0, 1.0, view.path_confidence / best)  # too small for floats: all alike


def score_never(knobs: Knobs, view: Boundary) -> jax.Array:
    """Never prune."""
    return jnp.full(view.live.shape, jnp.inf, jnp.float32)


def fork_expand(knobs: Knobs, view: Boundary) -> jax.Array:
    """Up to `expand` children a node, the original included."""
    return jnp.full(view.live.shape, knobs.expand - 1, jnp.int32)


def load_nothing(cache: Any, queued: Any, question: jax.Array, entry: jax.Array) -> Any:
    """The cache as it is, for models that keep nothing of a question's prompt."""
    return cache


def copy_nothing(cache: Any, source: jax.Array, destination: jax.Array, count: jax.Array) -> Any:
    """The cache as it is, for policies that never fork: a loop of no trips is not free on a GPU, its host is asked."""
    return cache


def fork_never(knobs: Knobs, view: Boundary) -> jax.Array:
    """Never fork."""
    return jnp.zeros(view.live.shape, jnp.int32)


STRATEGIES = ("cat", "self_consistency", "explore")
PRUNE_SCORES: dict[str, PruneScore] = {"path": score_path, "last": score_last, "relative": score_relative}


def register_prune_rule(name: str, score: PruneScore) -> None:
    """Make a pruning rule of one's own available as `CatConfig(prune=name)`.

    Args:
      name: a new one.
      score: (Knobs, Boundary) -> [B, K] f32; a branch at a step boundary is pruned if strictly below `threshold`.

    Raises:
      UserError: the name is taken by another function.
    """
    if is_registered("pruning rule", name, score, PRUNE_SCORES):
        return
    PRUNE_SCORES[name] = score
    PRUNE_RULES.append(name)


@dataclasses.dataclass(frozen=True)
class NamedStepConfidence:
    """A step confidence of caspo_jax.confidence by name, as the loop calls it."""

    name: str
    vocab_size: int | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """TokenStats fields it reads."""
        return needed_fields(self.name)

    def __call__(self, stats: dict[str, jax.Array], mask: jax.Array) -> jax.Array:
        """Confidence [...] of the steps with statistics [..., T] and mask [..., T]."""
        return step_confidence(
            self.name, TokenStats(**{f: stats.get(f) for f in self.fields}), mask, self.vocab_size
        )


@dataclasses.dataclass(frozen=True)
class NamedPathConfidence:
    """A path confidence of caspo_jax.confidence by name."""

    name: str

    def __call__(self, state: Any) -> jax.Array:
        """Confidence [...] of paths in PathState [...]; NaN without a step."""
        return path_value(self.name, state)


@dataclasses.dataclass(frozen=True)
class Policy:
    """All that `cat_decode` compiles: the model's step and the search's pure functions. Hashable.

    Attributes:
      decode: (params, cache, token [R] int32, position [R] int32, column scalar int32) -> (logits [R, V] f32, cache).
        Row b * K + k is slot k of question b. It is called for all rows, dead ones included. `column` counts the
        iterations.
      copy_rows: (cache, source [R] int32, destination [R] int32, count scalar int32) -> cache, row source[i] copied
        onto row destination[i] for i < count.
      sampler: how tokens are drawn.
      step_confidence: (stats dict of [R, T] f32, mask [R, T] bool) -> [R] f32.
      path_confidence: PathState [...] -> [...] f32.
      prune: the score; a branch at a boundary is pruned where it is below the threshold.
      fork: how many further children a node at a boundary may get.
      load_prompt: (cache, queued cache, question scalar int32, entry scalar int32) -> cache in which that question has the
        prompt of the queued cache's entry and its rows are empty; called where a queue refills slots (`refill`).
    """

    decode: Callable[..., tuple[jax.Array, Any]]
    copy_rows: Callable[..., Any]
    sampler: Sampler
    step_confidence: Callable[[dict[str, jax.Array], jax.Array], jax.Array]
    path_confidence: Callable[[Any], jax.Array] = NamedPathConfidence("geometric")
    prune: PruneScore = score_last
    fork: ForkCount = fork_expand
    load_prompt: Callable[..., Any] = load_nothing


def make_policy(
    decode: Callable,
    copy_rows: Callable,
    config: CatConfig,
    vocab_size: int | None = None,
    strategy: str = "cat",
    load_prompt: Callable = load_nothing,
) -> Policy:
    """The policy of a strategy: `cat`, `self_consistency` (never prune, never fork), `explore` (never prune).

    Raises:
      UserError: another strategy.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"strategy={strategy!r}: choose from {', '.join(STRATEGIES)}")
    forks = strategy != "self_consistency"
    return Policy(
        decode=decode,
        copy_rows=copy_rows if forks else copy_nothing,
        sampler=Sampler.of(config.sample),
        step_confidence=NamedStepConfidence(
            config.step_confidence, vocab_size if config.step_confidence == "normalised" else None
        ),
        path_confidence=NamedPathConfidence(config.path_confidence),
        prune=PRUNE_SCORES[config.prune] if strategy == "cat" else score_never,
        fork=fork_expand if forks else fork_never,
        load_prompt=load_prompt,
    )
