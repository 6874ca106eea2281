"""What an update carries, what it reports, and what its compiled program depends on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from caspo_jax.models.remat import Remat
from caspo_jax.sharding import replicated, whole
from caspo_jax.training.config import LossConfig, TrainConfig
from caspo_jax.training.optimizer import make_optimizer
from caspo_jax.training.step_loss import LossSums, add_up, reduce_metrics


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
        metrics = reduce_metrics(add_up(host.sums), config, _divide)
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
        names = (
            "loss",
            "b1",
            "b2",
            "eps",
            "weight_decay",
            "clip_norm",
            "head_chunk",
            "remat",
            "masters",
            "skip_nonfinite",
        )
        settings = {name: getattr(config, name) for name in names}
        shardings = None
        if mesh is not None:
            shardings = tuple(
                leaf.sharding if getattr(leaf.sharding, "mesh", None) == mesh else replicated(mesh)
                for leaf in jax.tree.leaves(params)
            )
        return cls(graphdef, dtypes, **settings, mesh=mesh, shardings=shardings)

    @property
    def stored_dtype(self) -> Any:
        """Of the parameters in the state; None: each one's own."""
        return jnp.float32 if self.masters == "float32" else None

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser at a rate of 1: the schedule's value is an argument of the update."""
        return make_optimizer(self, 1.0)

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


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0
