"""The jitted update: gradients of micro-batches summed exactly, then one optimiser step on donated buffers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from caspo_jax.errors import UserError
from caspo_jax.models.lora import add_lora
from caspo_jax.sharding import mesh_of, place, replicated, whole
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.optimizer import learning_rates
from caspo_jax.training.rounding import stored_like
from caspo_jax.training.step_loss import (
    Denominators,
    LossSums,
    loss_denominators,
    step_loss_sums,
    total_loss,
)
from caspo_jax.training.step_state import StepOutput, StepSpec, TrainState
from caspo_jax.types import PairBatch, TreeBatch

Batch = PairBatch | TreeBatch


class TrainStep:
    """One update: `state, output = step(state, micro_batches)`.

    The gradient is that of the whole batch: each micro-batch contributes its unreduced sums over the
    denominators of all of them, which are known from weights and masks before any forward pass. So micro-batches
    may differ in rows, tokens and weight. One micro-batch runs as a single program, `fused_update`; not so with
    `accumulate`, for runs where most updates have several: theirs is then the only large program to compile.
    """

    def __init__(
        self,
        spec: StepSpec,
        frozen: Any,
        learning_rates: np.ndarray,
        accumulate: bool = False,
        *,
        seed: int = 0,
    ):
        self.spec = spec
        self.frozen, self._learning_rates = frozen, learning_rates
        self._accumulate = accumulate
        # Of the rounding; no part of the spec, for each round has another.
        self._seed = np.uint32(seed % 2**32)

    def init(self, params: Any) -> TrainState:
        """The state of update 0; copies the parameters, so that donation leaves the caller's model alone."""
        if self.spec.mesh is not None:
            return _init_on_mesh(self.spec, params)
        params = jax.tree.map(lambda p: jnp.array(p, self.spec.stored_dtype, copy=True), params)
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
        if len(micro_batches) == 1 and not self._accumulate:
            batch = place(self.spec.mesh, micro_batches[0])
            return fused_update(self.spec, state, self.frozen, batch, totals, learning_rate, self._seed)
        so_far = _nothing_yet(self.spec, state.params)
        sums = []
        for batch in micro_batches:
            so_far, part_sums = add_gradients(
                self.spec, state.params, so_far, self.frozen, place(self.spec.mesh, batch), totals
            )
            sums.append(part_sums)
        state, grad_norm, skipped = _update(self.spec, state, *so_far, learning_rate, self._seed)
        return state, StepOutput(tuple(sums), grad_norm, learning_rate, skipped)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def fused_update(
    spec: StepSpec,
    state: TrainState,
    frozen: Any,
    batch: Batch,
    totals: Denominators,
    learning_rate: jax.Array,
    seed: jax.Array,
) -> tuple[TrainState, StepOutput]:
    """Gradient and update of a batch of one micro-batch, in one program."""
    gradients, loss, sums = _gradients(spec, state.params, frozen, batch, totals)
    state, grad_norm, skipped = _apply(spec, state, gradients, loss, learning_rate, seed)
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
    spec: StepSpec,
    state: TrainState,
    gradients: Any,
    loss: jax.Array,
    learning_rate: jax.Array,
    seed: jax.Array,
) -> tuple[TrainState, jax.Array, jax.Array]:
    wide = jax.tree.map(_as_float32, state.params)
    updates, opt_state = spec.optimizer.update(gradients, state.opt_state, wide)
    params = jax.tree.map(lambda p, u: p + learning_rate * u, wide, updates)
    params = stored_like(state.params, params, jax.random.fold_in(jax.random.key(seed), state.step))
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


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def add_gradients(
    spec: StepSpec,
    params: Any,
    so_far: tuple[Any, jax.Array],
    frozen: Any,
    batch: Batch,
    totals: Denominators,
) -> tuple[tuple[Any, jax.Array], LossSums]:
    """Gradients and loss of one micro-batch, added to those of the ones before."""
    gradients, loss, sums = _gradients(spec, params, frozen, batch, totals)
    gradients, loss = jax.tree.map(jnp.add, so_far, (gradients, loss))
    return (spec.like_params(gradients), loss), sums


@functools.partial(jax.jit, static_argnums=0, keep_unused=True)
def _nothing_yet(spec: StepSpec, params: Any) -> tuple[Any, jax.Array]:
    """Gradients and loss of no micro-batch, placed as a sum is: else the first one would compile a program of its own.

    So the unused parameters are kept, too: a result lies where it must only if an argument does (a restored state's).
    """
    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
    return spec.like_params(zeros), whole(spec.mesh, jnp.zeros((), jnp.float32))


_update = jax.jit(_apply, static_argnums=0, donate_argnums=1)


@functools.partial(jax.jit, static_argnums=0)
def _init(spec: StepSpec, params: Any) -> Any:
    return spec.optimizer.init(jax.tree.map(_as_float32, params))


def _as_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


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
    params = jax.tree.map(lambda p: p.astype(spec.stored_dtype or p.dtype), params)
    opt_state = spec.optimizer.init(jax.tree.map(_as_float32, params))
    return spec.placed(TrainState(jnp.zeros((), jnp.int32), params, opt_state))


def make_train_step(
    model: Any,
    config: TrainConfig,
    total_steps: int,
    mesh: Mesh | None = None,
    *,
    accumulate: bool = False,
) -> tuple[TrainStep, TrainState]:
    """The jitted update of a model's parameters and the state to start from.

    Args:
      model: an `nnx.Module`; its `nnx.Param`s are trained, any other variables stay as they are.
      config: loss, optimiser, schedule.
      total_steps: updates of the whole run: where the schedule ends.
      mesh: devices to split the batch over, by default the model's own; the parameters stay where they are.
      accumulate: see `TrainStep`.
    """
    graphdef, params, frozen = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    spec = StepSpec.of(graphdef, params, config, mesh or mesh_of(model))
    step = TrainStep(spec, frozen, learning_rates(config, total_steps), accumulate, seed=config.seed)
    return step, step.init(params)


def delete_parameters(model: Any) -> None:
    """Free the memory of the parameters that `make_train_step` trains; shapes and dtypes can still be read."""
    for leaf in jax.tree.leaves(nnx.split(model, nnx.Param, ...)[1]):  # type: ignore[misc]
        leaf.delete()


def parameters_alone(model: Any, config: TrainConfig) -> TrainState:
    """Shapes, dtypes and places of a state's parameters, with no optimiser state: what an export reads of a checkpoint."""
    graphdef, params, _ = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    spec = StepSpec.of(graphdef, params, config, mesh_of(model))
    leaves, structure = jax.tree.flatten(params)
    shardings = spec.shardings or [leaf.sharding for leaf in leaves]
    places = [
        jax.ShapeDtypeStruct(leaf.shape, spec.stored_dtype or leaf.dtype, sharding=sharding)
        for leaf, sharding in zip(leaves, shardings, strict=True)
    ]
    everywhere = shardings[0] if spec.mesh is None else replicated(spec.mesh)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(step, jax.tree.unflatten(structure, places), None)  # type: ignore[arg-type]


def trained_model(model: Any, state: TrainState) -> Any:
    """A new model like `model`, with the state's parameters in the model's dtype; adapters stay unmerged."""
    graphdef, params, frozen = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    # Under jit, so that parts which other processes hold stay where they are.
    new = jax.tree.map(lambda p, old: _copied(p, old.dtype), state.params, params)
    return nnx.merge(graphdef, new, frozen)


@functools.partial(jax.jit, static_argnums=1)
def _copied(array: jax.Array, dtype: Any) -> jax.Array:
    return jnp.array(array, dtype, copy=True)
