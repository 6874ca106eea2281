"""LoRA: low-rank adapters beside frozen weights; off, merged into the weights, or trained alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from caspo_jax.checks import at_least, own_numbers, within
from caspo_jax.errors import UserError
from caspo_jax.models.config import ModelConfig
from caspo_jax.models.weights import Weight, owner, shallow_copy, weights
from caspo_jax.sharding import named_sharding

# Name in Hugging Face checkpoints -> name in the decoder, in the order in which a layer applies them.
LINEAR = {f"{name}_proj": name for name in ("q", "k", "v", "o", "gate", "up", "down")}
ALL_LINEAR = "all-linear"  # PEFT's word: every linear map of the layers, not the output head


class Frozen(nnx.Variable):
    """A weight that is not trained: what `nnx.Param` becomes under an adapter."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear maps get an adapter, and how large.

    A map `y = x W` becomes `y = x W + s (x A) B` with A `[in, r]`, B `[r, out]` and
    `s = alpha / r` (`alpha / sqrt(r)` if `rslora`).

    Raises:
      UserError: a rank below 1, an alpha that is not positive, an unknown target.

    Source: LoRA, arXiv 2106.09685; rank-stabilised scale: arXiv 2312.03732.
    """

    rank: int = 16
    alpha: float | None = None  # None: twice the rank
    # Hugging Face names (q_proj, ..., or q for short), or all-linear.
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False

    def __post_init__(self) -> None:
        own_numbers(self)
        at_least(self, 1, "rank")
        within(self, "(0, inf)", "alpha", optional=True)
        object.__setattr__(self, "alpha", float(2 * self.rank if self.alpha is None else self.alpha))
        object.__setattr__(self, "targets", _known_targets(self.targets))

    @property
    def scale(self) -> float:
        """s, the factor of the adapter's output."""
        assert self.alpha is not None
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def _known_targets(given: str | Sequence[str]) -> tuple[str, ...]:
    """Hugging Face names in a fixed order, so that equal sets are equal configs."""
    named = [given] if isinstance(given, str) else list(given)
    if named == [ALL_LINEAR]:
        return tuple(LINEAR)
    full = [name if name in LINEAR else f"{name}_proj" for name in named]
    unknown = [name for name, spelled in zip(named, full) if spelled not in LINEAR]
    if unknown or not named:
        raise UserError(
            f"lora: target {unknown[0] if unknown else ''!r} is unknown: choose among {', '.join(LINEAR)}, "
            f"or {ALL_LINEAR}"
        )
    return tuple(name for name in LINEAR if name in full)


def lora_weights(config: ModelConfig, lora: LoraConfig | None) -> tuple[Weight, ...]:
    """The adapters' matrices as rows of the weight table; their tensors are named as PEFT names them."""
    if lora is None:
        return ()
    wanted = [LINEAR[target] for target in lora.targets]
    table = []
    for weight in weights(config):
        if weight.name not in wanted:
            continue
        tensor = f"base_model.model.{weight.tensor.removesuffix('.weight')}"
        (into, out), (in_axis, out_axis) = weight.shape, weight.axes
        for side, shape, axes in (
            ("A", (into, lora.rank), (in_axis, "rank")),
            ("B", (lora.rank, out), ("rank", out_axis)),
        ):
            name = f"{weight.name}_lora_{side.lower()}"
            table.append(Weight(name, f"{tensor}.lora_{side}.weight", shape, axes, "zeros", transposed=True))
    return tuple(table)


def check_rank(config: ModelConfig, lora: LoraConfig) -> None:
    """Refuses fresh adapters whose rank their product A B [in, out] cannot reach: it is at most min(in, out).

    Adapters of files are not checked, since PEFT allows such ranks.

    Raises:
      UserError: the rank is above the smaller side of a map that gets an adapter.
    """
    wanted = {LINEAR[target]: target for target in lora.targets}
    for weight in weights(config):
        if weight.name in wanted and lora.rank > min(weight.shape):
            raise UserError(
                f"lora: rank={lora.rank} (--lora_rank) is above {min(weight.shape)}, the smaller side of "
                f"{wanted[weight.name]} {list(weight.shape)}: lower the rank, or leave {wanted[weight.name]} out of the targets"
            )


def add_lora(model: Any, lora: LoraConfig, key: jax.Array) -> Any:
    """The model with fresh adapters: its weights become `Frozen`, and only the adapters are `nnx.Param`s.

    A is uniform in `+-1 / sqrt(in)` and B is 0, so that the new model's outputs are those of the given one.
    The adapters are float32 whatever the model's dtype, and are split over the mesh that holds the weights.

    Args:
      model: a Decoder without adapters; it stays as it is, and shares its arrays with the new one.
      lora: rank, scale and targets.
      key: random key from which A is drawn.

    Returns:
      A new Decoder.

    Raises:
      UserError: the model has adapters already, or is no Decoder; the rank is above a map's smaller side.
    """
    if hasattr(model, "lora"):  # a model without this attribute is refused by `attach`
        check_rank(model.config, lora)

    def initial(weight: Weight, number: int) -> np.ndarray | jax.Array:
        shape = _shape(model, weight)
        if weight.name.endswith("_b"):
            return jnp.zeros(shape, jnp.float32)
        bound = 1 / math.sqrt(weight.shape[0])
        return jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32, -bound, bound)

    return attach(model, lora, initial)


def attach(model: Any, lora: LoraConfig, value: Callable[[Weight, int], Any]) -> Any:
    """The model with adapters of given values: `value(weight, i)` is the i-th of `lora_weights`, [L, ...]."""

    def placed(weight: Weight, number: int) -> jax.Array:
        array = value(weight, number)
        place = _place(model, weight)
        return jnp.asarray(array if place is None else jax.device_put(array, place), jnp.float32)

    return _attached(model, lora, placed)


def abstract_lora(model: Any, lora: LoraConfig) -> Any:
    """`add_lora` of a decoder of shapes (`models.abstract`): its adapters are shapes too, with shardings.

    Raises:
      UserError: as `add_lora` does.
    """
    check_rank(model.config, lora)

    def shaped(weight: Weight, _: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(_shape(model, weight), jnp.float32, sharding=_place(model, weight))

    return _attached(model, lora, shaped)


def _attached(model: Any, lora: LoraConfig, leaf: Callable[[Weight, int], Any]) -> Any:
    """The model with its weights frozen, and `leaf(weight, i)` as the value of the i-th of `lora_weights`."""
    if not hasattr(model, "lora"):
        raise UserError(f"lora: {type(model).__name__} takes no adapters; caspo_jax.models.Decoder does")
    if model.lora is not None:
        raise UserError("lora: the model has adapters already: merge_lora() makes one of model and adapters")
    new = shallow_copy(model)
    for weight in weights(model.config):
        setattr(owner(new, weight), weight.name, Frozen(_stored(new, weight)))
    for number, weight in enumerate(lora_weights(model.config, lora)):
        setattr(new.layers, weight.name, nnx.LoRAParam(leaf(weight, number)))
    new.lora = lora
    return new


def _shape(model: Any, weight: Weight) -> tuple[int, ...]:
    return (model.config.num_layers, *weight.shape)


def _place(model: Any, weight: Weight) -> NamedSharding | None:
    """The sharding of an adapter's matrix, over the mesh that holds the weights; None without a mesh."""
    sharding = getattr(model.embed.get_value(), "sharding", None)  # none while shapes alone are traced
    if not isinstance(sharding, NamedSharding):
        return None
    return named_sharding(sharding.mesh, ("layers", *weight.axes), _shape(model, weight))  # type: ignore[arg-type]


def has_adapters(model: Any) -> bool:
    """Whether a model of any kind has low-rank adapters beside its weights."""
    return getattr(model, "lora", None) is not None


def base_model(model: Any) -> Any:
    """The model with its adapters off: a plain Decoder that shares the frozen arrays; no second copy in memory."""
    return _without_adapters(model, _stored)


def merge_lora(model: Any) -> Any:
    """A plain Decoder whose weights are `W + s A B` (summed in float32, in the weights' dtype).

    A model without adapters comes back as it is.
    """
    return model if model.lora is None else _without_adapters(model, merged_weight)


def merged_weight(model: Any, weight: Weight) -> jax.Array:
    """One stored weight of a Decoder with its adapter, if it has one, added in."""
    parts = _parts(model, weight)
    return parts[0] if len(parts) == 1 else _merged(parts, model.lora.scale)


def checkpoint_tensor(model: Any, weight: Weight, layer: int) -> jax.Array:
    """One tensor as checkpoints store it: of a stacked weight the given layer's, with its adapter added in."""
    parts = _parts(model, weight)
    scale = model.lora.scale if len(parts) > 1 else 0.0
    return _tensor(parts, np.int32(layer), scale, weight.stacked, weight.transposed)


def _parts(model: Any, weight: Weight) -> tuple[jax.Array, ...]:
    """A stored weight, and the two matrices of its adapter if it has one."""
    stored = _stored(model, weight)
    if model.lora is None or f"{weight.name}_proj" not in model.lora.targets:
        return (stored,)
    return stored, *(getattr(model.layers, f"{weight.name}_lora_{side}")[...] for side in "ab")


@jax.jit
def _merged(parts: tuple[jax.Array, ...], scale: float) -> jax.Array:
    """W + s A B of stacked W, A, B, a layer at a time: all in float32 would be as large as several models."""
    return jax.lax.map(lambda layer: _sum(layer, scale), parts)


@functools.partial(jax.jit, static_argnames=("stacked", "transposed"))
def _tensor(
    parts: tuple[jax.Array, ...], layer: jax.Array, scale: float, stacked: bool, transposed: bool
) -> jax.Array:
    if stacked:
        parts = tuple(jax.lax.dynamic_index_in_dim(part, layer, keepdims=False) for part in parts)
    tensor = parts[0] if len(parts) == 1 else _sum(parts, scale)
    return tensor.T if transposed else tensor


def _sum(parts: tuple[jax.Array, ...], scale: float) -> jax.Array:
    """W + s A B of one layer's W [in, out], A [in, r] and B [r, out], in W's dtype."""
    weight, a, b = parts
    product = jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
    return (weight.astype(jnp.float32) + scale * product).astype(weight.dtype)


def _without_adapters(model: Any, value: Callable[[Any, Weight], jax.Array]) -> Any:
    new = shallow_copy(model)
    for weight in weights(model.config):
        setattr(owner(new, weight), weight.name, nnx.Param(value(model, weight)))
    for weight in lora_weights(model.config, model.lora):
        delattr(new.layers, weight.name)
    new.lora = None
    return new


def _stored(model: Any, weight: Weight) -> jax.Array:
    return getattr(owner(model, weight), weight.name).get_value()  # an array, or its shape
