"""Token statistics to the token estimators of every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from caspo_jax.confidence import TokenStats, step_confidence
from caspo_jax.confidence.forced import Measured
from caspo_jax.evaluation.faithfulness.subjects import Subject

Values = list[float | None]

CLIP = 8.0  # nats: where the published token estimator saturates


def token_values(subject: Subject, measured: Measured | None) -> dict[str, Values]:
    """The token estimators of each step of a trace.

    `token` = clip(mean_t v_t / 8, 0, 1) with v_t = -mean of the top five log-probs (published); `entropy` = exp(-mean
    H_t); `mean_logprob` and `sum_logprob` = exp of the mean and of the sum of the log-probs. Recorded statistics come
    first, the checkpoint's fill in what was not recorded. Null where a statistic is missing for every token.
    """
    masks = subject.masks()
    trace = subject.trace
    stats = {} if measured is None else dict(measured.stats)
    for name, recorded in (
        ("logprob", trace.logprob),
        ("entropy", trace.entropy),
        ("mean_top5_logprob", subject.mean_top5),
    ):
        if recorded is not None:
            stats[name] = np.asarray(recorded, np.float64)
    found: dict[str, Values] = {"token": _step_values(stats.get("mean_top5_logprob"), masks, published_token)}
    for name, field in (("entropy", "entropy"), ("mean_logprob", "logprob"), ("sum_logprob", "logprob")):
        found[name] = _step_values(stats.get(field), masks, functools.partial(_named, name, field))
    return found


def published_token(mean_top5_logprob: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """clip(mean_t v_t / 8, 0, 1), v_t = -mean_top5_logprob [..., T], over the mask; NaN where it is empty.

    Larger means surer: where one token has nearly all the mass, the other four are improbable and v is large. The map
    saturates at 8 nats and is not monotone in entropy: a uniform distribution over a large vocabulary has a large v too.

    Source: arXiv 2606.03969 (after DeepConf, Fu et al. 2025).
    """
    values = np.where(mask, -np.asarray(mean_top5_logprob, np.float64), 0.0)
    count = mask.sum(axis=-1)
    mean = values.sum(axis=-1) / np.maximum(count, 1)
    return np.where(count > 0, np.clip(mean / CLIP, 0.0, 1.0), np.nan)


def _named(name: str, field: str, values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    stats = TokenStats(**{field: np.broadcast_to(values, masks.shape)})  # type: ignore[arg-type]
    return np.asarray(step_confidence(name, stats, masks))


def _step_values(values: Any, masks: np.ndarray, compute: Callable[..., np.ndarray]) -> Values:
    if values is None:
        return [None] * len(masks)
    array = np.asarray(values, np.float64)
    known = np.isfinite(array)
    return unit_values(compute(np.where(known, array, 0.0), masks & known))


def unit_values(values: Any) -> Values:
    """Floats in [0, 1] for JSON; what is undefined is null.

    Rounding of float32 may leave [0, 1] by a hair; RCC exceeds 1 where several tokens of a row reach a mu below 1/2.
    """
    return [
        None if not math.isfinite(v) else min(1.0, max(0.0, float(v))) for v in np.asarray(values, np.float64)
    ]
