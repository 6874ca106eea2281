"""The step-masked preference loss of a `PairBatch`: one forward pass, every option, exact partial sums."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from caspo_jax.errors import UserError
from caspo_jax.training.config import LossConfig
from caspo_jax.training.losses import drop_rows, pair_losses, safe_divide, weighted_sum
from caspo_jax.training.step_logprobs import StepSums, concatenate_rows, step_sums
from caspo_jax.types import PairBatch, StepRows

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Denominators:
    """What the loss's two sums are divided by: known from the batch alone, so it can be added up beforehand."""

    pairs: Array  # [] sum of the pairs' weights
    nll: Array  # [] weight of the steps (or tokens) under the NLL term


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """Unreduced loss and metrics of a (micro-)batch; the sums of micro-batches are the sums of the batch."""

    pairs: Array  # [] weighted sum of the pairs' losses
    nll: Array  # [] weighted sum of the NLL term
    denominators: Denominators
    metrics: dict[str, tuple[Array, Array]]  # name -> (sum, weight), both []
    pair_finite: Array  # [B] bool; padding is finite
    verified_finite: Array  # [M] bool


def step_dpo_loss(
    model: Any, batch: PairBatch, config: LossConfig | None = None, *, chunk: int | None = None
) -> tuple[Array, dict[str, Array]]:
    """The step-masked preference loss of a batch, with every option of `LossConfig`.

    `loss = sum_b w_b l_b / sum_b w_b + alpha sum_s w_s NLL_s / sum_s w_s`, where `l_b` is `pair_losses` on the
    log-probs summed over the step's tokens (divided by their number, if length-normalised), and `NLL_s` the negative
    log-prob of a step, chosen or verified, by its length (`nll_average="token"`: one mean over all tokens).
    `sft` and `rft` are the second term alone, on the chosen and on the verified steps. Works under
    `nnx.value_and_grad`. Logits of `[B, T, V]` are never held.

    Args:
      model: a Decoder (`hidden_states`, `unembedding`).
      batch: `[B, T]` rows and `[B]` weights and reference log-probs; padding rows have weight 0.
      config: default plain DPO.
      chunk: columns of step tokens whose logits are held at once (`step_sums`).

    Returns:
      The scalar loss and a dict of scalars: `loss`, `rewards/{chosen,rejected,margin,accuracy}`,
      `logps/{chosen,rejected}` (a step) and `..._per_token`, `entropy/{chosen,rejected}` (nats a token),
      `displacement` (chosen log-prob minus the reference's, nats a step), `nll`, `tokens` (all tokens read) and
      `step_tokens` (those the loss looks at). `sft` and `rft` run only the rows they train on and have no rewards.

    Raises:
      UserError: the loss needs verified steps and the batch has none.

    Source: DPO arXiv 2305.18290; NLL term: IRPO arXiv 2404.19733; step masks: Step-DPO arXiv 2406.18629.
    """
    config = config or LossConfig()
    sums = step_loss_sums(model, batch, config, chunk=chunk)
    loss = total_loss(sums, sums.denominators, config)
    return loss, reduce_metrics(sums, config)


def step_loss_sums(
    model: Any, batch: PairBatch, config: LossConfig, *, chunk: int | None = None, remat: bool = False
) -> LossSums:
    """The unreduced sums behind `step_dpo_loss`: add them over micro-batches, then divide once."""
    groups: dict[str, StepRows] = {}
    if config.uses_pairs:
        groups["chosen"] = batch.chosen
    if config.contrastive:
        groups["rejected"] = batch.rejected
    if config.uses_verified:
        if batch.verified is None:
            raise UserError(
                f"loss={config.loss} with nll_on={config.nll_on} needs verified steps: give batches with `verified`"
            )
        groups["verified"] = batch.verified
    packed = concatenate_rows(*groups.values())
    steps = _split(step_sums(model, packed, chunk, remat), groups)
    weight = jnp.asarray(batch.weight, jnp.float32)

    one = jnp.ones((), jnp.float32)
    metrics: dict[str, tuple[Array, Array]] = {
        "tokens": (jnp.sum(packed.mask, dtype=jnp.float32), one),
        "step_tokens": (jnp.sum(packed.step_mask, dtype=jnp.float32), one),
    }
    pair_sum = jnp.zeros((), jnp.float32)
    pair_finite = jnp.ones(weight.shape, bool)
    for side in ("chosen", "rejected"):
        if side in steps:
            metrics.update(_side_metrics(side, steps[side], weight))
    if config.contrastive:
        losses, rewards = pair_losses(*_pair_columns(steps, batch, weight, config), config=config)
        pair_sum = weighted_sum(losses, weight)
        pair_finite = jnp.isfinite(losses)
        total = jnp.sum(weight)
        metrics |= {name: (weighted_sum(value, weight), total) for name, value in rewards.items()}
        gap = steps["chosen"].logprob - batch.reference_chosen
        metrics["displacement"] = (weighted_sum(gap, weight), total)
    elif "chosen" in steps:
        pair_finite = jnp.isfinite(jnp.where(weight > 0, steps["chosen"].logprob, 0))

    verified_finite = jnp.ones((0,), bool)
    if "verified" in steps:
        verified_finite = jnp.isfinite(steps["verified"].logprob)
    nll_sum = _nll_sum(steps, weight, config)
    denominators = loss_denominators(batch, config)
    metrics["nll"] = (nll_sum, denominators.nll)
    return LossSums(
        pairs=pair_sum,
        nll=nll_sum,
        denominators=denominators,
        metrics=jax.lax.stop_gradient(metrics),
        pair_finite=pair_finite,
        verified_finite=verified_finite,
    )


def loss_denominators(batch: PairBatch, config: LossConfig) -> Denominators:
    """The denominators of a batch, from its weights and masks alone (NumPy in, NumPy out)."""
    if config.uses_verified:
        tokens = batch.verified.step_mask[:, 1:].sum(axis=1)  # type: ignore[union-attr]
        weight = (tokens > 0).astype("float32")
    else:
        tokens = batch.chosen.step_mask[:, 1:].sum(axis=1)
        weight = batch.weight * (tokens > 0)
    if config.nll_average == "token":
        weight = weight * tokens
    return Denominators(pairs=batch.weight.sum(), nll=weight.sum())


def total_loss(sums: LossSums, denominators: Denominators, config: LossConfig) -> Array:
    """The loss of `sums` over given denominators: those of the whole batch, when `sums` is a part of it."""
    loss = jnp.zeros((), jnp.float32)
    if config.contrastive:
        loss = loss + safe_divide(sums.pairs, denominators.pairs)
    if config.nll_weight:
        loss = loss + config.nll_weight * safe_divide(sums.nll, denominators.nll)
    return loss


def reduce_metrics(sums: LossSums, config: LossConfig) -> dict[str, Array]:
    """Sums to means; `tokens` and `step_tokens` stay totals."""
    means = {name: safe_divide(total, weight) for name, (total, weight) in sums.metrics.items()}
    means |= {name: sums.metrics[name][0] for name in ("tokens", "step_tokens")}
    return jax.lax.stop_gradient({"loss": total_loss(sums, sums.denominators, config), **means})


def _pair_columns(
    steps: dict[str, StepSums], batch: PairBatch, weight: Array, config: LossConfig
) -> tuple[Array, Array, Array, Array]:
    columns = []
    for sums, reference in (
        (steps["chosen"], batch.reference_chosen),
        (steps["rejected"], batch.reference_rejected),
    ):
        length = jnp.maximum(sums.tokens, 1) if config.length_normalised else 1.0
        columns.append((sums.logprob / length, reference / length))
    (policy_chosen, reference_chosen), (policy_rejected, reference_rejected) = columns
    return drop_rows(weight, (policy_chosen, policy_rejected, reference_chosen, reference_rejected))


def _nll_sum(steps: dict[str, StepSums], weight: Array, config: LossConfig) -> Array:
    sums = steps["verified" if config.uses_verified else "chosen"]
    if config.uses_verified:
        weight = (sums.tokens > 0).astype(jnp.float32)
    nll = -sums.logprob
    if config.nll_average == "step":
        nll = nll / jnp.maximum(sums.tokens, 1)
    return weighted_sum(nll, weight)


def _side_metrics(side: str, sums: StepSums, weight: Array) -> dict[str, tuple[Array, Array]]:
    total, tokens = jnp.sum(weight), weighted_sum(sums.tokens, weight)
    logprob = weighted_sum(sums.logprob, weight)
    return {
        f"logps/{side}": (logprob, total),
        f"logps/{side}_per_token": (logprob, tokens),
        f"entropy/{side}": (weighted_sum(sums.entropy, weight), tokens),
    }


def _split(sums: StepSums, groups: dict[str, StepRows]) -> dict[str, StepSums]:
    parts, start = {}, 0
    for name, rows in groups.items():
        end = start + rows.token_ids.shape[0]
        parts[name] = StepSums(*(column[start:end] for column in sums))
        start = end
    return parts
