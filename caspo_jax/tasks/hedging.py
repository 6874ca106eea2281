"""Verbal confidence in the solutions of an embedded task: hedges that are right, random or inverted by construction.

A hedged step is a step with a phrase behind it: `c: k - a, so c = 41, maybe`. The phrases are graded: each has the
decisiveness that the hedge lexicon reads in it, so that what a trace expresses is known without a judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.types import CLOSE_THOUGHT, OPEN_THOUGHT

How = Literal["right", "random", "inverted"]
HOWS: tuple[How, ...] = ("right", "random", "inverted")

# Decisiveness in the lexicon, and what is put behind the step; "" is the plain statement.
HEDGES: tuple[tuple[float, str], ...] = (
    (0.1, ", no idea"),
    (0.22, ", not sure"),
    (0.42, ", maybe"),
    (0.6, ", I think"),
    (0.73, ", very likely"),
    (0.9, ""),
    (1.0, ", certainly"),
)
# What a hedge stands in front of: the full stop, and where the step ends a thought the tag.
_CLOSE = rf"(?:\s*{CLOSE_THOUGHT})?"
# Sought from the left: at every space of a long run anew, the time would be quadratic.
_END = re.compile(rf"(?P<tail>(?:\.|(?<!\s)){_CLOSE})\s*\Z")
_PHRASES = "|".join(re.escape(phrase) for _, phrase in HEDGES if phrase)
_HEDGE = re.compile(rf"(?:{_PHRASES})(?P<tail>\.?{_CLOSE})\s*\Z")
_TAGS = (OPEN_THOUGHT, CLOSE_THOUGHT)  # alone they say nothing that could be hedged


def plain(step: str) -> str:
    """The step without its hedge."""
    return _HEDGE.sub(lambda found: found["tail"], step)


def hedge(step: str, level: int) -> str:
    """The step with the hedge HEDGES[level] in place of its own, inside its thought and in front of its full stop."""
    bare = plain(step)
    if bare.strip() in _TAGS:
        return bare
    return _END.sub(lambda found: HEDGES[level][1] + found["tail"], bare, count=1)


def levels(confidence: Sequence[float], how: How, seed: int = 0) -> list[int]:
    """A hedge for each of n steps.

    `right`: the hedge whose decisiveness is nearest to the confidence. `random` and `inverted` use the same hedges
    equally often: shuffled, or given out in the reverse order of confidence. So the three differ in nothing but which
    step gets which hedge.

    Args:
      confidence: [n] in [0, 1], the true confidence of the steps.
      how: right, random or inverted.
      seed: of the shuffle, and of the order of equal confidences.

    Raises:
      UserError: an unknown `how`, a confidence outside [0, 1].
    """
    if how not in HOWS:
        raise UserError(f"hedges {how!r}: choose from {', '.join(HOWS)}")
    c = np.asarray(confidence, np.float64)
    if not np.all((c >= 0.0) & (c <= 1.0)):
        raise UserError("a confidence lies outside [0, 1] or is missing")
    scale = np.array([value for value, _ in HEDGES])
    right = np.abs(c[:, None] - scale).argmin(axis=1)
    rng = np.random.default_rng(seed)
    if how == "right":
        found = right
    elif how == "random":
        found = rng.permutation(right)
    else:
        order = np.lexsort((rng.random(c.size), c))
        found = np.empty_like(right)
        found[order] = np.sort(right)[::-1]
    return [int(level) for level in found]
