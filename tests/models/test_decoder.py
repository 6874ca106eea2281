import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.models import Decoder, ModelConfig, RopeConfig
from caspo_jax.models.weights import weights


def tiny(layers=2, **changes) -> ModelConfig:
    fields = {
        "model_type": "qwen3",
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": layers,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "rope": RopeConfig(theta=1e4),
    }
    return ModelConfig(**(fields | changes))


@pytest.fixture(scope="module")
def model():
    return Decoder(tiny(), rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def forward(model):
    return jax.jit(lambda ids, mask: model(ids, mask=mask))


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
        owner = model.layers if weight.stacked else model
        assert getattr(owner, weight.name).shape == ((2, *weight.shape) if weight.stacked else weight.shape)


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


def test_default_positions_count_real_tokens(model):
    # Invisible in logits, because RoPE is relative; seen through explicit positions that are scaled.
    ids, mask = rows(np.random.default_rng(0), [4, 7], 7, "left", 0)
    counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    _, cache = model.prefill(ids, mask, 7)
    explicit = model._run(
        jnp.asarray(ids), jnp.asarray(counted), jnp.asarray(mask), keep_kv=True, remat=False
    )
    columns = np.asarray(mask)[None, :, None, None, :]
    np.testing.assert_allclose(cache.k * columns, explicit[1][0] * columns, atol=1e-6)
    unpadded, unpadded_mask = ids[:1, 3:], mask[:1, 3:]
    _, short = model.prefill(unpadded, unpadded_mask, 4)
    np.testing.assert_allclose(cache.k[:, :1, :, :, 3:], short.k, atol=1e-6)


def test_decoding_equals_the_full_forward(model, forward):
    """Any split between prefill and decoding, rows of unequal length, a cache larger than needed."""
    rng = np.random.default_rng(2)
    ids, mask = rows(rng, [5, 8, 2], 8, "left", 0)
    new = rng.integers(0, 40, (3, 4)).astype(np.int32)
    full = forward(np.concatenate([ids, new], 1), np.concatenate([mask, np.ones((3, 4), bool)], 1))
    step = jax.jit(model.decode_step)
    for capacity in (12, 70):  # 70: more than one part of the cache
        logits, cache = model.prefill(ids, mask, capacity)
        np.testing.assert_allclose(logits, full[:, 7], atol=1e-5)
        for i in range(4):
            logits, cache = step(cache, new[:, i], mask.sum(1) + i, jnp.int32(8 + i))
            np.testing.assert_allclose(logits, full[:, 8 + i], atol=1e-5)
        assert np.asarray(cache.valid).sum() == mask.sum() + 12


def test_columns_that_a_row_skips_do_not_matter(model):
    """A row may own any set of columns: junk in a column that is not valid is not seen, at any cache width."""
    ids, mask = rows(np.random.default_rng(3), [6, 6], 6, "right", 0)
    step = jax.jit(model.decode_step)
    token, position = np.array([1, 2], np.int32), np.array([6, 6], np.int32)
    _, cache = model.prefill(ids, mask, 140)
    want, _ = step(cache, token, position, jnp.int32(6))
    for column in (40, 80, 139):
        junk = cache.k.at[..., 7:].set(jnp.where(jnp.arange(7, 140) == column, 0.0, 1e3))
        got, after = step(
            type(cache)(k=junk, v=cache.v, valid=cache.valid), token, position, jnp.int32(column)
        )
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert after.valid[:, column].all()


def test_hidden_states_norm_and_unembed(model):
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    before = np.asarray(model.hidden_states(ids, final_norm=False), np.float64)
    scale = np.asarray(model.final_norm[...], np.float64)
    normed = before / np.sqrt((before**2).mean(-1, keepdims=True) + model.config.rms_norm_eps) * scale
    np.testing.assert_allclose(model.hidden_states(ids), normed, atol=1e-5)
    logits = normed @ np.asarray(model.unembedding(), np.float64).T
    np.testing.assert_allclose(model(ids), logits, atol=1e-4)


def test_remat_changes_no_gradient(model):
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)

    def loss(model, remat):
        return jnp.square(model.hidden_states(ids, remat=remat)[:, :, 0]).mean()

    plain, rematted = (nnx.grad(lambda m, r=r: loss(m, r))(model) for r in (False, True))
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    assert largest > 1e-3
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rematted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def lowered(layers, dtype=jnp.float32, decode=False) -> str:
    abstract = nnx.eval_shape(lambda: Decoder(tiny(layers), dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract)
    ids = jax.ShapeDtypeStruct((2, 6), jnp.int32)

    def run(params, ids):
        model = nnx.merge(graphdef, params)
        if not decode:
            return model(ids)
        _, cache = model.prefill(ids, jnp.ones(ids.shape, bool), 8)
        return model.decode_step(cache, ids[:, 0], ids[:, 0], jnp.int32(6))[0]

    return jax.jit(run).lower(params, ids).as_text()


@pytest.mark.parametrize("decode", [False, True])
def test_program_does_not_grow_with_depth(decode):
    assert lowered(2, decode=decode).count("\n") == lowered(24, decode=decode).count("\n")


def test_float32_asks_for_full_precision_in_every_product():
    program = lowered(2, decode=True)
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 19  # 7 matrices, scores and mix, of prefill and of decoding, and the head
    assert all("[HIGHEST, HIGHEST]" in line for line in products)


def test_bfloat16_multiplies_bf16_into_float32_logits_and_scores(model):
    program = lowered(2, dtype=jnp.bfloat16, decode=True)
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert all("bf16" in line and "HIGHEST" not in line for line in products)
    into_float32 = [line for line in products if line.rstrip().endswith("xf32>")]
    assert len(into_float32) == 5  # scores and mix, of prefill and of decoding, and the head
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    half = Decoder(tiny(), dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    logits, exact = half(ids), model(ids)
    assert logits.dtype == jnp.float32
    assert float(jnp.abs(logits - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def test_float32_parameters_with_bf16_compute():
    mixed = Decoder(tiny(), dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(1))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(mixed))} == {"float32"}
    same = Decoder(tiny(), dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    ids = np.arange(6, dtype=np.int32)[None]
    assert mixed.hidden_states(ids).dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed(ids), same(ids), atol=0.05)


def test_capacity_below_the_prompt_is_refused(model):
    with pytest.raises(ValueError, match="capacity 3"):
        model.prefill(np.zeros((1, 4), np.int32), np.ones((1, 4), bool), 3)
