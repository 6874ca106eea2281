"""Do two scorers mean the same? Rank correlations and distances over the steps that both scored."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.decisiveness import Score
from caspo_jax.metrics import kendall, spearman


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two scorers compared; NaN where a number is undefined (fewer than two steps, or a constant scorer)."""

    first: str
    second: str
    steps: int  # steps that both scored
    only_first: int  # steps that only one of them scored
    only_second: int
    spearman: float
    kendall: float  # tau-b
    mean_absolute_difference: float
    mean_difference: float  # first - second: which one reads more decisiveness into the steps

    def to_record(self) -> dict[str, str | int | float | None]:
        """JSON form; undefined numbers are null."""
        record = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}


def agreement(scores: Mapping[str, Sequence[Score]]) -> list[Agreement]:
    """Every pair of scorers over the steps that both scored.

    Spearman is the correlation of the average ranks; Kendall's tau-b is
    (concordant - discordant) / sqrt((pairs - ties in x) (pairs - ties in y)).

    Args:
      scores: name -> one score a step, the same steps in the same order for every scorer; None is missing.

    Returns:
      One Agreement a pair, in the order of the names given.

    Raises:
      UserError: scorers with different numbers of steps, a score outside [0, 1].
    """
    arrays = {name: _array(name, values) for name, values in scores.items()}
    sizes = {name: array.size for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise UserError(f"scorers differ in steps: {listed}; give every scorer the same steps")
    return [_compare(*first, *second) for first, second in itertools.combinations(arrays.items(), 2)]


def _array(name: str, values: Sequence[Score]) -> np.ndarray:
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    bad = ~np.isnan(array) & ((array < 0.0) | (array > 1.0))
    if bad.any():
        index = int(bad.argmax())
        raise UserError(f"{name}[{index}] = {array[index]} lies outside [0, 1]; a missing score is None")
    return array


def _compare(first: str, x: np.ndarray, second: str, y: np.ndarray) -> Agreement:
    has_x, has_y = ~np.isnan(x), ~np.isnan(y)
    both = has_x & has_y
    a, b = x[both], y[both]
    return Agreement(
        first=first,
        second=second,
        steps=int(both.sum()),
        only_first=int((has_x & ~has_y).sum()),
        only_second=int((has_y & ~has_x).sum()),
        spearman=spearman(a, b),
        kendall=kendall(a, b),
        mean_absolute_difference=float(np.abs(a - b).mean()) if a.size else float("nan"),
        mean_difference=float((a - b).mean()) if a.size else float("nan"),
    )
