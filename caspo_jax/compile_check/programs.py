"""The library's own train step and tree search, lowered for a mesh from shapes and shardings alone: no array is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from caspo_jax.compile_check.chips import Chip
from caspo_jax.errors import UserError
from caspo_jax.models import ModelConfig
from caspo_jax.models.abstract import abstract_decoder
from caspo_jax.models.block import Layer
from caspo_jax.models.blockwise import BLOCK
from caspo_jax.models.cache import KVCache, init_cache, with_layers_apart
from caspo_jax.models.cache_rows import copy_rows
from caspo_jax.models.lora import abstract_lora
from caspo_jax.preferences.tree_pieces import RowShape
from caspo_jax.sampling import CatConfig, SampleConfig
from caspo_jax.sampling.automaton import build_automaton
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sampling.loop import donated_program
from caspo_jax.sampling.model_decode import ApartParams, ModelDecode, room_apart
from caspo_jax.sampling.policy import make_policy
from caspo_jax.sampling.state import LOGITS_AXES, CatState, init_state
from caspo_jax.sharding import batch_ways, bytes_a_device, named_sharding, replicated
from caspo_jax.training.config import TrainConfig
from caspo_jax.training.scored_stats import head_chunk
from caspo_jax.training.step_loss import Denominators
from caspo_jax.training.step_state import StepSpec, TrainState
from caspo_jax.training.train_step import add_gradients, fused_update
from caspo_jax.training.tree_plan import slots_of
from caspo_jax.types import TreeBatch

Shaped = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that is lowered and not compiled yet."""

    what: str
    lowered: Any  # jax.stages.Lowered
    arguments: Mapping[str, int]  # bytes a chip, by kind
    trips: Mapping[str, float]  # of loops whose length the compiler does not see, by the name of their scope
    taken: tuple[str, ...]  # scopes of conditionals that count as their dearest branch
    tokens: int  # that a run of the program reads (train) or draws (cat)
    per: str  # what one run counts for
    divisible: bool = True  # whether less could be done at once on this mesh
    # Bytes a chip beside the arguments while buffers are made larger, before the program runs.
    growing: int = 0
    unread: int = 0  # bytes a chip of `arguments` that the program does not read: they are there all the same
    whole_weights: bool = False  # whether all weights are trained: adapters would leave most of the state out
    recomputable: bool = False  # whether the backward pass could keep less and compute it again
    whole_cache: str = ""  # why the mesh's tensor axis leaves the KV cache whole on its chips, if it does


@dataclasses.dataclass(frozen=True)
class TrainShape:
    """A batch of packed trees."""

    rows: int
    length: int  # tokens a row
    step_share: float  # of a row's tokens that are scored: the head runs over these alone
    accumulate: bool = False  # whether it is one of an update's several micro-batches

    @property
    def slots(self) -> int:
        """Of a row, as a run has them."""
        return slots_of(self.length, max(1, round(self.step_share * self.length)))


@dataclasses.dataclass(frozen=True)
class CatShape:
    """A search at the full size of its buffers."""

    questions: int
    branches: int
    prompt: int  # tokens
    max_new_tokens: int


def train_program(
    config: ModelConfig, mesh: Mesh, shape: TrainShape, settings: TrainConfig, dtype: str
) -> Program:
    """`fused_update` of one batch of trees: float32 Adam state, computing in `dtype`.

    All weights are trained, or with `settings.lora` adapters beside weights that stay frozen in `dtype`. With
    `shape.accumulate` it is `add_gradients` of one micro-batch, while Adam's moments wait.

    Raises:
      UserError: rows that the mesh does not divide, or a rank above a map's smaller side.
    """
    ways = batch_ways(mesh)
    if shape.rows % ways:
        raise UserError(f"--rows={shape.rows}: the mesh splits rows {ways} ways; give a multiple of {ways}")
    model = abstract_decoder(config, dtype, mesh)
    if settings.lora is not None:
        model = abstract_lora(model, settings.lora)
    graphdef, params, frozen = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    spec = StepSpec.of(graphdef, params, settings, mesh)
    wide = jax.tree.map(lambda p: Shaped(p.shape, jnp.float32, sharding=p.sharding), params)
    state = _abstract_state(spec, params if settings.masters == "none" else wide, wide, mesh)
    batch = _abstract_trees(mesh, shape, settings)
    scalar: Any = Shaped((), jnp.float32)  # from the host
    totals = Denominators(scalar, scalar)
    moments = bytes_a_device(state.opt_state)
    if shape.accumulate:
        so_far = (wide, Shaped((), jnp.float32, sharding=replicated(mesh)))
        lowered = add_gradients.lower(spec, state.params, so_far, frozen, batch, totals)
    else:
        lowered = fused_update.lower(spec, state, frozen, batch, totals, scalar, Shaped((), jnp.uint32))
    blocks = math.ceil(shape.length / BLOCK)
    chunk = head_chunk(shape.rows, config.vocab_size, shape.slots, settings.head_chunk, mesh)
    return Program(
        what="train",
        lowered=lowered,
        arguments={
            **_weights_held(state.params, frozen, dtype, settings),
            "Adam state (float32)": moments,
            **({"gradient so far (float32)": bytes_a_device(wide)} if shape.accumulate else {}),
            "batch": bytes_a_device(batch),
        },
        trips={
            "head_chunks": max(1.0, shape.step_share * shape.length / chunk),
            "attention_blocks": (blocks + 1) / 2,  # causal: block i meets i + 1 others
        },
        taken=("attention_blocks",),  # the blocks that nobody sees are left out by the trips
        tokens=shape.rows * shape.length,
        per="micro-batch" if shape.accumulate else "update",
        divisible=shape.rows > ways,
        unread=moments if shape.accumulate else 0,
        whole_weights=settings.lora is None,
        recomputable=settings.remat != "full",
    )


def _abstract_state(spec: StepSpec, params: Any, wide: Any, mesh: Mesh) -> TrainState:
    """Of these parameters; `wide` are the same in float32, as Adam's moments are."""
    whole = replicated(mesh)
    moments = optax.tree_map_params(
        spec.optimizer,
        lambda _, param: param,
        jax.eval_shape(spec.optimizer.init, wide),
        wide,
        transform_non_params=lambda count: Shaped(count.shape, count.dtype, sharding=whole),
    )
    step: Any = Shaped((), jnp.int32, sharding=whole)
    return TrainState(step, params, moments)


def _weights_held(kept: Any, frozen: Any, dtype: str, settings: TrainConfig) -> dict[str, int]:
    """Bytes a chip of what is trained and, beside adapters, of what is not; by what a table calls them."""
    if settings.lora is not None:  # adapters are float32 with masters or without
        return {
            f"base weights ({dtype})": bytes_a_device(frozen),
            "adapters (float32)": bytes_a_device(kept),
        }
    return {f"parameters ({dtype if settings.masters == 'none' else 'float32'})": bytes_a_device(kept)}


def cat_program(config: ModelConfig, mesh: Mesh, shape: CatShape, dtype: str, chip: Chip) -> Program:
    """The tree search's loop, `cat_decode_donated`, with its buffers at their last size.

    On GPUs that have room for it layers are apart, as `sampling.model_decode` has them there.

    Raises:
      UserError: questions that the mesh does not divide.
    """
    ways = batch_ways(mesh)
    if shape.questions % ways:
        raise UserError(
            f"--questions={shape.questions}: the mesh splits questions {ways} ways; give a multiple of {ways}"
        )
    graphdef, params = nnx.split(abstract_decoder(config, dtype, mesh))
    settings = CatConfig(
        num_branches=shape.branches, sample=SampleConfig(max_new_tokens=shape.max_new_tokens)
    )
    policy = make_policy(ModelDecode(graphdef), copy_rows, settings, config.vocab_size)
    held = bytes_a_device(params)
    apart = chip.platform == "gpu" and room_apart(held, chip.hbm_bytes - held)
    state = _abstract_search(config, mesh, shape, settings, jnp.dtype(dtype), apart)
    layers = _abstract_layers(graphdef, params) if apart else ()
    lowered = donated_program(ApartParams(params, layers) if apart else params, state, policy)
    cache = bytes_a_device(state.cache)
    copied = bytes_a_device(layers)
    return Program(
        what="cat",
        lowered=lowered,
        arguments={
            f"parameters ({dtype})": held,
            **({"each layer by itself": copied} if copied else {}),
            "KV cache": cache,
            "logits": bytes_a_device(state.logits),
            "tree": bytes_a_device(dataclasses.replace(state, cache=None, logits=None)),  # type: ignore[arg-type]
        },
        trips={"search": 1.0, "forks": 0.0},
        taken=("cache_columns",),  # buffers that are full
        tokens=shape.questions * shape.branches,
        per="iteration",
        growing=cache // 2,  # buffers double: the old ones are there until they are copied
        unread=copied,  # as many bytes as the stacks that the copy was made of
        whole_cache=_whole_cache(config, mesh),
    )


def _whole_cache(config: ModelConfig, mesh: Mesh) -> str:
    """Why every chip of the tensor axis holds all KV heads; empty if each holds a part of them."""
    ways, heads = mesh.shape.get("tensor", 1), config.num_kv_heads
    return f"tensor:{ways} does not divide the {heads} KV heads" if heads % ways else ""


def _abstract_trees(mesh: Mesh, shape: TrainShape, settings: TrainConfig) -> TreeBatch:
    loss = settings.loss
    fits = RowShape.of(shape.length, shape.slots, pairs=loss.uses_pairs, verified=loss.uses_verified)

    def array(columns: int, dtype: Any = jnp.int32) -> Any:
        size = (shape.rows, columns)
        return Shaped(size, dtype, sharding=named_sharding(mesh, ("batch", "length"), size))

    tokens = {name: array(shape.length) for name in ("token_ids", "positions", "subtree_end")}
    slots = {name: array(fits.slots) for name in ("target", "predictor")}
    members = {name: array(fits.members) for name in ("member_slot", "member_item")}
    pairs = {
        name: array(fits.pairs, jnp.float32) for name in ("weight", "reference_chosen", "reference_rejected")
    }
    return TreeBatch(
        **tokens,
        **slots,
        **members,
        **pairs,
        target_mask=array(fits.slots, jnp.bool_),
        verified=array(fits.verified, jnp.bool_),
    )


def _abstract_layers(graphdef: Any, params: Any) -> tuple[Layer, ...]:
    """`Decoder.layers_apart` of shapes: each is where the stack is."""
    stacks = nnx.to_pure_dict(params)["layers"]
    layers = jax.eval_shape(lambda params: nnx.merge(graphdef, params).layers_apart(), params)

    def placed(name: str, leaf: Any) -> Any:
        stacked = stacks[name].sharding
        spec = PartitionSpec(*stacked.spec[1:])
        return Shaped(leaf.shape, leaf.dtype, sharding=NamedSharding(stacked.mesh, spec))

    return tuple({name: placed(name, leaf) for name, leaf in layer.items()} for layer in layers)


def _abstract_search(
    config: ModelConfig, mesh: Mesh, shape: CatShape, settings: CatConfig, dtype: jnp.dtype, apart: bool
) -> CatState:
    """The search's state as `CatState.placed` and `KVCache.placed` leave it."""
    questions, branches = shape.questions, shape.branches
    automaton = build_automaton([bytes([i % 256]) for i in range(config.vocab_size)], "\n\n")

    def build() -> CatState:
        prompts = init_cache(config, questions, 0, dtype, prompt_columns=shape.prompt)
        rows = init_cache(config, questions * branches, shape.max_new_tokens, dtype)
        cache = KVCache(
            prompts.prompt_k,
            prompts.prompt_v,
            prompts.prompt_valid,
            rows.k,
            rows.v,
            rows.valid,
            mesh=mesh,
        )
        return init_state(
            with_layers_apart(cache) if apart else cache,
            jnp.zeros((questions, config.vocab_size)),
            np.zeros((questions, 2), np.uint32),
            np.full(questions, shape.prompt, np.int32),
            automaton,
            Knobs.of(settings),
            num_slots=branches,
            capacity=shape.max_new_tokens,
        )

    state = jax.eval_shape(build)
    whole = replicated(mesh)

    def placed(leaf: Any, axes: tuple[str | None, ...] | None = None) -> Any:
        sharding = whole if axes is None else named_sharding(mesh, axes, leaf.shape)
        return Shaped(leaf.shape, leaf.dtype, sharding=sharding)

    light = dataclasses.replace(state, cache=None, logits=None)  # type: ignore[arg-type]
    return dataclasses.replace(
        jax.tree.map(placed, light),
        cache=state.cache.with_axes(placed),
        logits=placed(state.logits, LOGITS_AXES),
    )
