"""Every weight of the decoder, declared once: shape, logical axes, initial value, checkpoint name.

The module's parameters, the strict loader, the exporter and the sharding are all derived from this table.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from caspo_jax.models.config import ModelConfig
from caspo_jax.sharding import named_sharding

Init = Literal["normal", "ones", "zeros"]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter. Those of the layers are stacked: a leading axis L stands before `shape`."""

    name: str  # attribute of the module
    tensor: str  # checkpoint tensor; "{}" is the layer's index
    shape: tuple[int, ...]  # without the stacked axis
    axes: tuple[str, ...]  # logical axis of each dimension, see caspo_jax.sharding
    init: Init = "normal"
    transposed: bool = False  # checkpoints store matrices [out, in]; the decoder's are [in, out]

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds all layers."""
        return "{}" in self.tensor

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of one tensor in the checkpoint."""
        return self.shape[::-1] if self.transposed else self.shape


def owner(model: Any, weight: Weight) -> Any:
    """The module that has a weight as its attribute: the decoder's `layers`, or the decoder itself."""
    return model.layers if weight.stacked else model


def shallow_copy(model: Any) -> Any:
    """A new module on the same arrays: what is set on it leaves the given one as it is."""
    graphdef, state = nnx.split(model)
    # Rebuilt first: a merged module shares its variables with the one that was split.
    return nnx.merge(graphdef, jax.tree.map(lambda array: array, state))


def parameter_shape(weight: Weight, config: ModelConfig) -> tuple[int, ...]:
    """The parameter's shape, the stacked axis included."""
    return (config.num_layers, *weight.shape) if weight.stacked else weight.shape


def parameter_axes(weight: Weight, config: ModelConfig, mesh: Mesh) -> tuple[str | None, ...]:
    """The logical axes of a parameter, the stacked axis included.

    Heads are split between devices, never inside: if the tensor axis does not divide their number, they stay whole on
    every device (`heads` and `kv_heads` each for itself).
    """
    heads = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
    ways = mesh.shape.get("tensor", 1)
    axes = tuple(None if heads.get(axis, ways) % ways else axis for axis in weight.axes)
    return ("layers", *axes) if weight.stacked else axes


def parameter_sharding(mesh: Mesh, weight: Weight, config: ModelConfig) -> NamedSharding:
    """Where a parameter's parts lie; a dimension that its mesh axes do not divide stays whole."""
    return named_sharding(mesh, parameter_axes(weight, config, mesh), parameter_shape(weight, config))


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """Lists every weight that a decoder of this config has, stacked ones included, in checkpoint order."""
    c = config
    table = [
        Weight("embed", "model.embed_tokens.weight", (c.vocab_size, c.hidden_size), ("vocab", "embed")),
        *_layer_weights(config),
        Weight("final_norm", "model.norm.weight", (c.hidden_size,), ("embed",), "ones"),
    ]
    if not c.tie_word_embeddings:
        table.append(Weight("lm_head", "lm_head.weight", (c.vocab_size, c.hidden_size), ("vocab", "embed")))
    return tuple(table)


def _layer_weights(c: ModelConfig) -> list[Weight]:
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    table = [Weight("input_norm", "input_layernorm.weight", (c.hidden_size,), ("embed",), "ones")]
    for name, width, axis in (("q", queries, "heads"), ("k", keys, "kv_heads"), ("v", keys, "kv_heads")):
        table.append(_matrix(name, f"self_attn.{name}_proj", (c.hidden_size, width), ("embed", axis)))
        if c.qkv_bias:
            table.append(Weight(f"{name}_bias", f"self_attn.{name}_proj.bias", (width,), (axis,), "zeros"))
    if c.qk_norm:
        table.append(Weight("q_norm", "self_attn.q_norm.weight", (c.head_dim,), ("head_dim",), "ones"))
        table.append(Weight("k_norm", "self_attn.k_norm.weight", (c.head_dim,), ("head_dim",), "ones"))
    table.append(_matrix("o", "self_attn.o_proj", (queries, c.hidden_size), ("heads", "embed")))
    if c.output_bias:
        table.append(Weight("o_bias", "self_attn.o_proj.bias", (c.hidden_size,), ("embed",), "zeros"))
    table.append(Weight("mlp_norm", "post_attention_layernorm.weight", (c.hidden_size,), ("embed",), "ones"))
    for name in ("gate", "up", "down"):
        into = name == "down"
        shape = (c.intermediate_size, c.hidden_size) if into else (c.hidden_size, c.intermediate_size)
        axes = ("mlp", "embed") if into else ("embed", "mlp")
        table.append(_matrix(name, f"mlp.{name}_proj", shape, axes))
        if c.mlp_bias:
            table.append(Weight(f"{name}_bias", f"mlp.{name}_proj.bias", shape[1:], axes[1:], "zeros"))
    return [dataclasses.replace(w, tensor="model.layers.{}." + w.tensor) for w in table]


def _matrix(name: str, tensor: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Weight:
    return Weight(name, f"{tensor}.weight", shape, axes, transposed=True)
