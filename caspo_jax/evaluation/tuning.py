"""Settings chosen on questions of their own, before a strategy is reported on others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, graded
from caspo_jax.evaluation.strategies.pool import VOTES, Pool, sample_pool, voted, with_statistics
from caspo_jax.evaluation.strategies.single import cat_at, elected, middle_size, paper_config, swept
from caspo_jax.evaluation.strategies.truncating import deepconf_online
from caspo_jax.sampling.config import Vote

TEMPERATURES = (0.5, 0.7, 1.0)
THRESHOLDS = (0.0, 0.6, 0.7, 0.8, 0.9)
GRIDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "confidence_vote": ("gamma", (1.0, 5.0, 25.0)),
    "self_certainty": ("borda_power", (0.3, 0.7, 1.2)),
    "deepconf": ("keep", (0.1, 0.5, 0.9)),
}

# What takes no temperature from the pool: greedy choices have none, searches their own.
UNPOOLED = {"greedy", "cot_decoding", "cat", "cat_paper"}

# What CaT's paths may elect by: the probability of distinct paths, or their confidence to a power.
CAT_VOTES: tuple[tuple[Vote, float], ...] = (
    ("sequence", 1.0),
    *(("confidence", g) for g in (1.0, 5.0, 25.0)),
)


def tune(
    context: Context,
    settings: Settings,
    names: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Settings, list[dict[str, Any]]]:
    """The best settings on the context's questions, and every trial with its accuracy.

    The pool's temperature is the one with the best mean accuracy over the wanted votes, each at its best setting; CaT
    has a temperature, a threshold and a vote of its own, at its middle size. Ties go to what costs fewer tokens (CaT), else
    to the value that comes first. KAPPA, beam and MCTS keep their settings and take the pool's temperature; nothing is
    sampled for greedy and CoT-decoding, which draw nothing.
    """
    trials: list[dict[str, Any]] = []
    pooled = [n for n in VOTES if n in names] or (["self_consistency"] if set(names) - UNPOOLED else [])
    steps = len(TEMPERATURES) * (bool(pooled) + ("cat" in names) * len(THRESHOLDS)) + (
        "cat_paper" in names
    ) * len(THRESHOLDS)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps)

    best, chosen = -1.0, settings
    for temperature in TEMPERATURES if pooled else ():
        at = _heated(settings, temperature)
        pool = with_statistics(sample_pool(context, at), context, at)
        at, found = _votes(pool, at, pooled, context)
        trials += [{"temperature": temperature, **trial} for trial in found]
        mean = float(np.mean([max(t["accuracy"] for t in found if t["strategy"] == n) for n in pooled]))
        if mean > best + 1e-12:
            best, chosen = mean, at
            if "deepconf_online" in names and "deepconf" not in names:
                chosen = _online_keep(pool, at, context)
        tick()
    if "cat" in names:
        chosen = _cat(context, chosen, trials, tick)
    if "cat_paper" in names:
        chosen = _paper(context, chosen, trials, tick)
    return chosen, trials


def _heated(settings: Settings, temperature: float) -> Settings:
    return dataclasses.replace(settings, sample=dataclasses.replace(settings.sample, temperature=temperature))


def _accuracy(answers: Sequence[Answer]) -> float:
    return float(np.mean([a.correct for a in answers]))


def _votes(
    pool: Pool, settings: Settings, names: Sequence[str], context: Context
) -> tuple[Settings, list[dict[str, Any]]]:
    trials = []
    for name in names:
        field, values = GRIDS.get(name, ("", (0.0,)))
        best, best_settings = -1.0, settings
        for value in values:
            changed: dict[str, Any] = {field: value} if field else {}
            at = dataclasses.replace(settings, **changed)
            accuracy = _accuracy([voted(name, "", group, at, context.same) for group in pool.samples])
            trials.append(
                {"strategy": name, "setting": field, "value": value if field else None, "accuracy": accuracy}
            )
            if accuracy > best + 1e-12:
                best, best_settings = accuracy, at
        settings = best_settings
    return settings, trials


def _online_keep(pool: Pool, settings: Settings, context: Context) -> Settings:
    def accuracy(keep: float) -> float:
        at = dataclasses.replace(settings, keep=keep)
        answers = deepconf_online(pool, at, context.same)
        return _accuracy([a for a in answers if a.size == str(settings.samples)])

    return dataclasses.replace(settings, keep=max(GRIDS["deepconf"][1], key=accuracy))


def _cat(
    context: Context, settings: Settings, trials: list[dict[str, Any]], tick: Callable[[], None]
) -> Settings:
    size = middle_size(settings)
    best, chosen = (-1.0, 0.0), settings.cat
    for temperature in TEMPERATURES:
        sample = dataclasses.replace(settings.cat.sample, temperature=temperature)
        config = cat_at(dataclasses.replace(settings.cat, sample=sample), size)
        for threshold, results in zip(THRESHOLDS, swept(context, config, THRESHOLDS), strict=True):
            for vote, gamma in CAT_VOTES:  # of the same paths
                at = dataclasses.replace(
                    settings.cat, sample=sample, threshold=threshold, vote=vote, gamma=gamma
                )
                answers = graded(context, elected(context, at, results, "cat", str(size)))
                accuracy, tokens = _accuracy(answers), float(np.mean([a.tokens for a in answers]))
                trials.append(
                    {
                        "strategy": "cat",
                        "temperature": temperature,
                        "setting": "threshold",
                        "value": threshold,
                        "vote": vote,
                        "gamma": gamma,
                        "accuracy": accuracy,
                        "tokens": tokens,
                    }
                )
                if (accuracy, -tokens) > best:
                    best, chosen = (accuracy, -tokens), at
            tick()
    return dataclasses.replace(settings, cat=chosen)


def _paper(
    context: Context, settings: Settings, trials: list[dict[str, Any]], tick: Callable[[], None]
) -> Settings:
    config = paper_config(settings)
    best, chosen = -1.0, settings
    for threshold, results in zip(THRESHOLDS, swept(context, config, THRESHOLDS), strict=True):
        answers = elected(context, config, results, "cat_paper", str(config.num_branches))
        accuracy = _accuracy(graded(context, answers))
        trials.append(
            {"strategy": "cat_paper", "setting": "threshold", "value": threshold, "accuracy": accuracy}
        )
        if accuracy > best + 1e-12:
            best, chosen = accuracy, dataclasses.replace(settings, paper_threshold=threshold)
        tick()
    return chosen
