"""The decoder: padding, caches and branches change nothing, on one device or several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.models import Decoder, ModelConfig, RopeConfig, branch, decoder, grow
from caspo_jax.models.cache import with_layers_apart, with_prompt_lanes
from caspo_jax.models.lora import LoraConfig, add_lora
from caspo_jax.models.weights import owner, weights
from caspo_jax.sharding import make_mesh
from tests.shapes import small_shape


def tiny(layers=2, **changes) -> ModelConfig:
    fields = {"vocab_size": 40, "num_layers": layers, "num_heads": 4, "num_kv_heads": 2}
    return small_shape(**(fields | {"rope": RopeConfig(theta=1e4)} | changes))


@pytest.fixture(scope="module")
def model():
    return Decoder(tiny(), rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def forward(model):
    return jax.jit(lambda ids, mask: model(ids, mask=mask))


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "lanes"])
def prefill(request, model):
    """Into a cache of either layout."""
    return jax.jit(functools.partial(model.prefill, lanes=request.param), static_argnums=2)


@pytest.fixture(params=[False, True], ids=["prompt rows", "prompt lanes"])
def laid(request):
    """Puts the prompts of a cache of lanes into either layout."""
    return lambda cache: with_prompt_lanes(cache) if request.param and cache.lanes else cache


@pytest.fixture(scope="module")
def step(model):
    return jax.jit(model.decode_step)


def rows(rng, lengths, width, side, filler):
    """Ragged random rows, padded on one side with `filler`."""
    tokens = [rng.integers(0, 40, n) for n in lengths]
    ids, mask = np.full((len(lengths), width), filler, np.int32), np.zeros((len(lengths), width), bool)
    for row, token in enumerate(tokens):
        where = slice(0, len(token)) if side == "right" else slice(width - len(token), width)
        ids[row, where], mask[row, where] = token, True
    return ids, mask


def test_all_state_is_params_and_named_by_the_table(model):
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    assert len(jax.tree.leaves(params)) == len(weights(model.config))
    for weight in weights(model.config):
        array = getattr(owner(model, weight), weight.name)
        assert array.shape == ((2, *weight.shape) if weight.stacked else weight.shape)


@pytest.mark.parametrize("filler", [0, 39, -1, 10**6])
def test_padding_and_its_content_change_nothing(forward, filler):
    lengths = [3, 9, 1]
    reference = None
    for side in ("right", "left"):
        ids, mask = rows(np.random.default_rng(0), lengths, 9, side, filler)
        logits = np.asarray(forward(ids, mask))
        assert np.isfinite(logits).all()
        if reference is None:
            reference = logits[mask]
        np.testing.assert_allclose(logits[mask], reference, atol=2e-6)
    alone = forward(np.roll(ids, 1, axis=0), np.roll(mask, 1, axis=0))  # other neighbours, another row
    np.testing.assert_allclose(np.asarray(alone)[2], reference[3:12], atol=2e-6)


def test_default_positions_count_real_tokens(prefill):
    # Logits cannot tell, because rotations are relative; cached keys can, because they are rotated when written.
    ids, mask = rows(np.random.default_rng(0), [4, 7], 7, "left", 0)
    _, padded = prefill(ids, mask, 7)
    _, unpadded = prefill(ids[:, 3:], mask[:, 3:], 7)
    padded, unpadded = padded.prompt_k, unpadded.prompt_k
    np.testing.assert_allclose(padded[:, 0, ..., 3:], unpadded[:, 0, ..., :4], atol=1e-6)
    # Seven tokens: other positions.
    assert np.abs(padded[:, 1, ..., 3:] - unpadded[:, 1, ..., :4]).max() > 0.1


def test_decoding_equals_the_full_forward(forward, prefill, laid, step):
    """Any split between prefill and decoding, rows of unequal length, a cache larger than needed."""
    rng = np.random.default_rng(2)
    ids, mask = rows(rng, [5, 8, 2], 8, "left", 0)
    new = rng.integers(0, 40, (3, 4)).astype(np.int32)
    full = forward(np.concatenate([ids, new], 1), np.concatenate([mask, np.ones((3, 4), bool)], 1))
    for capacity in (4, 70):  # 70: more than one part of the cache
        logits, cache = prefill(ids, mask, capacity)
        cache = laid(cache)
        np.testing.assert_allclose(logits, full[:, 7], atol=1e-5)
        for i in range(4):
            logits, cache = step(cache, new[:, i], mask.sum(1) + i, jnp.int32(i))
            np.testing.assert_allclose(logits, full[:, 8 + i], atol=1e-5)
        assert np.asarray(cache.valid).sum() == 12


def test_branches_of_a_prompt_decode_as_rows_with_prompts_of_their_own(prefill, laid, step):
    rng = np.random.default_rng(5)
    ids, mask = rows(rng, [6, 3], 6, "left", 0)
    new = rng.integers(0, 40, (6, 3)).astype(np.int32)  # three branches a prompt
    repeated_ids, repeated_mask = np.repeat(ids, 3, axis=0), np.repeat(mask, 3, axis=0)
    _, alone = prefill(repeated_ids, repeated_mask, 3)
    _, shared = prefill(ids, mask, 0)
    shared = laid(grow(branch(shared, 3), 3))
    assert (shared.rows, shared.branches, shared.prompts) == (6, 3, 2)
    for i in range(3):
        position = repeated_mask.sum(1) + i
        want, alone = step(alone, new[:, i], position, jnp.int32(i))
        got, shared = step(shared, new[:, i], position, jnp.int32(i))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_columns_that_a_row_skips_do_not_matter(prefill, step):
    """A row may own any set of columns: junk in a column that is not valid is not seen, at any cache width."""
    ids, mask = rows(np.random.default_rng(3), [6, 6], 6, "right", 0)
    token, position = np.array([1, 2], np.int32), np.array([6, 6], np.int32)
    _, cache = prefill(ids, mask, 140)
    want, _ = step(cache, token, position, jnp.int32(0))
    for column in (40, 80, 139):
        kept = jnp.arange(140) == column
        kept = kept[:, None, None, None] if cache.lanes else kept
        junk = jnp.broadcast_to(jnp.where(kept, 0.0, 1e3), cache.k.shape)
        got, after = step(dataclasses.replace(cache, k=junk), token, position, jnp.int32(column))
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert (after.valid[column] if cache.lanes else after.valid[:, column]).all()


def test_hidden_states_norm_and_unembed(model):
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    before, after, logits = jax.jit(
        lambda ids: (model.hidden_states(ids, final_norm=False), model.hidden_states(ids), model(ids))
    )(ids)
    before = np.asarray(before, np.float64)
    scale = np.asarray(model.final_norm[...], np.float64)
    normed = before / np.sqrt((before**2).mean(-1, keepdims=True) + model.config.rms_norm_eps) * scale
    np.testing.assert_allclose(after, normed, atol=1e-5)
    np.testing.assert_allclose(logits, normed @ np.asarray(model.unembedding(), np.float64).T, atol=1e-4)


def test_remat_changes_no_gradient(model):
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    graphdef, params = nnx.split(model)

    def loss(params, remat):
        return jnp.square(nnx.merge(graphdef, params).hidden_states(ids, remat=remat)[:, :, 0]).mean()

    plain, rematted = (jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in ("none", "full"))
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    assert largest > 1e-3
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rematted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_without_remat_a_loop_keeps_little_but_products(monkeypatch):
    """Norms' float32 copies and the gate's factors were two thirds of what was kept."""
    model = Decoder(tiny(num_layers=4, intermediate_size=256), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    ids = np.zeros((8, 64), np.int32)
    graphdef, params = nnx.split(model)

    def temporaries():
        grad = jax.jit(
            jax.grad(lambda p: nnx.merge(graphdef, p).hidden_states(ids).astype(jnp.float32).mean())
        )
        return grad.lower(params).compile().memory_analysis().temp_size_in_bytes

    kept = temporaries()
    monkeypatch.setattr(decoder, "rematted", lambda layer_step, *_, **__: layer_step)
    assert kept < 0.6 * temporaries()


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_layers_written_out_equal_layers_in_a_loop(model, remat, monkeypatch):
    ids, ends = np.arange(12, dtype=np.int32).reshape(2, 6), np.full((2, 6), 6, np.int32)
    graphdef, params = nnx.split(model)

    def found(most):
        def loss(params):
            model = nnx.merge(graphdef, params)
            return jnp.square(model.hidden_states(ids, remat=remat, subtree_end=ends)[:, :, 0]).mean()

        monkeypatch.setattr(decoder, "_UNROLLED", most)
        program = jax.jit(jax.value_and_grad(loss)).lower(params)
        return program.compile()(params), program.as_text().count("stablehlo.while")

    (written, no_loops), (looped, loops) = found(2), found(1)
    assert (no_loops, loops > 0) == (0, True)
    for a, b in zip(jax.tree.leaves(written), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_layers_in_bfloat16_stay_in_a_loop():
    """Written out, they are rounded in other places with a gradient than without, and references are without."""
    ids, ends = np.arange(12, dtype=np.int32).reshape(2, 6), np.full((2, 6), 6, np.int32)
    model = Decoder(tiny(), dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    program = jax.jit(lambda ids: model.hidden_states(ids, subtree_end=ends)).lower(ids)
    assert "stablehlo.while" in program.as_text()


SHAPES = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "model_type": "llama"},
    "biases": {"model_type": "llama", "qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "lora": {},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("row_count", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_decoding_on_one_cpu_gives_the_logits_of_any_device(name, row_count, monkeypatch):
    model = Decoder(tiny(3, **SHAPES[name]), rngs=nnx.Rngs(2))
    rng = np.random.default_rng(0)
    for path, value in nnx.to_flat_state(nnx.state(model)):
        if "bias" in path[-1] or "norm" in path[-1]:
            value[...] += rng.normal(size=value[...].shape).astype(np.float32) * 0.1
    if name == "lora":
        model = add_lora(model, LoraConfig(rank=2), jax.random.key(1))
        b = model.layers.q_lora_b
        b[...] = jnp.asarray(rng.normal(size=b[...].shape), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 40, (row_count, 6)), jnp.int32)
    _, cache = model.prefill(ids, jnp.ones(ids.shape, bool), 8)
    results = []
    for cpu in (True, False):
        monkeypatch.setattr(decoder, "on_one_cpu", lambda cpu=cpu: cpu)
        step = jax.jit(lambda *args: model.decode_step(*args))
        results.append(step(cache, ids[:, 0], jnp.full(row_count, 6), jnp.int32(0)))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for layers in (None, model.layers_apart(), model.layers_apart(turned=True)):
        logits, apart = step(
            with_layers_apart(cache), ids[:, 0], jnp.full(row_count, 6), jnp.int32(0), layers
        )
        np.testing.assert_allclose(logits, results[1][0], atol=1e-5)
        assert apart.apart
        for name in ("k", "v", "valid"):
            found, want = getattr(apart, name), getattr(results[1][1], name)
            np.testing.assert_allclose(found if name == "valid" else np.concatenate(found), want, atol=1e-5)


def test_a_row_with_a_nan_leaves_the_others_alone(model, monkeypatch):
    monkeypatch.setattr(decoder, "on_one_cpu", lambda: True)
    ids = jnp.asarray([[1, 2], [3, 4]], jnp.int32)
    _, cache = model.prefill(ids, jnp.ones(ids.shape, bool), 2)
    broken = dataclasses.replace(cache, prompt_v=cache.prompt_v.at[:, 0].set(jnp.nan))
    good, bad = (model.decode_step(c, ids[:, 1], ids[:, 1], jnp.int32(0))[0] for c in (cache, broken))
    assert np.isnan(bad[0]).all()
    np.testing.assert_allclose(bad[1], good[1], atol=1e-6)


def test_decoding_on_a_mesh_does_not_ask_what_the_device_is(monkeypatch):
    model = Decoder(tiny(), rngs=nnx.Rngs(0), mesh=make_mesh("data:1", jax.devices()[:1]))
    ids = jnp.zeros((2, 6), jnp.int32)
    _, cache = model.prefill(ids, jnp.ones(ids.shape, bool), 8)
    programs = []
    for cpu in (True, False):
        monkeypatch.setattr(decoder, "on_one_cpu", lambda cpu=cpu: cpu)
        step = jax.jit(lambda *args: model.decode_step(*args))
        programs.append(step.lower(cache, ids[:, 0], ids[:, 0], jnp.int32(0)).as_text())
    assert programs[0] == programs[1]


def test_bfloat16_is_near_float32_whatever_the_parameters_are_stored_in(forward):
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    exact = np.asarray(forward(ids, np.ones(ids.shape, bool)))
    for stored in ("bfloat16", "float32"):
        half = Decoder(tiny(), dtype=jnp.bfloat16, param_dtype=stored, rngs=nnx.Rngs(1))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(half))} == {stored}
        hidden, logits = jax.jit(lambda ids, half=half: (half.hidden_states(ids), half(ids)))(ids)
        assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
        error = np.abs(logits - exact).max()
        assert 1e-4 * np.abs(exact).max() < error < 0.05 * np.abs(exact).max()


def test_what_a_frequent_token_gets_adds_up_in_bfloat16():
    """Summed in bfloat16, most of 2,000 equal gradients is lost: each is soon less than half of the sum's last bit."""
    ids = np.full((2, 1000), 3, np.int32)
    upstream = np.random.default_rng(0).normal(size=16).astype(np.float32)
    _, params = nnx.split(Decoder(tiny(), dtype=jnp.bfloat16, rngs=nnx.Rngs(1)))

    def gradient(dtype):
        graphdef, _ = nnx.split(Decoder(tiny(), dtype=dtype, rngs=nnx.Rngs(1)))

        def loss(params):
            return jnp.sum(nnx.merge(graphdef, params).hidden_states(ids) * upstream)

        own = jax.tree.map(lambda p: p.astype(dtype), params)
        return np.asarray(jax.jit(jax.grad(loss))(own)["embed"][...], np.float32)

    half, exact = gradient(jnp.bfloat16), gradient(jnp.float32)
    np.testing.assert_allclose(half[3], exact[3], atol=0.05 * np.abs(exact[3]).max())
    assert not np.delete(half, 3, axis=0).any()
