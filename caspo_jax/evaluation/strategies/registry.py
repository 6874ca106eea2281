"""Strategies by name, in families that share their decoding."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, graded
from caspo_jax.evaluation.strategies.beam import beam
from caspo_jax.evaluation.strategies.cot_decoding import cot_decoding
from caspo_jax.evaluation.strategies.mcts import mcts
from caspo_jax.evaluation.strategies.pool import VOTES, Sample, pool_answers, sample_pool, with_statistics
from caspo_jax.evaluation.strategies.single import cat, cat_paper, greedy
from caspo_jax.evaluation.strategies.truncating import deepconf_online, kappa

Run = Callable[[Context, Settings], list[Answer]]

ALONE: Mapping[str, Run] = {
    "greedy": greedy,
    "cot_decoding": cot_decoding,
    "beam": beam,
    "mcts": mcts,
    "cat": cat,
    "cat_paper": cat_paper,
}
POOLED = ("sample", *VOTES, "deepconf_online", "kappa")
STRATEGIES = (
    "greedy",
    "sample",
    "self_consistency",
    "confidence_vote",
    "sequence_vote",
    "cot_decoding",
    "deepconf",
    "deepconf_online",
    "self_certainty",
    "kappa",
    "beam",
    "mcts",
    "cat",
    "cat_paper",
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a family gave: answers, and the samples behind them."""

    answers: list[Answer]
    samples: list[list[Sample]]


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names in their fixed order; `all` stands for every one.

    Raises:
      UserError: an unknown name.
    """
    wanted = set(STRATEGIES) if "all" in names else set(names)
    unknown = sorted(wanted - set(STRATEGIES))
    if unknown or not wanted:
        raise UserError(
            f"unknown strategy {', '.join(unknown) or '(none)'}: choose from all, {', '.join(STRATEGIES)}"
        )
    return tuple(name for name in STRATEGIES if name in wanted)


def families(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Family -> the strategies of it that are wanted; the pool serves many."""
    pooled = tuple(name for name in names if name in POOLED)
    return ({"pool": pooled} if pooled else {}) | {name: (name,) for name in names if name in ALONE}


def run_family(family: str, names: Sequence[str], context: Context, settings: Settings) -> Found:
    """Run one family on the context's questions.

    The pool's seconds are those of votes over all of it, and with `time_votes` of votes over its first samples too (the
    same samples, drawn again by themselves). Strategies that would have stopped samples in mid-course have none.
    """
    if family != "pool":
        return Found(graded(context, ALONE[family](context, settings)), [])
    seconds = {}
    for size in settings.sizes(settings.samples) if settings.time_votes else (settings.samples,):
        started = time.monotonic()
        pool = sample_pool(context, dataclasses.replace(settings, samples=size))
        seconds[str(size)] = (time.monotonic() - started) / len(context.questions)
    context.show("sample", [trace for group in pool.traces for trace in group])
    pool = with_statistics(pool, context, settings)
    answers = [
        dataclasses.replace(answer, seconds=seconds.get(answer.size))
        for answer in pool_answers(pool, settings, names, context.same)
    ]
    if "deepconf_online" in names:
        answers += deepconf_online(pool, settings, context.same)
    if "kappa" in names:
        answers += kappa(pool, settings)
    return Found(answers, pool.samples)
