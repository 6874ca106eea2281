"""The jitted update: gradients of micro-batches summed exactly, then one optimiser step on donated buffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from caspo_jax.sharding import named_sharding
from caspo_jax.training.config import LossConfig, TrainConfig
from caspo_jax.training.optimizer import make_optimizer, make_schedule
from caspo_jax.training.step_loss import (
    Denominators,
    LossSums,
    loss_denominators,
    step_loss_sums,
    total_loss,
)
from caspo_jax.types import PairBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that an update changes."""

    step: jax.Array  # [] int32, updates done
    params: Any  # the trainable parameters, in float32 whatever the model's dtype
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepOutput:
    """What an update reports, still on the device: sums of each micro-batch."""

    sums: tuple[LossSums, ...]
    grad_norm: jax.Array  # [] before clipping
    learning_rate: jax.Array  # []

    def fetch(self, config: LossConfig) -> StepReport:
        """Bring it to the host (blocks until the update is done) and reduce it over the micro-batches."""
        host: StepOutput = jax.device_get(self)
        pairs = sum(float(s.pairs) for s in host.sums)
        nll = sum(float(s.nll) for s in host.sums)
        pair_weight = sum(float(s.denominators.pairs) for s in host.sums)
        nll_weight = sum(float(s.denominators.nll) for s in host.sums)
        loss = config.nll_weight * _divide(nll, nll_weight)
        if config.contrastive:
            loss += _divide(pairs, pair_weight)
        metrics = {"loss": loss}
        for name in host.sums[0].metrics:
            total = sum(float(s.metrics[name][0]) for s in host.sums)
            weight = sum(float(s.metrics[name][1]) for s in host.sums)
            metrics[name] = total if name in ("tokens", "step_tokens") else _divide(total, weight)
        metrics["grad_norm"] = float(host.grad_norm)
        metrics["learning_rate"] = float(host.learning_rate)
        return StepReport(
            metrics=metrics,
            pair_finite=[np.asarray(s.pair_finite) for s in host.sums],
            verified_finite=[np.asarray(s.verified_finite) for s in host.sums],
        )


@dataclasses.dataclass(frozen=True)
class StepReport:
    """An update's metrics on the host, and which rows of each micro-batch gave a finite loss."""

    metrics: dict[str, float]
    pair_finite: list[np.ndarray]  # [B] bool for each micro-batch
    verified_finite: list[np.ndarray]  # [M] bool


class TrainStep:
    """One update: `state, output = step(state, micro_batches)`.

    The gradient is that of the whole batch: each micro-batch contributes its unreduced sums over the
    denominators of all of them, which are known from weights and masks before any forward pass. So micro-batches
    may differ in rows, tokens and weight. One micro-batch runs as a single program (`fused`).
    """

    def __init__(
        self,
        graphdef: Any,
        frozen: Any,
        dtypes: Any,
        config: TrainConfig,
        total_steps: int,
        mesh: Mesh | None = None,
    ):
        self.optimizer = make_optimizer(config, total_steps)
        self._schedule = make_schedule(config, total_steps)
        self._graphdef, self._frozen, self._dtypes = graphdef, frozen, dtypes
        self._config, self._mesh = config, mesh
        self.fused = jax.jit(self._fused, donate_argnums=0)
        self._accumulate = jax.jit(self._add_gradients, donate_argnums=1)
        self._apply = jax.jit(self._update, donate_argnums=0)

    def init(self, params: Any) -> TrainState:
        """The state of update 0; copies the parameters, so that donation leaves the caller's model alone."""
        params = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        if self._mesh is None:
            return TrainState(jnp.zeros((), jnp.int32), params, jax.jit(self.optimizer.init)(params))
        replicated = NamedSharding(self._mesh, PartitionSpec())
        shapes = jax.eval_shape(self.optimizer.init, params)
        shardings = optax.tree_map_params(
            self.optimizer,
            lambda _, param: param.sharding,
            shapes,
            params,
            transform_non_params=lambda _: replicated,
        )
        opt_state = jax.jit(self.optimizer.init, out_shardings=shardings)(params)
        return TrainState(jax.device_put(jnp.zeros((), jnp.int32), replicated), params, opt_state)

    def __call__(
        self, state: TrainState, micro_batches: Sequence[PairBatch]
    ) -> tuple[TrainState, StepOutput]:
        """One update from host micro-batches (NumPy `PairBatch`es)."""
        parts = [loss_denominators(batch, self._config.loss) for batch in micro_batches]
        whole = Denominators(
            pairs=np.float32(sum(float(part.pairs) for part in parts)),  # type: ignore[arg-type]
            nll=np.float32(sum(float(part.nll) for part in parts)),  # type: ignore[arg-type]
        )
        if len(micro_batches) == 1:
            return self.fused(state, self._frozen, self._place(micro_batches[0]), whole)
        gradients = jax.tree.map(jnp.zeros_like, state.params)
        sums = []
        for batch in micro_batches:
            gradients, part_sums = self._accumulate(
                state.params, gradients, self._frozen, self._place(batch), whole
            )
            sums.append(part_sums)
        state, grad_norm, learning_rate = self._apply(state, gradients)
        return state, StepOutput(tuple(sums), grad_norm, learning_rate)

    def _place(self, batch: PairBatch) -> PairBatch:
        """Rows split over the mesh's batch axes; without a mesh, jit's own transfer."""
        mesh = self._mesh
        if mesh is None:
            return batch
        axes = ("batch", "length")
        return jax.tree.map(
            lambda a: jax.device_put(a, named_sharding(mesh, axes[: np.ndim(a)], np.shape(a))), batch
        )

    def _gradients(
        self, params: Any, frozen: Any, batch: PairBatch, whole: Denominators
    ) -> tuple[Any, LossSums]:
        config = self._config

        def loss(params: Any) -> tuple[jax.Array, LossSums]:
            # Master parameters are float32; the forward pass sees the model's own dtype.
            own = jax.tree.map(lambda p, dtype: p.astype(dtype), params, self._dtypes)
            model = nnx.merge(self._graphdef, own, frozen)
            sums = step_loss_sums(model, batch, config.loss, chunk=config.head_chunk, remat=config.remat)
            return total_loss(sums, whole, config.loss), sums

        return jax.grad(loss, has_aux=True)(params)

    def _add_gradients(
        self, params: Any, gradients: Any, frozen: Any, batch: PairBatch, whole: Denominators
    ) -> tuple[Any, LossSums]:
        new, sums = self._gradients(params, frozen, batch, whole)
        return jax.tree.map(jnp.add, gradients, new), sums

    def _update(self, state: TrainState, gradients: Any) -> tuple[TrainState, jax.Array, jax.Array]:
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        return new, optax.global_norm(gradients), jnp.asarray(self._schedule(state.step), jnp.float32)

    def _fused(
        self, state: TrainState, frozen: Any, batch: PairBatch, whole: Denominators
    ) -> tuple[TrainState, StepOutput]:
        gradients, sums = self._gradients(state.params, frozen, batch, whole)
        state, grad_norm, learning_rate = self._update(state, gradients)
        return state, StepOutput((sums,), grad_norm, learning_rate)


def make_train_step(
    model: Any, config: TrainConfig, total_steps: int, mesh: Mesh | None = None
) -> tuple[TrainStep, TrainState]:
    """The jitted update of a model's parameters and the state to start from.

    Args:
      model: an `nnx.Module`; its `nnx.Param`s are trained, any other variables stay as they are.
      config: loss, optimiser, schedule.
      total_steps: updates of the whole run: where the schedule ends.
      mesh: devices to split the batch over; the parameters stay where they are.
    """
    graphdef, params, frozen = nnx.split(model, nnx.Param, ...)
    dtypes = jax.tree.map(lambda p: p.dtype, params)
    step = TrainStep(graphdef, frozen, dtypes, config, total_steps, mesh)
    return step, step.init(params)


def trained_model(model: Any, state: TrainState) -> Any:
    """A new model like `model`, with the state's parameters in the model's dtype."""
    graphdef, params, frozen = nnx.split(model, nnx.Param, ...)
    new = jax.tree.map(lambda p, old: jnp.array(p, old.dtype, copy=True), state.params, params)
    return nnx.merge(graphdef, new, frozen)


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0
