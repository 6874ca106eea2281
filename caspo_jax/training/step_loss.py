"""The step-masked preference loss of a `PairBatch`: one forward pass, every option, exact partial sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.checks import of_kind
from caspo_jax.errors import UserError
from caspo_jax.models.remat import Remat
from caspo_jax.training.config import LossConfig
from caspo_jax.training.losses import drop_rows, pair_losses, safe_divide, weighted_sum
from caspo_jax.training.step_logprobs import StepSums, check_batch, concatenate_rows, step_sums, tree_sums
from caspo_jax.types import PairBatch, StepRows, TreeBatch

Array = jax.Array
Divide = Callable[[Any, Any], Any]


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
    model: Any, batch: PairBatch | TreeBatch, config: LossConfig | None = None, *, chunk: int | None = None
) -> tuple[Array, dict[str, Array]]:
    """The step-masked preference loss of a batch, with every option of `LossConfig`.

    `loss = sum_b w_b l_b / sum_b w_b + alpha sum_s w_s NLL_s / sum_s w_s`, where `l_b` is `pair_losses` on the
    log-probs summed over the step's tokens (divided by their number, if length-normalised), and `NLL_s` the negative
    log-prob of a chosen step, or of a trace's verified ones, by its length (`nll_average="token"`: one mean over all tokens).
    `sft` and `rft` are the second term alone, on the chosen and on the verified steps. Works under
    `nnx.value_and_grad`. Logits of `[B, T, V]` are never held.

    Args:
      model: a Decoder (`hidden_states`, `unembedding`).
      batch: `[B, T]` rows and `[B]` weights and reference log-probs, padding rows with weight 0; or packed trees.
      config: default plain DPO.
      chunk: columns of step tokens whose logits are held at once (`step_sums`).

    Returns:
      The scalar loss and a dict of scalars: `loss`, `rewards/{chosen,rejected,margin,accuracy}`,
      `logps/{chosen,rejected}` (a step) and `..._per_token`, `entropy/{chosen,rejected}` (nats a token),
      `displacement` (chosen log-prob minus the reference's, nats a step), `nll`, `tokens` (all tokens read) and
      `step_tokens` (those the loss looks at). `sft` and `rft` run only the rows they train on and have no rewards.

    Raises:
      UserError: something else than a batch or a LossConfig; arrays whose shapes do not fit each other; the loss needs
        verified steps and the batch has none.

    Source: DPO arXiv 2305.18290; NLL term: IRPO arXiv 2404.19733; step masks: Step-DPO arXiv 2406.18629.

    >>> from caspo_jax.models import load_pretrained
    >>> from caspo_jax.preferences import batch_pairs, tokenize_pairs, trl_from_record
    >>> from caspo_jax.tasks import get_task
    >>> from caspo_jax.training import reference_logprobs
    >>> model, tokenizer = load_pretrained(get_task("graph").policy_path, dtype="float32")
    >>> record = {"prompt": "a = 2; b: a + 3. b?", "chosen": "b = 2 + 3 = 5", "rejected": "b = 2 + 3 = 6"}
    >>> pairs = tokenize_pairs([trl_from_record(record)], tokenizer)
    >>> batches, _ = batch_pairs(pairs, length_buckets=(32, 64), batch_size=1, pad_id=0)
    >>> (batch,) = reference_logprobs(model, batches)
    >>> loss, aux = step_dpo_loss(model, batch)
    >>> round(float(loss), 4)  # log 2: the policy is its own reference still
    0.6931
    """
    config = LossConfig() if config is None else config
    of_kind(batch, (PairBatch, TreeBatch), "step_dpo_loss", "batch", "batch_pairs makes them of pairs")
    of_kind(config, LossConfig, "step_dpo_loss", "config")
    sums = step_loss_sums(model, batch, config, chunk=chunk)
    loss = total_loss(sums, sums.denominators, config)
    return loss, jax.lax.stop_gradient(reduce_metrics(sums, config))


def step_loss_sums(
    model: Any,
    batch: PairBatch | TreeBatch,
    config: LossConfig,
    *,
    chunk: int | None = None,
    remat: Remat = "none",
) -> LossSums:
    """The unreduced sums behind `step_dpo_loss`: add them over micro-batches, then divide once."""
    if config.uses_verified and batch.verified is None:
        raise UserError(
            f"loss={config.loss} with nll_on={config.nll_on} needs verified steps: give batches with `verified`"
        )
    if isinstance(batch, TreeBatch):
        steps = _tree_steps(tree_sums(model, batch, chunk, remat), batch, config)
        read, scored = batch.subtree_end > 0, batch.target_mask
    else:
        check_batch(batch)
        groups = _row_groups(batch, config)
        packed = concatenate_rows(*groups.values())
        steps = _split(step_sums(model, packed, chunk, remat), groups)
        read, scored = packed.mask, packed.step_mask
    columns = [batch.weight, batch.reference_chosen, batch.reference_rejected]
    weight, *references = (jnp.asarray(x, jnp.float32).reshape(-1) for x in columns)

    one = jnp.ones((), jnp.float32)
    metrics: dict[str, tuple[Array, Array]] = {
        "tokens": (jnp.sum(read, dtype=jnp.float32), one),
        "step_tokens": (jnp.sum(scored, dtype=jnp.float32), one),
    }
    pair_sum = jnp.zeros((), jnp.float32)
    pair_finite = jnp.ones(weight.shape, bool)
    for side in ("chosen", "rejected"):
        if side in steps:
            metrics.update(_side_metrics(side, steps[side], weight))
    if config.contrastive:
        losses, rewards = pair_losses(*_pair_columns(steps, references, weight, config), config=config)
        pair_sum = weighted_sum(losses, weight)
        pair_finite = jnp.isfinite(losses)
        total = jnp.sum(weight)
        metrics |= {name: (weighted_sum(value, weight), total) for name, value in rewards.items()}
        gap = steps["chosen"].logprob - references[0]
        metrics["displacement"] = (weighted_sum(gap, weight), total)
    elif "chosen" in steps:
        pair_finite = jnp.isfinite(jnp.where(weight > 0, steps["chosen"].logprob, 0))

    verified_finite = jnp.ones((0,), bool)
    if "verified" in steps:
        verified_finite = jnp.isfinite(steps["verified"].logprob)
    nll_sum = _nll_sum(steps, weight, config)
    nll_tokens = steps["verified" if config.uses_verified else "chosen"].tokens
    denominators = Denominators(jnp.sum(weight), _nll_weight(weight, nll_tokens, config))
    metrics["nll"] = (nll_sum, denominators.nll)
    return LossSums(
        pairs=pair_sum,
        nll=nll_sum,
        denominators=denominators,
        metrics=jax.lax.stop_gradient(metrics),
        pair_finite=pair_finite,
        verified_finite=verified_finite,
    )


def _row_groups(batch: PairBatch, config: LossConfig) -> dict[str, StepRows]:
    """The rows that the loss reads."""
    groups: dict[str, StepRows] = {}
    if config.uses_pairs:
        groups["chosen"] = batch.chosen
    if config.contrastive:
        groups["rejected"] = batch.rejected
    if config.uses_verified and batch.verified is not None:
        groups["verified"] = batch.verified
    return groups


def _tree_steps(sums: StepSums, batch: TreeBatch, config: LossConfig) -> dict[str, StepSums]:
    """The items that the loss reads, [R * P] or [R * V]."""
    pairs = batch.weight.shape[1]
    bounds = {"chosen": (0, pairs), "rejected": (pairs, 2 * pairs), "verified": (2 * pairs, None)}
    used = {"chosen": config.uses_pairs, "rejected": config.contrastive, "verified": config.uses_verified}
    return {
        side: StepSums(*(column[:, slice(*bounds[side])].reshape(-1) for column in sums))
        for side, wanted in used.items()
        if wanted
    }


def loss_denominators(batch: PairBatch | TreeBatch, config: LossConfig) -> Denominators:
    """The denominators of a batch of NumPy arrays, from its weights and masks alone."""
    weight = np.asarray(batch.weight, np.float32).reshape(-1)
    if isinstance(batch, TreeBatch):
        pairs, verified = batch.weight.shape[1], batch.verified.shape[1]
        items = 2 * pairs + verified
        tokens: Any = np.stack([np.bincount(owner, minlength=items + 1) for owner in batch.member_item])
        tokens = tokens[:, 2 * pairs : items] if config.uses_verified else tokens[:, :pairs]
    else:
        rows: Any = batch.verified if config.uses_verified else batch.chosen
        tokens = rows.step_mask[:, 1:].sum(axis=1)
    return Denominators(weight.sum(), _nll_weight(weight, tokens.reshape(-1), config))  # type: ignore[arg-type]


def _nll_weight(weight: Any, tokens: Any, config: LossConfig) -> Any:
    """What the NLL term is divided by, from the weights [n] of the pairs and the token counts of the steps."""
    share = (tokens > 0).astype("float32")
    if not config.uses_verified:
        share = share * weight
    return (share * tokens).sum() if config.nll_average == "token" else share.sum()


def total_loss(
    sums: LossSums, denominators: Denominators, config: LossConfig, divide: Divide = safe_divide
) -> Any:
    """The loss of `sums` over given denominators: those of the whole batch, when `sums` is a part of it.

    `divide` is that of arrays, or on the host of floats; it gives 0 where the denominator is 0.
    """
    loss = 0.0
    if config.contrastive:
        loss = loss + divide(sums.pairs, denominators.pairs)
    if config.nll_weight:
        loss = loss + config.nll_weight * divide(sums.nll, denominators.nll)
    return loss


def reduce_metrics(sums: LossSums, config: LossConfig, divide: Divide = safe_divide) -> dict[str, Any]:
    """The loss, and sums to means; `tokens` and `step_tokens` stay totals. `divide` as of `total_loss`."""
    means = {name: divide(total, weight) for name, (total, weight) in sums.metrics.items()}
    means |= {name: sums.metrics[name][0] for name in ("tokens", "step_tokens")}
    return {"loss": total_loss(sums, sums.denominators, config, divide), **means}


def add_up(parts: Sequence[LossSums]) -> LossSums:
    """The sums of a batch from those of its micro-batches, on the host and in float64."""

    def add(*values: Any) -> Any:
        return np.concatenate(values) if np.ndim(values[0]) else sum(map(float, values))

    return jax.tree.map(add, *parts)


def _pair_columns(
    steps: dict[str, StepSums], references: Sequence[Array], weight: Array, config: LossConfig
) -> tuple[Array, Array, Array, Array]:
    columns = []
    for side, reference in zip(("chosen", "rejected"), references, strict=True):
        sums = steps[side]
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
