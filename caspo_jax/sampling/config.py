"""What a user may choose about sampling and the tree search, validated once on the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from caspo_jax.checks import at_least, check, is_number, one_of, own_numbers, within
from caspo_jax.confidence.path import BOUNDED_PATHS, PATH_CONFIDENCES
from caspo_jax.confidence.step import BOUNDED_STEPS, STEP_CONFIDENCES
from caspo_jax.errors import UserError
from caspo_jax.types import DEFAULT_DELIMITER

Vote = Literal["majority", "confidence", "sequence", "best_path"]

PRUNE_RULES = ["path", "last", "relative"]  # and those that `register_prune_rule` adds
LEAST_TEMPERATURE = 2.0**-126  # the smallest normal float32; below it logits are divided by 0
VOTES: tuple[Vote, ...] = ("majority", "confidence", "sequence", "best_path")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How tokens are drawn and where an output ends.

    The filters act in this order, each on what the one before left: temperature, top_k, top_p, min_p. Ties at a
    filter's border are kept.

    Attributes:
      max_new_tokens: the most tokens of an output.
      temperature: logits are divided by it; 0 is greedy.
      top_k: so many of the most probable tokens; 0 is off.
      top_p: the smallest set of most probable tokens whose mass reaches it; 1 is off.
      min_p: tokens at least so many times as probable as the most probable one; 0 is off.
      num_samples: outputs a question, of `generate`; a search has `CatConfig.num_branches` instead.
      stop: an output ends after the token that completes one of these; a special token is one by its name.
      step_delimiter: text that ends a step.
      ignore_eos: go on after an EOS token, to the other ends.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    num_samples: int = 1
    stop: tuple[str, ...] = ()
    step_delimiter: str = DEFAULT_DELIMITER
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        own_numbers(self)
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        texts = isinstance(self.stop, Iterable) and all(isinstance(text, str) for text in self.stop)
        check(texts, f"stop={self.stop!r}: give a string or several")
        object.__setattr__(self, "stop", tuple(self.stop))
        at_least(self, 1, "max_new_tokens", "num_samples")
        at_least(self, 0, "top_k")
        within(self, "[0, inf)", "temperature", hint="0 is greedy")
        check(
            self.temperature == 0 or self.temperature >= LEAST_TEMPERATURE,
            f"temperature={self.temperature}: float32 has no inverse of it; give 0 for greedy outputs",
        )
        within(self, "(0, 1]", "top_p", hint="1 turns it off")
        within(self, "[0, 1]", "min_p", hint="0 turns it off")
        check(
            isinstance(self.step_delimiter, str) and bool(self.step_delimiter),
            f"step_delimiter={self.step_delimiter!r}: give a string of at least one character",
        )
        check(all(self.stop), "stop holds an empty string: remove it")
        if self.temperature == 0:
            for name, value, off in (
                ("top_k", self.top_k, 0),
                ("top_p", self.top_p, 1),
                ("min_p", self.min_p, 0),
            ):
                check(value == off, f"{name}={value} contradicts temperature=0 (greedy): drop one of them")
            check(
                self.num_samples == 1,
                f"num_samples={self.num_samples} contradicts temperature=0: greedy outputs are all equal",
            )

    def greedy(self) -> SampleConfig:
        """One output of the most probable tokens; it ends as the others do."""
        return dataclasses.replace(self, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, num_samples=1)


@dataclasses.dataclass(frozen=True)
class CatConfig:
    """The Confidence-aware Thought search of one question (docs/design.md, section 3, CaT).

    Attributes:
      num_branches: K, slots a question: branches that are decoded at once.
      threshold: branches whose pruning score is strictly below are pruned; 0 never prunes a confidence in (0, 1].
      expand: most children a node, the original included; 1 never forks.
      num_answers: stop after so many finished paths; None is `num_branches`.
      min_live: pruning never leaves fewer live branches.
      token_budget: stop once so many tokens are decoded over all slots; None is no limit.
      step_confidence: name of the confidence of a step (`caspo_jax.confidence.step_confidence` lists them).
      path_confidence: name of the confidence of a path, of its steps': geometric, product, min, last.
      sample: how tokens are drawn; its `num_samples` stays 1.
      prune: the pruning score: `path`, the path's confidence; `last`, that of the step just closed; `relative`, the path's
        divided by the best live path's; or a name that `register_prune_rule` was given.
      root_branches: children of the root; None is `num_branches`, and fewer leave slots to fork into.
      vote: how the paths vote for the answer: `majority`, one vote each; `confidence`, its path confidence to the power
        `gamma`; `sequence`, its probability, of distinct paths; `best_path`, the surest path alone.
      gamma: exponent of the `confidence` vote.
      stop_decided: end a question once nothing can change its vote (`caspo_jax.sampling.decided`).
    """

    num_branches: int = 8
    threshold: float = 0.0
    expand: int = 2
    num_answers: int | None = None
    min_live: int = 1
    token_budget: int | None = None
    step_confidence: str = "mean_logprob"
    path_confidence: str = "geometric"
    sample: SampleConfig = SampleConfig()
    prune: str = "last"
    root_branches: int | None = None
    vote: Vote = "sequence"
    gamma: float = 1.0
    stop_decided: bool = False

    def __post_init__(self) -> None:
        own_numbers(self)
        at_least(self, 1, "num_branches", "expand")
        at_least(self, 0, "min_live")
        at_least(self, 1, "num_answers", "root_branches", "token_budget", optional=True)
        check(
            is_number(self.threshold) and not math.isnan(self.threshold),
            f"threshold={self.threshold!r} is not a number",
        )
        within(self, "[0, inf)", "gamma")
        one_of(self, "step_confidence", STEP_CONFIDENCES)
        one_of(self, "path_confidence", PATH_CONFIDENCES)
        one_of(self, "prune", PRUNE_RULES)
        one_of(self, "vote", VOTES)
        if self.root_branches is not None:
            check(
                self.root_branches <= self.num_branches,
                f"root_branches={self.root_branches} exceeds num_branches={self.num_branches}: lower it",
            )
        if self.token_budget is not None:
            check(
                self.token_budget >= self.roots,
                f"token_budget={self.token_budget} cannot pay one token for each of {self.roots} branches: raise it",
            )
        check(
            self.sample.num_samples == 1,
            f"sample.num_samples={self.sample.num_samples}: a tree search takes num_branches instead; leave it at 1",
        )
        if self.stop_decided and self.vote == "best_path":
            raise UserError(
                "stop_decided with vote='best_path': a surer path may always come; take another vote"
            )
        if self.stop_decided and self.vote == "confidence":
            for name, options in (("step_confidence", BOUNDED_STEPS), ("path_confidence", BOUNDED_PATHS)):
                value = getattr(self, name)
                check(
                    value in options,
                    f"stop_decided with vote='confidence': {name}={value!r} has no upper bound that is known; "
                    f"take one of {', '.join(options)}",
                )
        if self.sample.temperature == 0 and (self.expand > 1 or self.roots > 1):
            raise UserError(
                "temperature=0 cannot fork or branch (all children would be equal): set expand=1 and "
                "root_branches=1, or raise the temperature"
            )

    @property
    def roots(self) -> int:
        """Children of the root."""
        return self.num_branches if self.root_branches is None else self.root_branches

    @property
    def answers(self) -> int:
        """Finished paths that end the question."""
        return self.num_branches if self.num_answers is None else self.num_answers
