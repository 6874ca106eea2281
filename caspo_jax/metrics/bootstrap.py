"""Intervals by question: resample questions, never steps."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, canonical, group_index
from caspo_jax.metrics.resampled import Resampled

Groups = Sequence[Hashable] | np.ndarray


class Interval(NamedTuple):
    """A value and its percentile bootstrap interval."""

    value: float  # the statistic on the data
    low: float
    high: float
    error: float  # standard deviation over the defined draws
    # Draws on which the statistic was NaN (one verdict only, say); left out; all, of one question.
    undefined: int


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Resamples of whole questions, shared by any number of statistics of one policy or of two on the same questions."""

    counts: np.ndarray  # [draws, questions] how often each question is drawn
    index: tuple[np.ndarray, ...]  # of each policy [n], the question of every item

    @classmethod
    def of(cls, *groups: Groups, draws: int = 1000, seed: int = 0) -> Resamples:
        """Resamples of all the questions that the policies have items of.

        Args:
          groups: [n] question id of every item, once for each policy; a question may have items of one of them only.
          draws: resamples.
          seed: the same seed and the same set of questions give the same resamples.
        """
        order = canonical(itertools.chain.from_iterable(map(_ids, groups)))
        counts = _multiplicities(len(order), draws, seed)
        return cls(counts, tuple(group_index(each, order=order)[0] for each in groups))

    def interval(self, statistic: Statistic, level: float = 0.95) -> Interval:
        """As `bootstrap_interval`."""
        return _interval(*self._values(statistic, 0), level)

    def difference(self, statistic: Statistic, baseline: Statistic, level: float = 0.95) -> Interval:
        """As `paired_difference`: of the first policy's statistic and the second's."""
        (a, draws_a), (b, draws_b) = self._values(statistic, 0), self._values(baseline, -1)
        return _interval(a - b, draws_a - draws_b, level)

    def ratio(self, statistic: Statistic, baseline: Statistic, level: float = 0.95) -> Interval:
        """As `paired_ratio`: of the first policy's statistic and the second's."""
        (a, draws_a), (b, draws_b) = self._values(statistic, 0), self._values(baseline, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return _interval(float(np.float64(a) / np.float64(b)), draws_a / draws_b, level)

    def _values(self, statistic: Statistic, policy: int) -> tuple[float, np.ndarray]:
        """The value on the data and on every draw."""
        index = self.index[policy]
        value = float(statistic(np.ones(index.size)))
        if self.counts.shape[1] < 2:  # every resample would be the data, and the interval without width
            return value, np.full(len(self.counts), np.nan)
        if isinstance(statistic, Resampled):
            return value, statistic.resample(index, self.counts)
        return value, np.array([statistic(row[index]) for row in self.counts], dtype=np.float64)


def bootstrap_interval(
    statistic: Statistic,
    groups: Groups,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic, resampling whole questions with replacement.

    A resample is a multiplicity for every question, given to the statistic as the weight of each of the
    question's items: `mean_statistic`, `ratio_statistic`, `auroc_statistic`, ... or any function of the
    weights, such as `lambda w: auroc(confidence, correct, weights=w)`. One question alone does not tell how much
    questions differ: its low, high and error are NaN.

    Intervals of a mean over items are a little short where questions have very unequal numbers of them, since few
    questions then decide: in simulations of 30, 100 and 300 questions, 95 % intervals held the truth in 92 to 94 % of
    2,000 runs or more (94 to 95 % with equal numbers), with one seed as with a new one for each run; 20,000 draws did
    not help. Where all questions have the same value, every answer right say, the interval has no width.

    Args:
      statistic: item weights [n] -> value.
      groups: [n] question id of every item.
      draws: resamples.
      seed: the same seed and the same set of questions give the same resamples for every statistic.
      level: coverage, in (0, 1).

    Raises:
      UserError: no items, draws < 1, a level outside (0, 1), a group that is NaN, not exactly one group for each item.

    >>> from caspo_jax.metrics import mean_statistic
    >>> found = bootstrap_interval(mean_statistic([1.0, 0.0, 1.0, 1.0]), ["a", "a", "b", "b"], draws=200)
    >>> found.value, found.low <= found.value <= found.high
    (0.75, True)
    """
    return Resamples.of(groups, draws=draws, seed=seed).interval(statistic, level)


def paired_difference(
    statistic: Statistic,
    baseline: Statistic,
    groups: Groups,
    baseline_groups: Groups | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of statistic - baseline for two policies on the same questions: one resample serves both.

    Args:
      statistic: item weights [n] -> value, of the policy in question.
      baseline: item weights [m] -> value, of the policy that it is compared with.
      groups: [n] question id of every item of the first.
      baseline_groups: [m] the same for the second, default `groups`. A question may have items in one only.
      draws: resamples.
      seed: see bootstrap_interval.
      level: coverage, in (0, 1).
    """
    return _pair(groups, baseline_groups, draws, seed).difference(statistic, baseline, level)


def paired_ratio(
    statistic: Statistic,
    baseline: Statistic,
    groups: Groups,
    baseline_groups: Groups | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of statistic / baseline, paired as in `paired_difference`; x / 0 is +inf, 0 / 0 undefined."""
    return _pair(groups, baseline_groups, draws, seed).ratio(statistic, baseline, level)


def _ids(groups: Groups) -> list[Hashable]:
    return groups.tolist() if isinstance(groups, np.ndarray) else list(groups)


def _pair(groups: Groups, baseline_groups: Groups | None, draws: int, seed: int) -> Resamples:
    both = (groups,) if baseline_groups is None else (groups, baseline_groups)
    return Resamples.of(*both, draws=draws, seed=seed)


@functools.lru_cache(maxsize=2)  # a table asks for the same resamples once a row
def _multiplicities(questions: int, draws: int, seed: int) -> np.ndarray:
    """How often each question is drawn, [draws, questions]."""
    if questions == 0:
        raise UserError("bootstrap: no items; give at least one question")
    if draws < 1:
        raise UserError(f"bootstrap: draws = {draws}; give at least 1")
    rng = np.random.default_rng(seed)
    counts = np.empty((draws, questions))
    for row in counts:
        row[:] = np.bincount(rng.integers(questions, size=questions), minlength=questions)
    counts.flags.writeable = False  # shared by all callers
    return counts


def _interval(value: float, resampled: np.ndarray, level: float) -> Interval:
    if not 0.0 < level < 1.0:
        raise UserError(f"bootstrap: level = {level}; give a coverage between 0 and 1")
    defined = resampled[~np.isnan(resampled)]
    undefined = int(resampled.size - defined.size)
    if defined.size == 0:
        return Interval(value, float("nan"), float("nan"), float("nan"), undefined)
    # Observed draws, no interpolation: a ratio may be infinite on some.
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(defined, [tail, 1.0 - tail], method="inverted_cdf")
    error = float(defined.std()) if np.isfinite(defined).all() else float("nan")
    return Interval(value, float(low), float(high), error, undefined)
