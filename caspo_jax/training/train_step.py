"""The jitted update: gradients of micro-batches summed exactly, then one optimiser step on donated buffers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from caspo_jax.errors import UserError
from caspo_jax.models.decoder import Remat
from caspo_jax.models.lora import add_lora
from caspo_jax.sharding import mesh_of, place, replicated, whole
from caspo_jax.training.config import LossConfig, TrainConfig
from caspo_jax.training.optimizer import learning_rates, make_optimizer
from caspo_jax.training.step_loss import (
    Denominators,
    LossSums,
    loss_denominators,
    step_loss_sums,
    total_loss,
)
from caspo_jax.types import PairBatch, TreeBatch

Batch = PairBatch | TreeBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that an update changes."""

    step: jax.Array  # [] int32, updates done
    params: Any  # the trainable parameters, in float32 or, with masters=none, in the model's own dtype
    opt_state: Any  # float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepOutput:
    """What an update reports, still on the device: sums of each micro-batch."""

    sums: tuple[LossSums, ...]
    grad_norm: jax.Array  # [] before clipping
    learning_rate: jax.Array  # []
    skipped: jax.Array  # [] bool, the update was left out because loss or gradient is not finite

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
            skipped=bool(host.skipped),
            pair_finite=[np.asarray(s.pair_finite) for s in host.sums],
            verified_finite=[np.asarray(s.verified_finite) for s in host.sums],
        )


@dataclasses.dataclass(frozen=True)
class StepReport:
    """An update's metrics on the host, and which rows of each micro-batch gave a finite loss."""

    metrics: dict[str, float]
    skipped: bool
    pair_finite: list[np.ndarray]  # [B] bool for each micro-batch
    verified_finite: list[np.ndarray]  # [M] bool


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What the compiled update depends on. Equal specs share their programs: a new round compiles nothing."""

    graphdef: Any
    dtypes: tuple[str, ...]  # of the model's own parameters, in tree order
    loss: LossConfig
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float | None
    head_chunk: int | None
    remat: Remat
    masters: str
    skip_nonfinite: bool
    mesh: Mesh | None = None
    shardings: tuple[Any, ...] | None = None  # of the parameters, in tree order; None without a mesh

    @classmethod
    def of(cls, graphdef: Any, params: Any, config: TrainConfig, mesh: Mesh | None = None) -> StepSpec:
        """The part of a `TrainConfig` that is compiled in, and where the parameters lie."""
        dtypes = tuple(str(leaf.dtype) for leaf in jax.tree.leaves(params))
        names = ("loss", "b1", "b2", "eps", "weight_decay", "clip_norm", "head_chunk", "remat")
        settings = {name: getattr(config, name) for name in (*names, "masters", "skip_nonfinite")}
        shardings = None
        if mesh is not None:
            shardings = tuple(
                leaf.sharding if getattr(leaf.sharding, "mesh", None) == mesh else replicated(mesh)
                for leaf in jax.tree.leaves(params)
            )
        return cls(graphdef, dtypes, **settings, mesh=mesh, shardings=shardings)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser at a rate of 1: the schedule's value is an argument of the update."""
        return make_optimizer(self)

    def like_params(self, tree: Any) -> Any:
        """Parameters or gradients, under jit, where the parameters lie."""
        if self.shardings is None:
            return tree
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, jax.lax.with_sharding_constraint(leaves, list(self.shardings)))

    def placed(self, state: TrainState) -> TrainState:
        """A state, under jit: parameters and their moments split alike, counts whole."""
        if self.shardings is None:
            return state
        params = self.like_params(state.params)
        shardings = jax.tree.unflatten(jax.tree.structure(params), self.shardings)
        opt_state = optax.tree_map_params(
            self.optimizer,
            lambda moment, sharding: jax.lax.with_sharding_constraint(moment, sharding),
            state.opt_state,
            shardings,
            transform_non_params=lambda count: whole(self.mesh, count),
        )
        return TrainState(whole(self.mesh, state.step), params, opt_state)


class TrainStep:
    """One update: `state, output = step(state, micro_batches)`.

    The gradient is that of the whole batch: each micro-batch contributes its unreduced sums over the
    denominators of all of them, which are known from weights and masks before any forward pass. So micro-batches
    may differ in rows, tokens and weight. One micro-batch runs as a single program, `fused_update`.
    """

    def __init__(self, spec: StepSpec, frozen: Any, learning_rates: np.ndarray):
        self.spec = spec
        self.frozen, self._learning_rates = frozen, learning_rates

    def init(self, params: Any) -> TrainState:
        """The state of update 0; copies the parameters, so that donation leaves the caller's model alone."""
        if self.spec.mesh is not None:
            return _init_on_mesh(self.spec, params)
        params = jax.tree.map(lambda p: jnp.array(p, _kept_dtype(self.spec), copy=True), params)
        return TrainState(jnp.zeros((), jnp.int32), params, _init(self.spec, params))

    def __call__(
        self, state: TrainState, micro_batches: Sequence[Batch], number: int
    ) -> tuple[TrainState, StepOutput]:
        """Update `number` (0, 1, ...) from host micro-batches (NumPy `PairBatch`es)."""
        learning_rate = self._learning_rates[min(number, len(self._learning_rates) - 1)]
        parts = [loss_denominators(batch, self.spec.loss) for batch in micro_batches]
        totals = Denominators(
            pairs=np.float32(sum(float(part.pairs) for part in parts)),  # type: ignore[arg-type]
            nll=np.float32(sum(float(part.nll) for part in parts)),  # type: ignore[arg-type]
        )
        if len(micro_batches) == 1:
            batch = place(self.spec.mesh, micro_batches[0])
            return fused_update(self.spec, state, self.frozen, batch, totals, learning_rate)
        total = _zeros(self.spec, state.params)
        sums = []
        for batch in micro_batches:
            total, part_sums = _add_gradients(
                self.spec, state.params, total, self.frozen, place(self.spec.mesh, batch), totals
            )
            sums.append(part_sums)
        state, grad_norm, skipped = _update(self.spec, state, *total, learning_rate)
        return state, StepOutput(tuple(sums), grad_norm, learning_rate, skipped)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def fused_update(
    spec: StepSpec,
    state: TrainState,
    frozen: Any,
    batch: Batch,
    totals: Denominators,
    learning_rate: jax.Array,
) -> tuple[TrainState, StepOutput]:
    """Gradient and update of a batch of one micro-batch, in one program."""
    gradients, loss, sums = _gradients(spec, state.params, frozen, batch, totals)
    state, grad_norm, skipped = _apply(spec, state, gradients, loss, learning_rate)
    return state, StepOutput((sums,), grad_norm, jnp.asarray(learning_rate), skipped)


def _gradients(
    spec: StepSpec, params: Any, frozen: Any, batch: Batch, totals: Denominators
) -> tuple[Any, jax.Array, LossSums]:
    def loss(params: Any) -> tuple[jax.Array, LossSums]:
        # Masters are float32; the forward pass sees the model's own dtypes.
        leaves, tree = jax.tree.flatten(params)
        own = jax.tree.unflatten(tree, [leaf.astype(dtype) for leaf, dtype in zip(leaves, spec.dtypes)])
        model = nnx.merge(spec.graphdef, own, frozen)
        sums = step_loss_sums(model, batch, spec.loss, chunk=spec.head_chunk, remat=spec.remat)
        return total_loss(sums, totals, spec.loss), sums

    (value, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    gradients = spec.like_params(jax.tree.map(_as_float32, gradients))
    return gradients, whole(spec.mesh, value), whole(spec.mesh, sums)


def _apply(
    spec: StepSpec, state: TrainState, gradients: Any, loss: jax.Array, learning_rate: jax.Array
) -> tuple[TrainState, jax.Array, jax.Array]:
    wide = jax.tree.map(_as_float32, state.params)
    updates, opt_state = spec.optimizer.update(gradients, state.opt_state, wide)
    params = jax.tree.map(lambda p, u: p + learning_rate * u, wide, updates)
    params = _stored_like(state.params, params, jax.random.fold_in(jax.random.key(0), state.step))
    grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)))
    skipped = jnp.zeros((), bool)
    if spec.skip_nonfinite:
        skipped = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        params, opt_state = jax.tree.map(
            lambda old, new: jnp.where(skipped, old, new),
            (state.params, state.opt_state),
            (params, opt_state),
        )
    state = spec.placed(TrainState(state.step + 1, params, opt_state))
    return state, whole(spec.mesh, grad_norm), whole(spec.mesh, skipped)


def _kept_dtype(spec: StepSpec) -> Any:
    """The dtype of the parameters in the state; None: the model's own."""
    return jnp.float32 if spec.masters == "float32" else None


def _as_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _stored_like(old: Any, new: Any, key: jax.Array) -> Any:
    """float32 parameters in the dtypes of `old`: as they are, or rounded to bfloat16 at random."""
    leaves, tree = jax.tree.flatten(new)
    wanted = [leaf.dtype for leaf in jax.tree.leaves(old)]
    stored = [
        stochastic_round(leaf, jax.random.fold_in(key, i)) if dtype == jnp.bfloat16 else leaf.astype(dtype)
        for i, (leaf, dtype) in enumerate(zip(leaves, wanted, strict=True))
    ]
    return jax.tree.unflatten(tree, stored)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to bfloat16, up or down with probabilities that make the mean exact.

    An update far below a weight's last bit then moves it now and then, where rounding to nearest would lose it.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _add_gradients(
    spec: StepSpec,
    params: Any,
    total: tuple[Any, jax.Array],
    frozen: Any,
    batch: Batch,
    totals: Denominators,
) -> tuple[tuple[Any, jax.Array], LossSums]:
    """Gradients and loss of one micro-batch, added to those of the ones before."""
    gradients, loss, sums = _gradients(spec, params, frozen, batch, totals)
    return (spec.like_params(jax.tree.map(jnp.add, total[0], gradients)), total[1] + loss), sums


@functools.partial(jax.jit, static_argnums=0)
def _zeros(spec: StepSpec, params: Any) -> tuple[Any, jax.Array]:
    """Gradients and loss of no micro-batch."""
    gradients = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
    return spec.like_params(gradients), whole(spec.mesh, jnp.zeros((), jnp.float32))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(
    spec: StepSpec, state: TrainState, gradients: Any, loss: jax.Array, learning_rate: jax.Array
) -> tuple[TrainState, jax.Array, jax.Array]:
    return _apply(spec, state, gradients, loss, learning_rate)


@functools.partial(jax.jit, static_argnums=0)
def _init(spec: StepSpec, params: Any) -> Any:
    return spec.optimizer.init(jax.tree.map(_as_float32, params))


def trainable_model(model: Any, config: TrainConfig) -> Any:
    """The model that a run trains: with fresh adapters if `config.lora` asks for them and it has none.

    Raises:
      UserError: the model has adapters of another shape than `config.lora`.
    """
    present = getattr(model, "lora", None)
    if config.lora is None or present == config.lora:
        return model
    if present is not None:
        raise UserError(f"lora: the model has {present}, the run asks for {config.lora}: merge_lora() first")
    return add_lora(model, config.lora, jax.random.key(config.seed))


@functools.partial(jax.jit, static_argnums=0)
def _init_on_mesh(spec: StepSpec, params: Any) -> TrainState:
    kept = jax.tree.map(lambda p: p.astype(_kept_dtype(spec) or p.dtype), params)
    opt_state = spec.optimizer.init(jax.tree.map(_as_float32, params))
    return spec.placed(TrainState(jnp.zeros((), jnp.int32), kept, opt_state))


def make_train_step(
    model: Any, config: TrainConfig, total_steps: int, mesh: Mesh | None = None
) -> tuple[TrainStep, TrainState]:
    """The jitted update of a model's parameters and the state to start from.

    Args:
      model: an `nnx.Module`; its `nnx.Param`s are trained, any other variables stay as they are.
      config: loss, optimiser, schedule.
      total_steps: updates of the whole run: where the schedule ends.
      mesh: devices to split the batch over, by default the model's own; the parameters stay where they are.
    """
    graphdef, params, frozen = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    spec = StepSpec.of(graphdef, params, config, mesh or mesh_of(model))
    step = TrainStep(spec, frozen, learning_rates(config, total_steps))
    return step, step.init(params)


def trained_model(model: Any, state: TrainState) -> Any:
    """A new model like `model`, with the state's parameters in the model's dtype; adapters stay unmerged."""
    graphdef, params, frozen = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    # Under jit, so that parts which other processes hold stay where they are.
    new = jax.tree.map(lambda p, old: _copied(p, old.dtype), state.params, params)
    return nnx.merge(graphdef, new, frozen)


@functools.partial(jax.jit, static_argnums=1)
def _copied(array: jax.Array, dtype: Any) -> jax.Array:
    return jnp.array(array, dtype, copy=True)


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0
