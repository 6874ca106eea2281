"""A search's settings as arrays: changing their values compiles nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.sampling.config import CatConfig
from caspo_jax.sampling.sampler import SampleKnobs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Knobs:
    """The search's numbers; changing them compiles nothing.

    Attributes:
      threshold: scalar or [B, 1] f32, prune strictly below.
      expand: scalar int32, most children a node.
      num_answers: scalar int32, finished paths that end a question.
      min_live: scalar int32, pruning never leaves fewer live branches.
      token_budget: scalar int32, of all slots of a question.
      max_new_tokens: scalar or [B, 1] int32, of a path.
      sample: the sampler's numbers.
    """

    threshold: Any  # scalar or [B, 1] f32
    expand: Any  # scalar int32
    num_answers: Any  # scalar int32
    min_live: Any  # scalar int32
    token_budget: Any  # scalar int32
    max_new_tokens: Any  # scalar or [B, 1] int32
    sample: SampleKnobs

    def of_questions(self, keep: jax.Array) -> Knobs:
        """Those of the questions `keep` [n] alone."""
        return jax.tree.map(lambda x: x[keep] if jnp.ndim(x) else x, self)

    @classmethod
    def of(cls, config: CatConfig) -> Knobs:
        """The numbers of a config."""
        no_limit = np.iinfo(np.int32).max

        def integer(value: int | None) -> jax.Array:
            return jnp.asarray(no_limit if value is None else min(value, no_limit), jnp.int32)

        return cls(
            threshold=jnp.asarray(config.threshold, jnp.float32),
            expand=integer(config.expand),
            num_answers=integer(config.answers),
            min_live=integer(config.min_live),
            token_budget=integer(config.token_budget),
            max_new_tokens=integer(config.sample.max_new_tokens),
            sample=SampleKnobs.of(config.sample),
        )
