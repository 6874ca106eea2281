"""Token statistics -> the confidence of a step, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.confidence.registering import is_registered
from caspo_jax.confidence.token import TOKEN_FIELDS, TokenStats
from caspo_jax.errors import UserError

Array = Any  # jax.Array inside jit, np.ndarray on the host: the formulas are the same
StepConfidence = Callable[[TokenStats, Array, int | None], Array]

TAIL_SHARE = 10  # `tail_entropy` averages the top 1/10 of the entropies, at least one token


def _namespace(*arrays: Any):
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


# The formulas: (xp, TokenStats [..., T], mask [..., T] bool, V or None) -> [...], where xp is jax.numpy or
# NumPy. Their mathematics is in the docstring of `step_confidence`.


def _mean(xp, values, mask):
    return xp.sum(xp.where(mask, values, 0.0), axis=-1) / xp.sum(mask, axis=-1)


def _entropy(xp, stats, mask, vocab_size):
    return xp.exp(-_mean(xp, stats.entropy, mask))


def _max_entropy(xp, stats, mask, vocab_size):
    return xp.exp(-xp.max(xp.where(mask, stats.entropy, -xp.inf), axis=-1, initial=-xp.inf))


def _tail_entropy(xp, stats, mask, vocab_size):
    descending = -xp.sort(-xp.where(mask, stats.entropy, -xp.inf), axis=-1)
    count = (xp.sum(mask, axis=-1, keepdims=True) + TAIL_SHARE - 1) // TAIL_SHARE
    return xp.exp(-_mean(xp, descending, xp.arange(mask.shape[-1]) < count))


def _first_token(xp, stats, mask, vocab_size):
    first = mask & (xp.cumsum(mask, axis=-1) == 1)
    return xp.exp(-xp.sum(xp.where(first, stats.entropy, 0.0), axis=-1))


def _normalised(xp, stats, mask, vocab_size):
    if vocab_size is None or vocab_size < 2:
        raise UserError(f"step confidence 'normalised' needs vocab_size >= 2, got {vocab_size}")
    return xp.clip(1.0 - _mean(xp, stats.entropy, mask) / float(np.log(vocab_size)), 0.0, 1.0)


def _mean_logprob(xp, stats, mask, vocab_size):
    return xp.exp(_mean(xp, stats.logprob, mask))


def _sum_logprob(xp, stats, mask, vocab_size):
    return xp.exp(xp.sum(xp.where(mask, stats.logprob, 0.0), axis=-1))


def _max_prob(xp, stats, mask, vocab_size):
    return _mean(xp, xp.exp(stats.top1_logprob), mask)


def _margin(xp, stats, mask, vocab_size):
    return _mean(xp, xp.exp(stats.top1_logprob) - xp.exp(stats.top2_logprob), mask)


def _deepconf(xp, stats, mask, vocab_size):
    return -_mean(xp, stats.mean_top20_logprob, mask)


def _self_certainty(xp, stats, mask, vocab_size):
    return _mean(xp, stats.uniform_kl, mask)


_FORMULAS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "entropy": (("entropy",), _entropy),
    "max_entropy": (("entropy",), _max_entropy),
    "tail_entropy": (("entropy",), _tail_entropy),
    "first_token": (("entropy",), _first_token),
    "normalised": (("entropy",), _normalised),
    "mean_logprob": (("logprob",), _mean_logprob),
    "sum_logprob": (("logprob",), _sum_logprob),
    "max_prob": (("top1_logprob",), _max_prob),
    "margin": (("top1_logprob", "top2_logprob"), _margin),
    "deepconf": (("mean_top20_logprob",), _deepconf),
    "self_certainty": (("uniform_kl",), _self_certainty),
}


def needed_fields(name: str) -> tuple[str, ...]:
    """The TokenStats fields that the step confidence `name` reads."""
    return _formula(name)[0]


def step_confidence(name: str, stats: TokenStats, mask: Array, vocab_size: int | None = None) -> Array:
    """Confidence of each step from its tokens' statistics; larger is surer.

    Over the tokens t of the step (mask true), with u = mean_t H_t:

    * `entropy` exp(-u); `max_entropy` exp(-max_t H_t); `tail_entropy` exp(-mean of the ceil(n/10)
      largest H_t); `first_token` exp(-H_first); `normalised` 1 - u / ln V;
    * `mean_logprob` exp(mean_t log p_t) = 1 / perplexity; `sum_logprob` exp(sum_t log p_t);
    * `max_prob` mean_t p_(1); `margin` mean_t (p_(1) - p_(2));
    * `deepconf` -mean_t (mean of the top-20 log-probs) (Fu et al. 2025); `self_certainty`
      mean_t KL(uniform || p_t) (Kang et al. 2025).

    All but the last two lie in [0, 1]; those two are non-negative and unbounded. None is a probability that
    the step is correct. In float32 `sum_logprob` is 0 below exp(-87): rank long steps on the host.

    Args:
      name: one of STEP_CONFIDENCES.
      stats: TokenStats [..., T] with at least `needed_fields(name)`.
      mask: [..., T] bool, the tokens that count (delimiters and padding left out).
      vocab_size: V, needed by `normalised` alone.

    Returns:
      [...]: jax float32 if the inputs are jax arrays (jit, vmap and grad are fine), NumPy float64 if
      they are host arrays. A step without a token is NaN; values outside the mask never matter.

    Raises:
      UserError: unknown name, a missing field, a mask of another length T, `normalised` without vocab_size >= 2, or a
        registered formula that gives something else than one value a step.

    >>> stats = TokenStats(entropy=np.array([0.1, 0.3, 5.0]))
    >>> round(float(step_confidence("entropy", stats, np.array([True, True, False]))), 4)  # exp(-0.2)
    0.8187
    """
    fields, formula = _formula(name)
    for field in fields:
        if getattr(stats, field) is None:
            raise UserError(
                f"step confidence {name!r} needs the token statistic {field!r}: ask for it in fields="
            )
    xp = _namespace(mask, *(getattr(stats, field) for field in fields))
    dtype = np.float64 if xp is np else jnp.float32
    chosen = TokenStats(**{field: xp.asarray(getattr(stats, field), dtype) for field in fields})
    mask = xp.asarray(mask, bool)
    for field in fields:
        if (found := getattr(chosen, field).shape)[-1:] != mask.shape[-1:]:
            raise UserError(
                f"step_confidence: mask of shape {mask.shape} does not match {field} of shape {found}"
            )
    with np.errstate(all="ignore"):  # an empty step divides 0 by 0 on purpose
        value = formula(xp, chosen, mask, vocab_size)
    # A formula that also averaged over the steps would give all of them one value.
    steps = np.broadcast_shapes(mask.shape, *(getattr(chosen, field).shape for field in fields))[:-1]
    if np.shape(value) != steps:
        raise UserError(
            f"step confidence {name!r} gave shape {np.shape(value)} for steps of shape {steps}: "
            "its formula is to reduce the last axis, the tokens, and no other"
        )
    return xp.where(xp.any(mask, axis=-1), value, xp.nan)


def _formula(name: str) -> tuple[tuple[str, ...], Callable]:
    if name not in _FORMULAS:
        raise UserError(f"unknown step confidence {name!r}; choose from {', '.join(_FORMULAS)}")
    return _FORMULAS[name]


def _named(name: str) -> StepConfidence:
    def confidence(stats: TokenStats, mask: Array, vocab_size: int | None = None) -> Array:
        return step_confidence(name, stats, mask, vocab_size)

    confidence.__name__ = name
    return confidence


def register_step_confidence(name: str, fields: tuple[str, ...], formula: Callable[..., Array]) -> None:
    """Make a step confidence of one's own available under a name, wherever a name is taken.

    Args:
      name: a new one.
      fields: the TokenStats fields that it reads (`caspo_jax.confidence.TOKEN_FIELDS`).
      formula: (xp, TokenStats [..., T], mask [..., T] bool, vocab_size) -> [...], larger is surer; xp is jax.numpy
        inside jit and NumPy on the host. Values outside the mask must not matter.

    Raises:
      UserError: the name is taken by another formula (compiled searches know a confidence by its name), or an unknown
        field.
    """
    fields = (fields,) if isinstance(fields, str) else tuple(fields)
    if is_registered("step confidence", name, formula, {n: known for n, (_, known) in _FORMULAS.items()}):
        if fields == _FORMULAS[name][0]:
            return
        raise UserError(f"step confidence {name!r} exists already with other fields: choose another name")
    unknown = sorted(set(fields) - set(TOKEN_FIELDS))
    if unknown:
        raise UserError(f"step confidence {name!r}: no token statistic {', '.join(unknown)}")
    _FORMULAS[name] = (tuple(fields), formula)
    STEP_CONFIDENCES[name] = _named(name)


STEP_CONFIDENCES: dict[str, StepConfidence] = {name: _named(name) for name in _FORMULAS}
# Those that lie in [0, 1]. Of registered ones that is not known.
BOUNDED_STEPS = tuple(name for name in _FORMULAS if name not in ("deepconf", "self_certainty"))
