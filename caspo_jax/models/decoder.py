"""The decoder: Qwen2/2.5, Qwen3 and Llama 3.x in one module, layers stacked and scanned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from caspo_jax.models.attention import attend_cache
from caspo_jax.models.block import Block, Layer, rms_norm
from caspo_jax.models.blockwise import attend_self
from caspo_jax.models.cache import KVCache, init_cache, on_one_cpu, own, write
from caspo_jax.models.config import ModelConfig
from caspo_jax.models.cpu_layers import LateLayer, TurnedLayer, turned_product
from caspo_jax.models.eager import Pure, compiled_when_eager
from caspo_jax.models.initial import initial_params
from caspo_jax.models.inputs import checked_inputs
from caspo_jax.models.lora import LoraConfig, lora_weights
from caspo_jax.models.precision import looked_up, precision, product
from caspo_jax.models.remat import Remat, rematted
from caspo_jax.models.rope import rotation
from caspo_jax.models.weights import owner, weights
from caspo_jax.sharding import as_mesh, constrain

# In training on one device in float32, up to so many layers are unrolled: the gradient of four takes 5 % less
# time on a CPU, and compiling takes no longer. Never in bfloat16: between unrolled layers the compiler leaves
# out roundings, and other ones with a gradient than without, so that policy and reference would differ at the
# first update.
_UNROLLED = 4


class Layers(nnx.Module):
    """The weights of all layers: one parameter per kind, each with a leading axis L."""


class Decoder(Pure):
    """A causal language model: token ids to logits.

    Every parameter is an `nnx.Param` and there is no other state, so `nnx.split(model)` gives (graphdef, params).
    With LoRA adapters (`models.lora.add_lora`) these are the `nnx.Param`s, and the weights are `Frozen`.
    Layers run under `lax.scan`, so that compile time does not grow with depth (except where a cache has its
    layers apart). float32 means full precision in every product on every backend; bfloat16 means bf16
    operands with float32 logits, softmax and norms.

    Args:
      config: shape and constants.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters, `dtype` if None (float32 parameters with bf16 compute are possible).
      rngs: source of the initial weights: normal(0, initializer_range), norms 1, biases 0.
      mesh: devices over which parameters and rows are split by the rules of `caspo_jax.sharding`; None is one
        device.

    Source: Touvron et al. 2023 and the Llama 3 report (arXiv 2407.21783); Qwen2.5 (2412.15115); Qwen3 (2505.09388).
    """

    embed: nnx.Param  # [V, E]
    final_norm: nnx.Param  # [E]
    lm_head: nnx.Param  # [V, E], absent where tied

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: jax.typing.DTypeLike = jnp.float32,
        param_dtype: jax.typing.DTypeLike | None = None,
        rngs: nnx.Rngs,
        mesh: Mesh | None = None,
    ):
        self.config = config
        self.mesh = mesh = as_mesh(mesh)
        self.dtype = jnp.dtype(dtype)
        self.lora: LoraConfig | None = None
        self.layers = Layers()
        initial = initial_params(rngs.params(), config, jnp.dtype(param_dtype or dtype), mesh)
        for weight in weights(config):
            setattr(owner(self, weight), weight.name, nnx.Param(initial[weight.name]))

    @compiled_when_eager()
    def __call__(
        self, token_ids: jax.Array, positions: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Next-token logits at every position.

        Args:
          token_ids: [B, T] int32; what stands in padding does not matter.
          positions: [B, T] int32, by default counting the real tokens of the row from 0.
          mask: [B, T] bool, the real tokens, on either side; None means all.

        Returns:
          [B, T, V] float32; entries at padding mean nothing.

        Raises:
          UserError: token_ids that are no rows of integers, or an array of another shape.
        """
        return self.unembed(self.hidden_states(token_ids, positions, mask))

    @compiled_when_eager("final_norm", "remat")
    def hidden_states(
        self,
        token_ids: jax.Array,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        final_norm: bool = True,
        remat: Remat = "none",
        subtree_end: jax.Array | None = None,
    ) -> jax.Array:
        """Last-layer states, after the final norm, or before it if `final_norm` is False.

        Args:
          token_ids: [B, T] int32.
          positions: [B, T] int32 or None.
          mask: [B, T] bool or None.
          final_norm: whether to apply the last RMS norm (what the head sees).
          remat: what the backward pass recomputes of each layer: `none`, at most norms and activations (on a mesh it
            gathers weights again); `full`, all but its input (least memory, a third more time); `dots`, all but the
            results of matrix products with weights.
          subtree_end: [B, T] int32: rows hold token trees in preorder (`preferences.token_tree`), and column q sees
            the columns k with k <= q < subtree_end[k]; give `positions` too. None: rows are plain sequences.

        Returns:
          [B, T, E] in the compute dtype; entries at padding mean nothing.

        Raises:
          UserError: token_ids that are no rows of integers, an array of another shape, or an unknown `remat`.
        """
        x, _ = self._run(token_ids, positions, mask, subtree_end, keep_kv=False, remat=remat)
        return self.normed(x) if final_norm else x

    def normed(self, hidden: jax.Array) -> jax.Array:
        """What the head sees of last-layer states [..., E] taken before the final norm."""
        return rms_norm(hidden, self.final_norm[...], self.config.rms_norm_eps, self.dtype)

    def unembedding(self) -> jax.Array:
        """The output matrix [V, E] in the compute dtype: the embedding itself where tied."""
        head = self.embed if self.config.tie_word_embeddings else self.lm_head
        return head[...].astype(self.dtype)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V] float32 of final states [..., E]; on a mesh the rows are split over all of its axes.

        Every device multiplies with its own part of the head, and then the devices exchange parts of the
        logits. Without these constraints the compiler would gather the head on every device, which is a
        thousand times larger.
        """
        between = (None,) * (hidden.ndim - 2)
        if self._weights_stay(math.prod(hidden.shape[:-1])):
            hidden = constrain(self.mesh, self._block().split_rows(hidden), ("replica", *between, "embed"))
        logits = product("...e,ve->...v", hidden.astype(self.dtype), self.unembedding())
        logits = constrain(self.mesh, logits, ("batch", *between, "vocab"))
        return constrain(self.mesh, logits, ("rows", *between, None))

    def prefill(
        self, token_ids: jax.Array, mask: jax.Array, capacity: int, *, lanes: bool = False
    ) -> tuple[jax.Array, KVCache]:
        """Reads prompts and returns what decoding starts from.

        Args:
          token_ids: [R, P] int32.
          mask: [R, P] bool, real tokens, padding on either side.
          capacity: columns S that decoding may write, from 0 on; `branch` lets several rows go on from a prompt.
          lanes: the cache's layout (`KVCache`).

        Returns:
          Logits after each row's last real token [R, V] float32, and the cache.
        """
        columns = token_ids.shape[1]
        x, (k, v) = self._run(token_ids, None, mask, None, keep_kv=True, remat="none")
        last = columns - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        logits = self.unembed(self.normed(x))
        empty = init_cache(self.config, len(token_ids), capacity, k.dtype, lanes=lanes, mesh=self.mesh)
        cache = dataclasses.replace(empty, prompt_k=k, prompt_v=v, prompt_valid=mask.astype(jnp.bool_))
        return logits, cache.placed()

    def decode_step(
        self,
        cache: KVCache,
        token_ids: jax.Array,
        positions: jax.Array,
        column: jax.Array,
        layers: Sequence[Layer] | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """One token a row: writes its keys and values at `column` and returns the next-token logits.

        Args:
          cache: R rows.
          token_ids: [R] int32, the tokens to read.
          positions: [R] int32, their positions in their own sequences (for the rotation).
          column: scalar int32, the same for all rows; it becomes valid in every row. It may count on beyond
            the capacity S: column c is stored as c % S, over what was there before.
          layers: `layers_apart()`, for a cache whose layers are apart: so they are cut out once, not in every
            step. The loop over such layers is unrolled, so that the program grows with the depth.

        Returns:
          [R, V] float32 logits and the cache.
        """
        last = jnp.minimum(column, cache.capacity - 1)  # the highest column that was ever written
        column = column % cache.capacity
        cache = own(cache, column)
        cos, sin = rotation(self.config.rope, self.config.head_dim, positions)
        block = self._block(weights_stay=self._weights_stay(len(token_ids)))
        x = self._embed(token_ids)

        # The whole cache is carried and updated in place: as a scanned input it would be copied every step.
        def layer_step(
            x: jax.Array, cache: KVCache, layer: Layer, index: int | jax.Array
        ) -> tuple[jax.Array, KVCache]:
            q, k, v = block.before_attention(layer, x, cos, sin)
            cache = write(cache, index, column, k, v)
            return block.after_attention(layer, x, attend_cache(q, cache, index, last)), cache

        cpu = self.mesh is None and on_one_cpu()
        if cache.apart:
            for i, layer in enumerate(self.layers_apart() if layers is None else layers):
                x, cache = layer_step(x, cache, layer, i)
        else:
            stacked = self._stacked()

            def scanned(carry, inputs):
                (x, cache), (layer, index) = carry, inputs
                layer = LateLayer(stacked, index) if cpu else layer
                return layer_step(x, cache, layer, index), None

            steps = (None if cpu else stacked, jnp.arange(self.config.num_layers))
            (x, cache), _ = lax.scan(scanned, (x, cache), steps)
        x = self.normed(x)
        if cpu and len(x) > 1 and self.dtype == jnp.float32:  # slower with one row, and in bfloat16
            return turned_product(self.unembedding(), x, precision(self.dtype)), cache.placed()
        return self.unembed(x), cache.placed()

    def _run(
        self,
        token_ids: jax.Array,
        positions: jax.Array | None,
        mask: jax.Array | None,
        subtree_end: jax.Array | None,
        *,
        keep_kv: bool,
        remat: Remat,
    ) -> tuple[jax.Array, Any]:
        """All layers over whole sequences: states [B, T, E] before the final norm, and the cache's k and v."""
        token_ids, positions, mask, subtree_end = checked_inputs(
            token_ids, positions=positions, mask=mask, subtree_end=subtree_end
        )
        length = token_ids.shape[1]
        mask = jnp.ones(token_ids.shape, jnp.bool_) if mask is None else mask.astype(jnp.bool_)
        if positions is None:
            positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        visible_until = jnp.where(mask, length if subtree_end is None else subtree_end, 0)
        cos, sin = rotation(self.config.rope, self.config.head_dim, positions)
        block = self._block()

        def layer_step(x: jax.Array, layer: Layer):
            layer = block.whole_weights(layer)
            q, k, v = block.before_attention(layer, x, cos, sin)
            mixed = attend_self(q, k, v, visible_until, mesh=self.mesh)
            kv = (k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)) if keep_kv else None
            return block.after_attention(layer, x, mixed), kv

        # Unrolling spares the copies that a loop makes of what it keeps for the backward pass. Training is on
        # trees; without a backward pass a loop is as fast, and compiles sooner.
        unroll = self.mesh is None and subtree_end is not None and self.config.num_layers <= _UNROLLED
        unroll &= self.dtype == jnp.float32
        step = rematted(layer_step, remat, in_loop=not unroll, on_mesh=self.mesh is not None)
        return lax.scan(step, self._embed(token_ids), self._stacked(), unroll=unroll)

    def layers_apart(self, turned: bool = False) -> tuple[Layer, ...]:
        """A copy of each layer's weights as arrays of their own, in the compute dtype, for `decode_step`.

        Args:
          turned: whether to transpose matrices to [out, in], which is faster on a CPU (`TurnedLayer`).
        """
        stacked = self._stacked()
        matrices = [w.name for w in weights(self.config) if w.transposed and turned]

        def layer(i: int) -> Layer:
            one = {name: weight[i] for name, weight in stacked.items()}
            return TurnedLayer({name: one.pop(name).T for name in matrices}, one) if turned else one

        return tuple(layer(i) for i in range(self.config.num_layers))

    def _stacked(self) -> dict[str, jax.Array]:
        """The layers' weights by name, [L, ...] each, in the compute dtype."""
        names = [weight.name for weight in weights(self.config) if weight.stacked]
        names += [weight.name for weight in lora_weights(self.config, self.lora)]
        return {name: getattr(self.layers, name)[...].astype(self.dtype) for name in names}

    def _block(self, weights_stay: bool = False) -> Block:
        return Block(self.config, self.dtype, self.mesh, self.lora, weights_stay)

    def _weights_stay(self, rows: int) -> bool:
        """Whether, on a mesh, moving so many rows is cheaper than gathering the weights that fsdp splits.

        Gathering a weight [E, N] moves 2 E N bytes in bfloat16. Leaving it in place moves about 4 rows N
        bytes: products [rows, N] in float32, or states and products in bfloat16.
        """
        return self.mesh is not None and 2 * rows <= self.config.hidden_size

    def _embed(self, token_ids: jax.Array) -> jax.Array:
        # On a mesh every device looks up its own columns of the table for all rows, which are then gathered:
        # that moves less than gathering the table.
        between = (None,) * (token_ids.ndim - 1)
        ids = constrain(self.mesh, token_ids, ("replica", *between))
        # Clipped: an id out of range may stand in padding, and a NaN there would reach real tokens through 0 * NaN.
        x = looked_up(self.embed[...], ids).astype(self.dtype)
        return self._block().split_rows(constrain(self.mesh, x, ("replica", *between, "embed")))
