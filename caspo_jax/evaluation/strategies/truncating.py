"""Strategies that stop samples in mid-course: DeepConf online and KAPPA, replayed on whole samples.

A stopped sample draws the tokens that the whole one draws up to there, so answers and decoded tokens are exactly those of
a run that stops for real; the time is not, and is not reported as if it were.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from caspo_jax.confidence import TokenStats
from caspo_jax.evaluation.strategies.base import Answer, Settings
from caspo_jax.evaluation.strategies.pool import Pool, Sample, elect, group_confidences
from caspo_jax.sampling import merge_answers
from caspo_jax.types import Trace

# Of KL to the reference, top probability, entropy (which counts against a branch).
KAPPA_WEIGHTS = (0.7, 0.2, -0.1)


def deepconf_online(pool: Pool, settings: Settings, same: Callable[[str, str], bool]) -> list[Answer]:
    """Warm-up samples set a bar; the others stop at the first window below it; the vote is weighted by confidence.

    bar = the (1 - keep) quantile of the warm-up samples' lowest group confidence. If one answer holds the share
    `consensus` of the warm-up votes, no other sample is drawn. Samples under the bar or without an answer do not vote.

    Source: Fu et al. 2025.
    """
    answers = []
    for size in settings.vote_sizes(settings.samples):
        for samples, stats in zip(pool.samples, pool.stats):
            answers.append(_online(samples[:size], stats[:size], str(size), settings, same))
    return answers


def _online(
    samples: Sequence[Sample],
    stats: Sequence[TokenStats],
    size: str,
    settings: Settings,
    same: Callable[[str, str], bool],
) -> Answer:
    warm = max(2, min(settings.warm_up, len(samples) // 2))  # one sample agrees with itself
    lowest = np.array([s.lowest_group for s in samples])
    bar = (
        # The share may lie a rounding error above the whole number of samples that it is.
        np.quantile(lowest[:warm], max(0.0, 1.0 - settings.keep - 1e-9), method="inverted_cdf")
        if settings.keep < 1
        else -np.inf
    )
    weights = np.where(lowest >= bar, lowest, 0.0)
    spent = [s.tokens for s in samples[:warm]]
    winner = elect(samples[:warm], weights[:warm], same)
    calls = 1 + max(spent)
    if winner is None or _share(samples[:warm], weights[:warm], winner, same) < settings.consensus:
        rest = [
            _stop(group_confidences(st, settings.window), s.tokens, bar)
            for s, st in zip(samples[warm:], stats[warm:])
        ]
        spent += rest
        calls += max(rest, default=0)
        winner = elect(samples, weights, same)
    return Answer(
        "deepconf_online",
        size,
        samples[0].question,
        winner.answer if winner else None,
        bool(winner and winner.correct),
        sum(spent),
        calls,
    )


def _share(
    samples: Sequence[Sample], weights: np.ndarray, winner: Sample, same: Callable[[str, str], bool]
) -> float:
    classes = merge_answers([s.answer for s in samples], same)
    leader = classes[next(i for i, sample in enumerate(samples) if sample is winner)]
    votes = [w for kind, w in zip(classes, weights) if kind is not None]
    mine = [w for kind, w in zip(classes, weights) if kind == leader]
    return float(sum(mine) / sum(votes))


def _stop(groups: np.ndarray, tokens: int, bar: float) -> int:
    """Tokens emitted when the first window falls below the bar; all of them if none does."""
    below = np.flatnonzero(groups < bar)
    width = tokens - groups.size + 1
    return int(below[0]) + width if below.size else tokens


def kappa(pool: Pool, settings: Settings) -> list[Answer]:
    """Branches pruned to one by a running score of 0.7 KL(p || p_bos) + 0.2 top probability - 0.1 entropy.

    All branches are kept until all differ; then, over `kappa_gate` tokens, their number falls linearly to one, the
    branch with the lowest mean score going first. Each part is standardised over the live branches at each token. A
    branch that ends keeps its score and costs nothing more.

    Source: arXiv 2511.00699, without its moving averages.
    """
    answers = []
    for traces, stats, samples, divergence in zip(pool.traces, pool.stats, pool.samples, pool.divergence):
        parts = [
            np.stack([d, np.exp(np.asarray(s.top1_logprob)), np.asarray(s.entropy)])
            for d, s in zip(divergence, stats)
        ]
        for size in settings.vote_sizes(len(traces)):
            winner, spent, calls = survivor(traces[:size], parts[:size], settings.kappa_gate)
            s = samples[winner]
            answers.append(Answer("kappa", str(size), s.question, s.answer, s.correct, spent, calls))
    return answers


def survivor(traces: Sequence[Trace], parts: Sequence[np.ndarray], gate: int) -> tuple[int, int, int]:
    """(index of the branch that is left, tokens decoded, forward passes); `parts` hold [3, T] of each branch."""
    lengths = np.array([len(t.token_ids) for t in traces])
    count = len(traces)
    draft = _all_differ([t.token_ids for t in traces])
    live = np.ones(count, bool)
    stopped = lengths.copy()
    total, seen = np.zeros(count), np.zeros(count)
    for time in range(int(lengths.max())):
        if live.sum() == 1:
            break  # nothing is chosen any more; one that is left emits its whole length
        running = np.flatnonzero(live & (lengths > time))
        if running.size:
            now = np.stack([parts[int(i)][:, time] for i in running])
            spread = now.std(axis=0)
            scaled = (now - now.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
            total[running] += scaled @ np.array(KAPPA_WEIGHTS)
            seen[running] += 1
        if time + 1 > draft:
            allowed = count - min(count - 1, (time + 1 - draft) * (count - 1) // gate)
            mean = total / np.maximum(seen, 1)
            candidates = sorted(np.flatnonzero(live), key=lambda i: (mean[i], -i))
            for i in candidates[: max(0, int(live.sum()) - allowed)]:
                live[i] = False
                stopped[i] = min(stopped[i], time + 1)
    mean = total / np.maximum(seen, 1)
    winner = max(np.flatnonzero(live), key=lambda i: (mean[i], -i))
    return int(winner), int(stopped.sum()), int(stopped.max()) + 1


def _all_differ(outputs: Sequence[tuple[int, ...]]) -> int:
    """Tokens after which no two outputs agree; the shortest output's length where two never part."""
    # What two outputs share at their beginning, at most, two neighbours in their order share.
    shared = (_shared(*two) for two in itertools.pairwise(sorted(outputs)))
    return min(1 + max(shared, default=0), *map(len, outputs))


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Tokens at the beginning that are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
