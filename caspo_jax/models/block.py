"""The arithmetic of a layer before and after its attention.

With N_1, N_2 the RMS norms of a layer: x' = x + attention(N_1(x)) W_o, then
x' + (silu(N_2(x') W_gate) * (N_2(x') W_up)) W_down.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from caspo_jax.models.config import ModelConfig
from caspo_jax.models.cpu_layers import LateLayer, TurnedLayer
from caspo_jax.models.lora import LoraConfig
from caspo_jax.models.precision import precision
from caspo_jax.models.remat import multiplied
from caspo_jax.models.rope import rotate
from caspo_jax.models.weights import parameter_axes, weights
from caspo_jax.sharding import constrain, gathered

Layer = Mapping[str, jax.Array]  # the weights of one layer, without the stacked axis


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, dtype: jax.typing.DTypeLike) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32, returned in `dtype`."""
    x = x.astype(jnp.float32)
    x = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return (x * scale.astype(jnp.float32)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Block:
    """Norms, projections, residual additions and the gated MLP of any layer; its weights are passed in."""

    config: ModelConfig
    dtype: jnp.dtype  # of the computation
    mesh: Mesh | None
    lora: LoraConfig | None
    # On a mesh with few rows: weights are not gathered, but the rows are moved to where each part of a weight
    # is stored.
    weights_stay: bool = False

    def before_attention(
        self, layer: Layer, x: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries [..., H, D] and keys [..., G, D], and values [..., G, D], of states [..., E]."""
        x = self._norm(x, layer["input_norm"])
        shape = (*x.shape[:-1], -1, self.config.head_dim)
        q, k, v = (self._linear(layer, name, x).reshape(shape) for name in ("q", "k", "v"))
        q = self.split_rows(q, "heads", None)
        k, v = (self.split_rows(x, "kv_heads", None) for x in (k, v))
        if self.config.qk_norm:
            q, k = self._norm(q, layer["q_norm"]), self._norm(k, layer["k_norm"])
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def after_attention(self, layer: Layer, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """The layer's output [..., E] from its input x [..., E] and its attention's result [..., H, D]."""
        x = self.split_rows(x + self._linear(layer, "o", mixed.reshape(*mixed.shape[:-2], -1)))
        hidden = self._norm(x, layer["mlp_norm"])
        gated = jax.nn.silu(self._linear(layer, "gate", hidden)) * self._linear(layer, "up", hidden)
        return self.split_rows(x + self._linear(layer, "down", gated))

    def whole_weights(self, layer: Layer) -> Layer:
        """One layer's weights as its products need them: gathered along fsdp, still split along tensor."""
        mesh = self.mesh
        if mesh is None:
            return layer
        whole_layer = dict(layer)
        for weight in weights(self.config):
            if weight.stacked:
                stored = parameter_axes(weight, self.config, mesh)[1:]
                used = tuple(None if axis == "embed" else axis for axis in stored)
                whole_layer[weight.name] = gathered(mesh, layer[weight.name], stored, used)
        return whole_layer

    def split_rows(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Activations [rows, ...] on the mesh: rows over the batch axes, the last dimensions by `axes`."""
        between = (None,) * (x.ndim - 1 - len(axes))
        return constrain(self.mesh, x, ("batch", *between, *axes))

    def _norm(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        return rms_norm(x, scale, self.config.rms_norm_eps, self.dtype)

    def _linear(self, layer: Layer, name: str, x: jax.Array) -> jax.Array:
        """x W + s (x A) B + bias, of x [..., in] and the weight W [in, out] of that name.

        Without an adapter or a bias, its term is left out.
        """
        # The leading axes become one: of a batched product, XLA's CPU backend makes transposed copies in the
        # backward pass.
        dot = functools.partial(jnp.dot, precision=precision(self.dtype))
        rows = x.reshape(-1, x.shape[-1])
        into, out = self._stored_axes(name) if self.weights_stay else (None, None)
        if self.weights_stay:
            if into == "embed":
                rows = self.split_rows(rows)  # so that they move after their norm, not before it in float32
            rows = constrain(self.mesh, rows, ("replica", into))
        if isinstance(layer, LateLayer):
            layer = layer.after(rows)
        if isinstance(layer, TurnedLayer):
            y = layer.product(rows, name, precision(self.dtype))
        else:
            y = dot(rows, layer[name])
        if self.lora is not None and f"{name}_lora_a" in layer:
            y = y + self.lora.scale * dot(dot(rows, layer[f"{name}_lora_a"]), layer[f"{name}_lora_b"])
        y = multiplied(y)
        if self.weights_stay:
            y = constrain(self.mesh, y, ("replica", out))
        y = y.reshape(*x.shape[:-1], -1)
        bias = layer.get(f"{name}_bias")
        return y if bias is None else y + bias

    def _stored_axes(self, name: str) -> tuple[str | None, ...]:
        """The logical axes (in, out) of one layer's weight on the mesh."""
        assert self.mesh is not None
        weight = next(weight for weight in weights(self.config) if weight.name == name)
        return parameter_axes(weight, self.config, self.mesh)[1:]
