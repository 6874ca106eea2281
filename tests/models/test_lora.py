"""LoRA adapters against weights merged by hand in NumPy, and against PEFT."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from safetensors.numpy import load_file, save_file

from caspo_jax.errors import UserError
from caspo_jax.models import (
    Decoder,
    LoraConfig,
    add_lora,
    base_model,
    load_adapter,
    load_pretrained,
    merge_lora,
    pretrained,
    save_pretrained,
)
from caspo_jax.models.lora import LINEAR, Frozen, attach, lora_weights
from caspo_jax.sharding import make_mesh, named_sharding
from tests.shapes import small_shape

NAME = "qwen3_tied_fp32"
LAYERS = 3
IDS = np.arange(18, dtype=np.int32).reshape(2, 9) * 7 % 500
SHAPES = {  # in and out of each map of the golden checkpoint
    "self_attn.q_proj": (64, 128),
    "self_attn.k_proj": (64, 64),
    "self_attn.v_proj": (64, 64),
    "self_attn.o_proj": (128, 64),
    "mlp.gate_proj": (64, 128),
    "mlp.up_proj": (64, 128),
    "mlp.down_proj": (128, 64),
}


def logits_of(model):
    return np.asarray(jax.jit(lambda ids: model(ids))(IDS))


def same_arrays(a, b):
    return all(
        x is y for x, y in zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True)
    )


@pytest.fixture(scope="module")
def model(golden):
    return load_pretrained(golden / NAME)[0]


@pytest.fixture(scope="module")
def base_logits(model):
    return logits_of(model)


def hand_made(targets=tuple(SHAPES), rank=4, seed=0):
    """PEFT tensors from NumPy: A [r, in] and B [out, r] of every layer."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for target in targets:
            into, out = SHAPES[target]
            stem = f"base_model.model.model.layers.{layer}.{target}"
            tensors[f"{stem}.lora_A.weight"] = rng.normal(0, 0.2, (rank, into)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = rng.normal(0, 0.2, (out, rank)).astype(np.float32)
    return tensors


def write_adapter(folder, tensors, **settings):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    return write_adapter(folder, hand_made(), target_modules="all-linear")


@pytest.fixture(scope="module")
def adapted(model, adapter):
    return load_adapter(model, adapter)


@pytest.fixture(scope="module")
def merged_by_hand(golden, tmp_path_factory):
    """The golden checkpoint with W + (alpha / r) B A written into its tensors, in float64."""
    folder = tmp_path_factory.mktemp("merged") / "policy"
    shutil.copytree(golden / NAME, folder)
    tensors, pieces = load_file(folder / "model.safetensors"), hand_made()
    for layer in range(LAYERS):
        for target in SHAPES:
            stem = f"base_model.model.model.layers.{layer}.{target}"
            a, b = (np.asarray(pieces[f"{stem}.lora_{side}.weight"], np.float64) for side in "AB")
            name = f"model.layers.{layer}.{target}.weight"
            tensors[name] = (tensors[name] + 6 / 4 * (b @ a)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return load_pretrained(folder)[0]


def test_names_and_bad_settings():
    assert LoraConfig().targets == tuple(LINEAR)
    assert LoraConfig(targets=("v_proj", "q")) == LoraConfig(targets=("q_proj", "v_proj"))
    assert LoraConfig(rank=8).scale == 2
    assert LoraConfig(rank=16, alpha=8, rslora=True).scale == 2
    for settings, word in (
        ({"rank": 0}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"targets": ("q_proj", "lm_head")}, "lm_head"),
        ({"targets": ()}, "target"),
    ):
        with pytest.raises(UserError, match=word):
            LoraConfig(**settings)


def test_fresh_adapters_change_nothing_and_are_all_that_trains(model, base_logits):
    new = add_lora(model, LoraConfig(rank=4, targets=("q", "down")), jax.random.key(0))
    np.testing.assert_allclose(logits_of(new), base_logits, atol=1e-6)
    _, trained, frozen, rest = nnx.split(new, nnx.Param, Frozen, ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == LAYERS * 4 * (64 + 128) * 2
    assert not jax.tree.leaves(rest)
    assert {id(leaf) for leaf in jax.tree.leaves(frozen)} == {
        id(leaf) for leaf in jax.tree.leaves(nnx.state(model))
    }
    assert np.abs(np.asarray(new.layers.q_lora_a[...])).max() <= 1 / np.sqrt(64)
    assert np.asarray(new.layers.down_lora_a[...]).std() == pytest.approx(1 / np.sqrt(3 * 128), rel=0.1)
    both = add_lora(model, LoraConfig(rank=4, targets=("gate", "up")), jax.random.key(0)).layers
    assert not np.any(np.asarray(both.gate_lora_a[...]) == np.asarray(both.up_lora_a[...]))
    # The first model is what it was.
    assert model.lora is None
    assert isinstance(model.layers.q, nnx.Param)
    with pytest.raises(UserError, match="already"):
        add_lora(new, LoraConfig(), jax.random.key(0))
    with pytest.raises(UserError, match="takes no adapters"):
        add_lora(nnx.Module(), LoraConfig(), jax.random.key(0))


def test_a_rank_above_a_matrixs_smaller_side_is_refused_by_name(model):
    for lora, words in (
        (
            LoraConfig(rank=100_000),
            r"rank=100000 \(--lora_rank\) is above 64, the smaller side of q_proj \[64, 128\]",
        ),
        (LoraConfig(rank=65, targets=("down",)), r"rank=65 .* 64, .* down_proj \[128, 64\]"),
    ):
        with pytest.raises(UserError, match=words):
            add_lora(model, lora, jax.random.key(0))
    assert add_lora(model, LoraConfig(rank=64), jax.random.key(0)).lora.rank == 64
    # As read from files it may be: PEFT writes such.
    read = attach(model, LoraConfig(rank=65), lambda weight, _: np.zeros((LAYERS, *weight.shape), np.float32))
    assert read.lora.rank == 65


def test_adapters_equal_weights_merged_by_hand(model, adapted, merged_by_hand, base_logits):
    want = logits_of(merged_by_hand)
    assert np.abs(want - base_logits).max() > 0.5
    np.testing.assert_allclose(logits_of(adapted), want, atol=2e-4)
    merged = merge_lora(adapted)
    assert merged.lora is None
    for a, b in zip(
        jax.tree.leaves(nnx.state(merged)), jax.tree.leaves(nnx.state(merged_by_hand)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert same_arrays(merge_lora(model), model)


def test_decoding_with_adapters_equals_reading(adapted):
    read = logits_of(adapted)

    @jax.jit
    def decode(ids):
        logits, cache = adapted.prefill(ids[:, :6], jnp.ones((2, 6), bool), 4)
        rows = [logits]
        for column in range(3):
            logits, cache = adapted.decode_step(cache, ids[:, 6 + column], jnp.full(2, 6 + column), column)
            rows.append(logits)
        return jnp.stack(rows, axis=1)

    np.testing.assert_allclose(decode(IDS), read[:, 5:], atol=1e-4)


def test_the_base_shares_its_arrays(model, adapted):
    assert same_arrays(base_model(adapted), model)
    assert isinstance(base_model(adapted).layers.q, nnx.Param)


def test_export_merges(adapted, merged_by_hand, tmp_path):
    save_pretrained(adapted, None, tmp_path / "policy")
    loaded, _ = load_pretrained(tmp_path / "policy")
    for a, b in zip(
        jax.tree.leaves(nnx.state(loaded)), jax.tree.leaves(nnx.state(merged_by_hand)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_export_merges_a_layer_at_a_time(adapted):
    """Of all layers at once, a weight is a fifth of a model, beside the model on its device."""
    before = {id(array) for array in jax.live_arrays()}
    for tensor in pretrained._tensors(adapted):
        new = [array for array in jax.live_arrays() if id(array) not in before]
        assert max((array.nbytes for array in new), default=0) <= tensor.nbytes


def test_bfloat16_base_keeps_its_dtype(golden, adapter):
    half, _ = load_pretrained(golden / NAME, dtype="bfloat16")
    adapted = load_adapter(half, adapter)
    assert adapted.layers.q[...].dtype == jnp.bfloat16
    assert adapted.layers.q_lora_a[...].dtype == jnp.float32
    merged = merge_lora(adapted)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(merged))} == {jnp.dtype("bfloat16")}
    a, b = (np.asarray(x[...], np.float64) for x in (adapted.layers.q_lora_a, adapted.layers.q_lora_b))
    exact = np.asarray(half.layers.q[...], np.float64) + 6 / 4 * (a @ b)
    found = np.asarray(merged.layers.q[...], np.float64)
    # Rounded once: never further off than half a unit in the last of eight places.
    assert (np.abs(found - exact) <= np.abs(exact) * 2.0**-8).all()


def test_adapters_are_split_by_the_rules_of_their_weights(golden, model):
    table = {w.name: w for w in lora_weights(model.config, LoraConfig())}
    mesh = AbstractMesh((2, 4), ("fsdp", "tensor"))
    specs = {
        "q_lora_a": PartitionSpec(None, ("fsdp",)),
        "q_lora_b": PartitionSpec(None, None, ("tensor",)),
        "down_lora_a": PartitionSpec(None, ("tensor",)),
        "down_lora_b": PartitionSpec(None, None, ("fsdp",)),
    }
    for name, spec in specs.items():
        assert named_sharding(mesh, ("layers", *table[name].axes)).spec == spec
    placed = load_pretrained(golden / NAME, mesh=make_mesh("fsdp:-1"))[0]
    adapted = add_lora(placed, LoraConfig(targets=("o",)), jax.random.key(0))
    assert adapted.layers.o_lora_b[...].sharding.spec == PartitionSpec(None, None, ("fsdp",))


def test_logits_and_settings_are_those_of_peft(model, golden):
    """An adapter and its logits as PEFT wrote them (tests/golden/README.md)."""
    folder = golden / "peft_lora_qwen3"
    adapted = load_adapter(model, folder)
    assert adapted.lora == LoraConfig(4, 6.0, ("q_proj", "v_proj", "down_proj"), rslora=True)
    with np.load(folder / "expected.npz") as expected:
        np.testing.assert_array_equal(expected["input_ids"], IDS)
        want = expected["logits"]
    np.testing.assert_allclose(logits_of(adapted), want, atol=1e-4)
    np.testing.assert_allclose(logits_of(merge_lora(adapted)), want, atol=1e-4)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_the_backward_pass_keeps_no_product_twice(remat):
    """A map's result and its adapter's share were both kept, where their sum is enough."""
    plain = Decoder(small_shape(intermediate_size=40), dtype="bfloat16", rngs=nnx.Rngs(0))
    ids = jnp.asarray(IDS % 64)
    kept = []
    for model in (plain, add_lora(plain, LoraConfig(rank=2), jax.random.key(0))):
        graphdef, params, frozen = nnx.split(model, nnx.Param, ...)

        def states(params, graphdef=graphdef, frozen=frozen):
            return nnx.merge(graphdef, params, frozen).hidden_states(ids, remat=remat)

        _, backward = jax.vjp(states, params)
        leaves = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape[:1] == (2,)]
        # Results of gate and up: one row a token, stacked by layer.
        kept.append([leaf.shape for leaf in leaves if leaf.shape[1:] == (ids.size, 40)])
    assert len(kept[0]) == 2
    assert kept[1] == kept[0]
