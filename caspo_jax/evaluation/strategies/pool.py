"""A pool of plain samples, and the votes over it: self-consistency, confidence, sequence, self-certainty, DeepConf."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from caspo_jax.confidence import TokenStats
from caspo_jax.evaluation.rescoring import statistics_and_kl
from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, elected_index
from caspo_jax.models import eos_ids
from caspo_jax.sampling import generate
from caspo_jax.sampling.votes import powers
from caspo_jax.types import Question, Trace

T = TypeVar("T")
FIELDS = ("entropy", "top1_logprob", "mean_top20_logprob", "uniform_kl")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample as the votes see it: plain numbers, so that every vote can be taken again from its record."""

    question: str
    index: int
    answer: str | None
    correct: bool
    tokens: int
    logprob: float  # of the whole output, nats
    path_confidence: float | None  # geometric mean of the steps' exp(mean log-prob)
    self_certainty: float  # mean KL(uniform || p), nats
    lowest_group: float  # smallest window mean of DeepConf's token confidence
    spelling: str  # hash of the tokens: equal outputs have equal ones


@dataclasses.dataclass(frozen=True)
class Pool:
    """Samples of the questions, [Q][n] each."""

    traces: list[list[Trace]]
    stats: list[list[TokenStats]]
    samples: list[list[Sample]]
    divergence: list[list[np.ndarray]]  # [T] nats each, KAPPA's KL(p || p_bos)


def sample_pool(context: Context, settings: Settings) -> Pool:
    """`settings.samples` outputs a question, each with the statistics of its tokens."""
    count = settings.samples
    config = dataclasses.replace(settings.sample, num_samples=count)
    flat = generate(
        context.model,
        context.tokenizer,
        context.questions,
        config,
        context.key,
        batch_size=context.batch_size,
        step_confidence="mean_logprob",
        progress=context.progress,
    )
    traces = [flat[i : i + count] for i in range(0, len(flat), count)]
    return Pool(traces, [], [], [])


def with_statistics(pool: Pool, context: Context, settings: Settings) -> Pool:
    """The pool with token statistics, and its samples as plain numbers.

    The loop has these statistics at hand when it draws a token; here they are read by one more pass, outside the time
    that is reported. p_bos is the next-token distribution after the beginning-of-sequence token alone (after
    end-of-sequence for a tokenizer without one).
    """
    traces = [t for group in pool.traces for t in group]
    flat, kl = statistics_and_kl(context.model, traces, FIELDS, _beginning(context))
    answers = [context.extract(t.text) for t in traces]
    owners = [q for q, group in zip(context.questions, pool.traces, strict=True) for _ in group]
    right = context.right(answers, owners)
    drawn = [i for group in pool.traces for i in range(len(group))]
    made = [_sample(settings, *of) for of in zip(owners, drawn, answers, right, traces, flat, strict=True)]
    sizes = [len(group) for group in pool.traces]
    return Pool(pool.traces, _grouped(flat, sizes), _grouped(made, sizes), _grouped(kl, sizes))


def _grouped(flat: Sequence[T], sizes: Sequence[int]) -> list[list[T]]:
    rest = iter(flat)
    return [list(itertools.islice(rest, size)) for size in sizes]


def _beginning(context: Context) -> int:
    bos = getattr(context.tokenizer, "bos_token_id", None)
    return bos if bos is not None else next(iter(eos_ids(context.model.config, context.tokenizer)), 0)


def _sample(
    settings: Settings,
    question: Question,
    index: int,
    answer: str | None,
    correct: bool,
    trace: Trace,
    stats: TokenStats,
) -> Sample:
    return Sample(
        question=question.id,
        index=index,
        answer=answer,
        correct=correct,
        tokens=len(trace.token_ids),
        logprob=float(np.sum(np.asarray(trace.logprob))),
        path_confidence=trace.path_confidence,
        self_certainty=float(np.mean(stats.uniform_kl)),  # type: ignore[arg-type]
        lowest_group=float(group_confidences(stats, settings.window).min()),
        spelling=hashlib.blake2b(repr(trace.token_ids).encode(), digest_size=8).hexdigest(),
    )


def group_confidences(stats: TokenStats, window: int) -> np.ndarray:
    """DeepConf's sliding means [T - w + 1] of -mean(top-20 log-probs), w the window or the whole shorter output."""
    confidence = -np.asarray(stats.mean_top20_logprob, np.float64)
    width = min(window, confidence.size)
    total = np.concatenate(([0.0], np.cumsum(confidence)))
    return (total[width:] - total[:-width]) / width


def majority(samples: Sequence[Sample], settings: Settings) -> np.ndarray:
    """Every sample counts one."""
    return np.ones(len(samples))


def by_confidence(samples: Sequence[Sample], settings: Settings) -> np.ndarray:
    """c^gamma, c the path confidence, of those with an answer; up to a factor where no float holds it."""
    held = [None if s.answer is None else s.path_confidence for s in samples]
    return np.array([0.0 if weight is None else weight for weight in powers(held, settings.gamma)])


def by_sequence(samples: Sequence[Sample], settings: Settings) -> np.ndarray:
    """The probability of the output, distinct outputs with an answer once: up to a factor, the search's `sequence` vote."""
    first = {s.spelling: i for i, s in reversed(list(enumerate(samples))) if s.answer is not None}
    counted = list(first.values())
    weights = np.zeros(len(samples))
    if counted:
        # Beside a far likelier output without an answer, all others would vanish.
        logs = np.array([samples[i].logprob for i in counted])
        weights[counted] = np.exp(logs - logs.max())
    return weights


def borda(samples: Sequence[Sample], settings: Settings) -> np.ndarray:
    """(n - rank + 1)^p, rank 1 the largest self-certainty (Kang et al. 2025)."""
    order = np.argsort([-s.self_certainty for s in samples], kind="stable")
    rank = np.empty(len(samples))
    rank[order] = np.arange(1, len(samples) + 1)
    return (len(samples) - rank + 1.0) ** settings.borda_power


def deepconf(samples: Sequence[Sample], settings: Settings) -> np.ndarray:
    """The lowest group confidence, among the share `keep` of the samples that have it highest (Fu et al. 2025)."""
    values = np.array([s.lowest_group for s in samples])
    kept = int(np.ceil(settings.keep * len(samples) - 1e-9))
    weights = np.zeros(len(samples))
    best = np.argsort(-values, kind="stable")[: max(1, kept)]
    weights[best] = values[best]
    return weights


Weights = Callable[[Sequence[Sample], Settings], np.ndarray]
VOTES: Mapping[str, Weights] = {
    "self_consistency": majority,
    "confidence_vote": by_confidence,
    "sequence_vote": by_sequence,
    "self_certainty": borda,
    "deepconf": deepconf,
}


def elect(
    samples: Sequence[Sample], weights: Sequence[float] | np.ndarray, same: Callable[[str, str], bool]
) -> Sample | None:
    """A sample of the answer with the largest total weight, in its heaviest spelling (ties: what came first); None without
    one. Samples of no weight do not vote.
    """
    voting = [s.answer if weight > 0 else None for s, weight in zip(samples, weights, strict=True)]
    winner = elected_index(voting, list(weights), same)
    return None if winner is None else samples[winner]


def voted(
    name: str, size: str, samples: Sequence[Sample], settings: Settings, same: Callable[[str, str], bool]
) -> Answer:
    """The answer of the vote `name` over these samples of one question."""
    winner = elect(samples, VOTES[name](samples, settings), same)
    return Answer(
        strategy=name,
        size=size,
        question=samples[0].question,
        answer=winner.answer if winner else None,
        correct=bool(winner and winner.correct),
        tokens=sum(s.tokens for s in samples),
        calls=1 + max(s.tokens for s in samples),
    )


def pool_answers(
    pool: Pool, settings: Settings, names: Sequence[str], same: Callable[[str, str], bool]
) -> list[Answer]:
    """Plain samples, one answer each, and the votes over the first 1, 2, 4, ... of them."""
    answers = []
    if "sample" in names:
        answers += [
            Answer(
                "sample",
                "1",
                s.question,
                s.answer,
                s.correct,
                s.tokens,
                1 + s.tokens,
                index=s.index,
                path_confidence=s.path_confidence,
            )
            for group in pool.samples
            for s in group
        ]
    for name in (n for n in VOTES if n in names):
        for size in settings.vote_sizes(settings.samples):
            answers += [voted(name, str(size), group[:size], settings, same) for group in pool.samples]
    return answers


def at_counts(
    name: str,
    size: str,
    samples: Mapping[str, Sequence[Sample]],
    counts: Mapping[str, int],
    settings: Settings,
    same: Callable[[str, str], bool],
) -> list[Answer]:
    """The vote over the first counts[q] samples of each question: the same vote at another strategy's cost."""
    return [voted(name, size, group[: counts[q]], settings, same) for q, group in samples.items()]
