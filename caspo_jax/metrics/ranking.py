"""Does a higher confidence go with a right verdict? AUROC, pooled and within groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics.arrays import Statistic, check_weights, group_index, scored, vector, weight_of
from caspo_jax.metrics.resampled import Resampled, SumStatistic, Term, in_blocks, quotient

# Float32 is off by 1e-7 to 1e-6, so that of a hundred values at most one may be rounded to another neighbour.
_RANK_DECIMALS = 4


class GroupedAuroc(NamedTuple):
    """An AUROC averaged over groups."""

    value: float  # mean over the groups with both verdicts, NaN if there is none
    groups: int  # how many those are


def auroc(confidence: Any, correct: Any, weights: Any = None) -> float:
    """Probability that a right item is surer than a wrong one, ties counted half.

    P(c+ > c-) + P(c+ = c-) / 2 over pairs of a right and a wrong item, pairs weighted by w+ w-.

    Args:
      confidence: [n], any real scores.
      correct: [n] 0/1.
      weights: [n] non-negative, default ones.

    Returns:
      A float; NaN if one of the verdicts is missing.

    >>> auroc([0.9, 0.8, 0.3, 0.8], [1, 1, 0, 0])  # 3.5 of 4 pairs in order, a tie counts half
    0.875
    """
    statistic = auroc_statistic(confidence, correct)
    return statistic(weight_of(weights, np.size(correct)))


def rank_scores(log_confidence: Any) -> np.ndarray:
    """What a model's confidences are ranked by: their logarithms [n], nats, to four decimals.

    A model's numbers differ in their last bits with the batch that they were computed in. Confidences that are equal by
    definition, such as the entropies of two steps that part at their last token, would be ordered at random if they were
    compared as they come, and an AUROC within prefixes, where such ties are common, would differ from run to run.

    Args:
      log_confidence: [n], -inf for a confidence of 0, NaN for a missing one.

    >>> auroc([-0.15286996, -0.15287], [0, 1]), auroc(rank_scores([-0.15286996, -0.15287]), [0, 1])
    (0.0, 0.5)
    """
    return np.round(np.asarray(log_confidence, np.float64), _RANK_DECIMALS)


def auroc_statistic(confidence: Any, correct: Any) -> Statistic:
    """`auroc` as a function of the weights; sorts once, so that 1,000 resamples are cheap."""
    return _Auroc(*scored(confidence, correct))


class _Auroc(Resampled):
    def __init__(self, score: np.ndarray, verdict: np.ndarray):
        self.size = score.size
        right, wrong = np.flatnonzero(verdict == 1.0), np.flatnonzero(verdict == 0.0)
        self._right, self._wrong = right[np.argsort(score[right])], wrong[np.argsort(score[wrong])]
        # Wrong items below each right one, and below or tied: positions in the running sum of their weights.
        self._below = np.searchsorted(score[self._wrong], score[self._right], side="left")
        self._up_to = np.searchsorted(score[self._wrong], score[self._right], side="right")
        self._ties = bool((self._below != self._up_to).any())

    def __call__(self, weights: np.ndarray) -> float:
        check_weights(weights, self.size)
        row = np.asarray(weights, np.float64)[None]
        return float(self._values(row, self._right, self._wrong)[0])

    def resample(self, group: np.ndarray, counts: np.ndarray) -> np.ndarray:
        check_weights(group, self.size)
        right, wrong = group[self._right], group[self._wrong]
        return in_blocks(lambda part: self._values(part, right, wrong), counts, self.size)

    def _values(self, weights: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        """The values [draws] of the weights [draws, groups] at `right`, the right items in order, and at `wrong`."""
        positive = np.take(weights, right, axis=1)
        running = np.zeros((len(weights), wrong.size + 1))
        np.cumsum(np.take(weights, wrong, axis=1), axis=1, out=running[:, 1:])
        wins = (positive * np.take(running, self._below, axis=1)).sum(axis=1)
        if self._ties:
            wins = 0.5 * (wins + (positive * np.take(running, self._up_to, axis=1)).sum(axis=1))
        return quotient(wins, positive.sum(axis=1) * running[:, -1])


def grouped_auroc(confidence: Any, correct: Any, groups: Sequence[Hashable] | np.ndarray) -> GroupedAuroc:
    """AUROC within each group (pairwise concordance, ties half), averaged over groups with both verdicts.

    Args:
      confidence: [n], any real scores.
      correct: [n] 0/1.
      groups: [n] hashable group ids.
    """
    values, _ = _concordance(confidence, correct, groups)
    defined = ~np.isnan(values)
    return GroupedAuroc(float(values[defined].mean()) if defined.any() else float("nan"), int(defined.sum()))


def within_prefix_auroc(
    confidence: Any, correct: Any, prefixes: Sequence[Hashable] | np.ndarray
) -> GroupedAuroc:
    """`grouped_auroc` over the candidates of each prefix: can the confidence tell siblings apart?

    >>> found = within_prefix_auroc([0.9, 0.2, 0.7, 0.8], [1, 0, 1, 0], ["a", "a", "b", "b"])
    >>> found.value, found.groups
    (0.5, 2)
    """
    return grouped_auroc(confidence, correct, prefixes)


def within_question_auroc(
    confidence: Any, correct: Any, questions: Sequence[Hashable] | np.ndarray
) -> GroupedAuroc:
    """`grouped_auroc` over the items of each question, which takes the question's difficulty out."""
    return grouped_auroc(confidence, correct, questions)


def grouped_auroc_statistic(
    confidence: Any, correct: Any, groups: Sequence[Hashable] | np.ndarray
) -> Statistic:
    """`grouped_auroc` as a function of the weights, which must be constant within each group.

    Resampling by question does that for prefixes and questions alike: a group's own value never changes.
    """
    values, first = _concordance(confidence, correct, groups)
    defined = ~np.isnan(values)
    value, present = np.zeros(np.size(correct)), np.zeros(np.size(correct))
    value[first[defined]], present[first[defined]] = values[defined], 1.0
    return ratio_statistic(value, present)


def entropy_gap(entropy: Any, correct: Any, weights: Any = None) -> float:
    """Mean entropy of wrong minus right items, nats; NaN if one of the verdicts is missing."""
    statistic = entropy_gap_statistic(entropy, correct)
    return statistic(weight_of(weights, np.size(correct)))


def entropy_gap_statistic(entropy: Any, correct: Any) -> Statistic:
    """`entropy_gap` as a function of the weights."""
    value, verdict = scored(entropy, correct, "entropy")
    right = verdict.astype(np.int64)
    terms = [Term(right, np.ones(value.size)), Term(right + 2, value)]
    return SumStatistic(terms, 4, lambda sums: _gap(*np.moveaxis(sums, -1, 0)))


def _gap(
    wrong: np.ndarray, right: np.ndarray, wrong_total: np.ndarray, right_total: np.ndarray
) -> np.ndarray:
    return quotient(wrong_total, wrong) - quotient(right_total, right)


def mean_statistic(values: Any) -> Statistic:
    """The weighted mean of the values [n] as a function of the weights."""
    return ratio_statistic(values, np.ones(np.size(values)))


def ratio_statistic(numerator: Any, denominator: Any) -> Statistic:
    """sum w a / sum w b as a function of the weights w, for rates within a subset; NaN for a zero denominator."""
    above, below = vector(numerator, "numerator"), vector(denominator, "denominator")
    if above.size != below.size:
        raise UserError(f"numerator has {above.size} values and denominator {below.size}; give one each")

    return SumStatistic(
        [Term(0, above), Term(1, below)], 2, lambda sums: quotient(sums[..., 0], sums[..., 1])
    )


def _concordance(confidence, correct, groups) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of every group [g] (NaN with one verdict), and the index of each group's first item."""
    score, verdict = scored(confidence, correct)
    index, count = group_index(groups, score.size)
    if count == 0:
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    order = np.lexsort((score, index))
    group, ordered, right = index[order], score[order], verdict[order]
    # Runs of items that tie inside one group.
    new = np.concatenate(([True], (group[1:] != group[:-1]) | (ordered[1:] != ordered[:-1])))
    run = np.cumsum(new) - 1
    positive = np.bincount(run, right)
    negative = np.bincount(run, 1.0 - right)
    run_group = group[new]
    positives = np.bincount(run_group, positive, count)
    negatives = np.bincount(run_group, negative, count)
    before_group = np.cumsum(negatives) - negatives
    below = np.cumsum(negative) - 0.5 * negative - before_group[run_group]
    concordant = np.bincount(run_group, positive * below, count)
    pairs = positives * negatives
    values = np.where(pairs > 0, concordant / np.where(pairs > 0, pairs, 1.0), np.nan)
    return values, order[np.searchsorted(group, np.arange(count))]
