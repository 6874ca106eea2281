"""Preference losses on masked log-prob sums: pure functions of `[B]` arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.training.config import LossConfig

Array = jax.Array


def dpo_loss(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    beta: float | Array = 0.1,
    label_smoothing: float | Array = 0.0,
    weights: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Direct preference optimisation on masked log-prob sums.

    `h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)`,
    `loss = -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h)` with label smoothing `s`, averaged over the
    rows with the given weights. A row of weight 0 changes neither value nor gradient, whatever it holds; with
    no weight at all the loss is 0.

    Args:
      policy_chosen, policy_rejected: `[B]` sums of the policy's token log-probs over the step, nats.
      reference_chosen, reference_rejected: `[B]` the same under the reference, or a number for all rows; no gradient
        flows into them.
      beta: inverse temperature of the implicit reward, above 0; under a transformation it may be traced, and is then
        not checked.
      label_smoothing: probability that a preference is the wrong way round (cDPO), in [0, 0.5); likewise.
      weights: `[B]`, or a number for all rows; non-negative, default 1.

    Returns:
      The scalar loss, and a dict of weighted means: `rewards/chosen`, `rewards/rejected`, `rewards/margin`,
      `rewards/accuracy`, `logps/chosen`, `logps/rejected`.

    Raises:
      UserError: beta or label_smoothing is out of its range, an array has another shape than `policy_chosen`, or a
        weight is negative.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; label smoothing: Mitchell 2023, cDPO.

    >>> loss, aux = dpo_loss(*jnp.array([[-2.0], [-5.0], [-3.0], [-4.0]]), beta=0.1)
    >>> round(float(loss), 4), round(float(aux["rewards/margin"]), 4)  # h = (-2 + 3) - (-5 + 4) = 2
    (0.5981, 0.2)
    """
    given: dict[str, Any] = {"beta": beta, "label_smoothing": label_smoothing}
    config = LossConfig(**{name: x for name, x in given.items() if not isinstance(x, jax.core.Tracer)})
    named = {
        "policy_chosen": policy_chosen,
        "policy_rejected": policy_rejected,
        "reference_chosen": reference_chosen,
        "reference_rejected": reference_rejected,
        "weights": 1.0 if weights is None else weights,
    }
    shape = np.shape(policy_chosen)
    for name, array in named.items():
        if np.shape(array) not in ((), shape):
            raise UserError(
                f"dpo_loss: {name} of shape {np.shape(array)} does not match policy_chosen of shape {shape}"
            )
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, weights = (
        jnp.broadcast_to(jnp.asarray(array), shape) for array in named.values()
    )
    columns = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    negative = jnp.any(weights < 0)
    if not isinstance(negative, jax.core.Tracer) and negative:
        raise UserError("dpo_loss: a weight is negative")
    losses, rewards = _contrast(*drop_rows(weights, columns), config, beta, label_smoothing)
    means = {**rewards, "logps/chosen": policy_chosen, "logps/rejected": policy_rejected}
    aux = {name: jax.lax.stop_gradient(weighted_mean(value, weights)) for name, value in means.items()}
    return weighted_mean(losses, weights), aux


def pair_losses(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    config: LossConfig,
) -> tuple[Array, dict[str, Array]]:
    """The contrastive loss of every pair, unreduced.

    With log-ratios `r = policy - reference`, `h = r_chosen - r_rejected` and the DPO-Positive penalty
    `P = dpop_lambda * max(0, -r_chosen)`:
    `sigmoid`: `-(1 - s) log sigmoid(beta (h - P)) - s log sigmoid(-beta (h - P))`;
    `ipo`: `(h - P - 1 / (2 beta))^2`.

    Args:
      policy_chosen, policy_rejected, reference_chosen, reference_rejected: `[B]` log-probs of the step, nats
        (sums, or means over the step's tokens for length-normalised ratios).
      config: a contrastive `LossConfig`.

    Returns:
      `[B]` losses, and the `[B]` implicit rewards `beta r`, their margin and whether it is positive.

    Source: DPO arXiv 2305.18290; IPO arXiv 2310.12036, eq. 17; DPO-Positive arXiv 2402.13228, eq. 3.
    """
    columns = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _contrast(*columns, config, config.beta, config.label_smoothing)


def _contrast(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    config: LossConfig,
    beta: float | Array,
    smoothing: float | Array,
) -> tuple[Array, dict[str, Array]]:
    """`pair_losses` with a beta and a label smoothing that may be traced, which those of a config are not."""
    ratio_chosen = _float32(policy_chosen) - jax.lax.stop_gradient(_float32(reference_chosen))
    ratio_rejected = _float32(policy_rejected) - jax.lax.stop_gradient(_float32(reference_rejected))
    h = ratio_chosen - ratio_rejected
    if config.dpop_lambda:
        h = h - config.dpop_lambda * jax.nn.relu(-ratio_chosen)
    if config.loss == "ipo":
        losses = jnp.square(h - 1 / (2 * beta))
    else:
        losses = -jax.nn.log_sigmoid(beta * h)
        if isinstance(smoothing, jax.core.Tracer) or smoothing:
            wrong_way = -jax.nn.log_sigmoid(-beta * h)
            losses = (1 - smoothing) * losses + smoothing * wrong_way
    margin = beta * (ratio_chosen - ratio_rejected)
    rewards = {
        "rewards/chosen": beta * ratio_chosen,
        "rewards/rejected": beta * ratio_rejected,
        "rewards/margin": margin,
        "rewards/accuracy": (margin > 0).astype(jnp.float32),
    }
    return losses, {name: jax.lax.stop_gradient(value) for name, value in rewards.items()}


def drop_rows(
    weights: Array, columns: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """Put 0 where the weight is 0, so that what a padding row holds (even NaN) reaches no sum and no gradient."""
    a, b, c, d = (jnp.where(weights > 0, column, 0) for column in columns)
    return a, b, c, d


def weighted_sum(values: Array, weights: Array) -> Array:
    """`sum_b w_b v_b` in float32; rows of weight 0 are left out even where they are not finite."""
    return jnp.sum(jnp.where(weights > 0, _float32(values), 0) * weights)


def weighted_mean(values: Array, weights: Array) -> Array:
    """`sum_b w_b v_b / sum_b w_b`, and 0 where there is no weight."""
    return safe_divide(weighted_sum(values, weights), jnp.sum(weights))


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """`numerator / denominator`, and 0 where the denominator is 0."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)


def _float32(values: Array) -> Array:
    # Half precision is widened, float64 (gradient checks) is kept.
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(jnp.result_type(values), jnp.float32))
