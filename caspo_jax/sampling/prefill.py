"""Reading prompts: their KV cache and the logits after them, in few shapes, so that little is compiled."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from caspo_jax.models.cache import KVCache
from caspo_jax.models.cache_rows import concatenate, widen_prompts
from caspo_jax.padding import multiple, padded_rows

LEAST_WIDTH = 128  # columns are not halved below this: the compilation would cost more than it saves
MOST_PAIRS = 1 << 24  # pairs of prompt columns (rows x P x P) that one prefill may attend over
# Padded calls, whose prompts differ much in length, read about so many together, in a third, two thirds or all columns.
PADDED_READ = 32
PADDED_WIDTHS = 3


def fitting_columns(columns: int, longest: int) -> int:
    """`columns` halved as often as the longest prompt permits: few widths."""
    while columns % 2 == 0 and max(longest, LEAST_WIDTH) <= columns // 2:
        columns //= 2
    return columns


def read_prompts(
    graphdef: Any,
    params: Any,
    prompts: Sequence[tuple[int, ...]],
    count: int,
    columns: int,
    *,
    lanes: bool,
    rows: int | None = None,
    padded: bool = False,
) -> tuple[jax.Array, KVCache]:
    """Reads prompts, in several parts where they are too many for one.

    Args:
      graphdef: of the Decoder.
      params: of the Decoder.
      prompts: at most `count`, of at most `columns` tokens each.
      count: prompts that come back; those that are missing are made up.
      columns: of the cache.
      lanes: the layout of the rows' own part (`KVCache`).
      rows: prompts of a part (default: as many as `MOST_PAIRS` permits).
      padded: other calls have other numbers of prompts, of other lengths: parts are of few shapes.

    Returns:
      Logits after each prompt [count, V] float32, and the cache of `count` prompts with a row each.
    """
    token_ids, mask = padded_rows(prompts, columns, count)
    rows, unit = min(rows or count, max(1, MOST_PAIRS // columns**2)), columns
    if padded:
        few = (n for n in range(min(rows, PADDED_READ), PADDED_READ // 4, -1) if count % n == 0)
        rows, unit = next(few, rows), math.ceil(columns / PADDED_WIDTHS)
    read = len(prompts) if count % rows == 0 else count
    parts = []
    for i in range(0, max(1, read), rows):
        longest = max(map(len, prompts[i : i + rows]), default=1)
        width = min(columns, multiple(longest, unit))
        parts.append(
            _prefill(
                graphdef, params, token_ids[i : i + rows, :width], mask[i : i + rows, :width], lanes, columns
            )
        )
    parts += [parts[0]] * (math.ceil(count / rows) - len(parts))  # in the place of those that are missing
    if len(parts) == 1:
        return parts[0]
    return _joined(*zip(*parts))


# Jitted whole: each array's concatenation would be compiled by itself.
_joined = jax.jit(lambda logits, caches: (jnp.concatenate(logits), concatenate(caches)))


@functools.partial(jax.jit, static_argnames=("graphdef", "lanes", "columns"))
def _prefill(graphdef: Any, params: Any, token_ids: jax.Array, mask: jax.Array, lanes: bool, columns: int):
    logits, cache = nnx.merge(graphdef, params).prefill(token_ids, mask, 0, lanes=lanes)
    return logits, widen_prompts(cache, columns)
