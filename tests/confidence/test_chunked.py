import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.test_util import check_grads

from caspo_jax.compilation import compiled_anew
from caspo_jax.compile_check import topology_devices
from caspo_jax.compile_check.cost import program_cost
from caspo_jax.compile_check.hlo import parse
from caspo_jax.confidence import (
    TOKEN_FIELDS,
    chunked,
    chunked_stats,
    hidden_stats_and_kl,
    hidden_token_stats,
    model_token_stats,
    token_logprobs,
    token_logprobs_and_entropy,
    token_stats,
)
from caspo_jax.errors import UserError
from caspo_jax.sharding import make_mesh, named_sharding

_spec = importlib.util.spec_from_file_location("reference", pathlib.Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

B, T, E, V = 2, 7, 8, 11


def arrays(seed=0, shape=(B, T), width=E, vocab=V, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*shape, width)), dtype)
    weight = jnp.asarray(rng.normal(size=(vocab, width)), dtype)
    return hidden, weight, jnp.asarray(rng.integers(vocab, size=shape))


def exact(hidden, weight, targets):
    logits = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
    logprob = np.take_along_axis(reference.log_softmax(logits), np.asarray(targets)[..., None], -1)[..., 0]
    return logprob, reference.entropy(logits)


@pytest.mark.parametrize(
    "chunk, dtype",
    [(None, jnp.float32), (1, jnp.float32), (3, jnp.float32), (None, jnp.bfloat16), (3, jnp.bfloat16)],
)
def test_values_against_float64(chunk, dtype):
    hidden, weight, targets = arrays(dtype=dtype)
    got = chunked_stats(hidden, weight, targets, chunk)
    for value, want in zip(got, exact(hidden, weight, targets)):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, want, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 3])
def test_states_and_head_of_two_dtypes_meet_in_the_wider(chunk):
    hidden, weight, targets = arrays()
    narrow = hidden.astype(jnp.bfloat16)

    def total(hidden, weight):
        return sum(jnp.sum(x) for x in chunked_stats(hidden, weight, targets, chunk))

    found = jax.grad(total, (0, 1))(narrow, weight)
    want = jax.grad(total, (0, 1))(narrow.astype(jnp.float32), weight)
    for one, other, dtype in zip(found, want, (jnp.bfloat16, jnp.float32)):
        np.testing.assert_array_equal(one, other.astype(dtype))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0,), (3, 0, 2)])
def test_no_token_at_all(shape):
    hidden, weight, targets = arrays(shape=shape)
    for chunk in (None, 2):
        assert [found.shape for found in chunked_stats(hidden, weight, targets, chunk)] == [shape, shape]


def test_bf16_with_a_real_vocabulary():
    """ANCHORS: bf16 logits would be off by 0.08 here."""
    hidden, weight, targets = arrays(1, (1, 40), 64, 2048, jnp.bfloat16)
    for value, want in zip(
        chunked_stats(hidden, weight / 8, targets, 16), exact(hidden, weight / 8, targets)
    ):
        np.testing.assert_allclose(value, want, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_any_leading_axes(shape):
    hidden, weight, targets = arrays(2, shape)
    for value, want in zip(chunked_stats(hidden, weight, targets, 100), exact(hidden, weight, targets)):
        assert value.shape == shape
        np.testing.assert_allclose(value, want, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 3])
def test_gradients_by_finite_differences(chunk):
    hidden, weight, targets = arrays(3)
    rng = np.random.default_rng(4)
    a, b = (jnp.asarray(rng.normal(size=(B, T)), jnp.float32) for _ in range(2))

    def loss(hidden, weight):
        logprob, entropy = chunked_stats(hidden, weight, targets, chunk)
        return jnp.sum(a * logprob + b * entropy)

    check_grads(jax.jit(loss), (hidden, weight), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("part", ["logprob", "entropy", "both"])
def test_gradients_equal_autodiff_of_the_whole_logits(part):
    hidden, weight, targets = arrays(5)
    scale = {"logprob": (1.0, None), "entropy": (None, 1.0), "both": (0.7, -0.4)}[part]
    combine = lambda pair: sum(s * jnp.sum(x**2) for s, x in zip(scale, pair) if s is not None)  # noqa: E731

    def whole(hidden, weight):
        logp = jax.nn.log_softmax(hidden @ weight.T)
        picked = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
        return combine((picked, -jnp.sum(jnp.exp(logp) * logp, -1)))

    want = jax.jit(jax.grad(whole, (0, 1)))(hidden, weight)
    for chunk in (None, 2):
        got = jax.jit(jax.grad(lambda h, w, c=chunk: combine(chunked_stats(h, w, targets, c)), (0, 1)))(
            hidden, weight
        )
        for g, w in zip(got, want):
            np.testing.assert_allclose(g, w, atol=2e-5)


def test_bf16_gradients_keep_their_dtype_and_size():
    hidden, weight, targets = arrays(6)
    loss = lambda h, w, c: chunked_stats(h, w, targets, c)[0].sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    half = (hidden.astype(jnp.bfloat16), weight.astype(jnp.bfloat16))
    want = gradient(*(leaf.astype(jnp.float32) for leaf in half), None)
    got = gradient(*half, 3)
    for g, w in zip(got, want):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(g, np.float32), w, atol=0.1)


def test_extreme_states_give_finite_gradients():
    hidden, weight, targets = arrays(7)
    both = lambda h, w: sum(x.sum() for x in chunked_stats(h, w, targets, 3))  # noqa: E731
    for leaf in jax.tree.leaves(jax.jit(jax.grad(both, (0, 1)))(hidden * 1e3, weight * 10)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_logit_that_overflows_takes_no_part(chunk):
    """-1e40 is -inf: values and gradients are those without that entry of the vocabulary."""
    hidden = jnp.array([[[1e20, 1.0], [1e20, -0.5]]])
    weight = jnp.array([[0.0, 1.0], [0.0, 2.0], [-1e20, 0.0]])
    targets = jnp.array([[0, 1]])

    def both(weight):
        def loss(hidden, weight):
            logprob, entropy = chunked_stats(hidden, weight, targets, chunk)
            return jnp.sum(logprob - 0.3 * entropy)

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, weight)

    value, (d_hidden, d_weight) = both(weight)
    expected, (wanted, of_weight) = both(weight[:2])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(d_hidden, wanted, atol=1e-6)
    np.testing.assert_allclose(d_weight, np.concatenate([of_weight, np.zeros((1, 2))]), rtol=1e-5)


def test_neither_pass_holds_the_whole_logits():
    length, vocab = 64, 4096
    hidden, weight, targets = arrays(8, (2, length), 4, vocab)
    loss = lambda h, w: sum(x.sum() for x in chunked_stats(h, w, targets, 4))  # noqa: E731
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, weight).compile()
    whole = 2 * length * vocab * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 2
    assert f"{2 * length},{vocab}" not in compiled.as_text()
    assert f"2,{length},{vocab}" not in compiled.as_text()


def test_default_chunk_bounds_the_logits(monkeypatch):
    monkeypatch.setitem(chunked.CHUNK_LOGITS, "cpu", 2 * 5 * V)
    hidden, weight, targets = arrays(9, (2, 12))
    text = str(jax.make_jaxpr(lambda h, w: chunked_stats(h, w, targets))(hidden, weight))
    assert "f32[2,4,11]" in text  # three even chunks of 4 rather than 5 + 5 + 2
    assert "f32[2,12,11]" not in text


class Toy(nnx.Module):
    """States that mix each token with the real ones before it."""

    def __init__(self, vocab, width, rngs):
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (vocab, width)))

    def hidden_states(self, token_ids, positions=None, mask=None):
        kept = jnp.where(mask[..., None], self.embed[...][token_ids], 0.0)
        return jnp.cumsum(kept, axis=1) / jnp.maximum(jnp.cumsum(mask, axis=1), 1)[..., None]

    def unembedding(self):
        return self.embed[...]


@pytest.fixture(scope="module")
def toy():
    return Toy(V, E, nnx.Rngs(0))


def test_token_logprobs_alignment_and_padding(toy):
    rng = np.random.default_rng(0)
    row = rng.integers(V, size=6)
    ids = np.stack([np.concatenate([[1, 2, 3], row]), np.concatenate([row, [4, 5, 6]])])
    mask = np.stack([np.arange(9) >= 3, np.arange(9) < 6])
    logprob, entropy = nnx.jit(lambda model, i, m: token_logprobs_and_entropy(model, i, m, chunk=4))(
        toy, ids, mask
    )
    assert logprob.shape == entropy.shape == (2, 8)
    hidden = toy.hidden_states(row[None, :-1], mask=jnp.ones((1, 5), bool))
    want_logprob, want_entropy = exact(hidden, toy.unembedding(), row[None, 1:])
    for start, got in ((3, 0), (0, 1)):
        np.testing.assert_allclose(logprob[got, start : start + 5], want_logprob[0], atol=1e-5)
        np.testing.assert_allclose(entropy[got, start : start + 5], want_entropy[0], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(logprob)[~(mask[:, :-1] & mask[:, 1:])], 0.0)
    alone = nnx.jit(token_logprobs)(toy, row[None])
    assert alone.shape == (1, 5)
    np.testing.assert_allclose(alone[0], want_logprob[0], atol=1e-5)


def test_gradient_through_the_model_ignores_padding(toy):
    row = np.arange(5)[None]
    padded = np.concatenate([row, [[7, 8]]], axis=1)
    mask = np.arange(7)[None] < 5
    loss = lambda model, ids, mask: token_logprobs(model, ids, mask).sum()  # noqa: E731
    step = nnx.jit(nnx.value_and_grad(loss))
    value, grads = step(toy, row, np.ones((1, 5), bool))
    padded_value, padded_grads = step(toy, padded, mask)
    assert float(value) == pytest.approx(float(padded_value), abs=1e-5)
    np.testing.assert_allclose(jax.tree.leaves(grads)[0], jax.tree.leaves(padded_grads)[0], atol=1e-5)
    assert np.abs(jax.tree.leaves(grads)[0]).max() > 0.01


def test_model_token_stats_equals_stats_of_the_logits(toy):
    ids = np.random.default_rng(1).integers(V, size=(2, 9))
    hidden = toy.hidden_states(ids, mask=jnp.ones((2, 9), bool))
    want = token_stats((hidden @ toy.unembedding().T)[:, :-1], ids[:, 1:])
    got = nnx.jit(lambda model, i: model_token_stats(model, i, chunk=4))(toy, ids)
    for name in TOKEN_FIELDS:
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=2e-6, err_msg=name)
    only = jax.eval_shape(lambda i: model_token_stats(toy, i, fields=("entropy",)), ids)
    assert only.entropy.shape == (2, 8)
    assert only.top1_id is None


@pytest.mark.parametrize("bad", [-100, -1, V, V + 100])
def test_ids_outside_the_vocabulary_have_no_logprob(toy, bad):
    ids = np.array([[1, 2, bad, 3], [3, 2, 1, 0]])
    for score in (token_logprobs, model_token_stats):
        with pytest.raises(UserError, match=rf"outside the vocabulary \[0, {V}\)"):
            score(toy, ids)
    logprob, entropy = nnx.jit(token_logprobs_and_entropy)(toy, ids)
    np.testing.assert_array_equal(np.isnan(logprob), [[False, True, True], [False] * 3])
    np.testing.assert_array_equal(np.isnan(entropy), [[False, False, True], [False] * 3])
    mask = ids != bad  # as labels of -100 are left out
    np.testing.assert_array_equal(token_logprobs(toy, ids, mask)[0, 1:], 0.0)
    fine = nnx.jit(token_logprobs)(toy, ids, mask)
    np.testing.assert_allclose(fine, token_logprobs(toy, np.where(mask, ids, 0), mask), atol=1e-6)
    loss = lambda model: token_logprobs(model, ids, mask).sum()  # noqa: E731
    assert np.isfinite(jax.tree.leaves(nnx.value_and_grad(loss)(toy)[1])[0]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_ids_of_a_type_narrower_than_the_vocabulary(dtype):
    toy, ids = Toy(300, E, nnx.Rngs(0)), np.array([[5, 6, 100, 7]])
    for score in (token_logprobs, lambda *args: model_token_stats(*args).logprob):
        want = score(toy, ids)
        for narrow in (score(toy, ids.astype(dtype)), nnx.jit(score)(toy, ids.astype(dtype))):
            np.testing.assert_allclose(narrow, want, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 3])
def test_divergence_from_a_reference_against_float64(chunk):
    hidden, weight, targets = arrays()
    q = reference.log_softmax(np.random.default_rng(5).normal(size=V) * 3)
    p = reference.log_softmax(np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T)
    read = jax.jit(functools.partial(hidden_stats_and_kl, fields=("entropy",), chunk=chunk))
    stats, got = read(hidden, weight, targets, jnp.asarray(q, jnp.float32))
    np.testing.assert_allclose(stats.entropy, exact(hidden, weight, targets)[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got, np.sum(np.exp(p) * (p - q), axis=-1), rtol=1e-5, atol=1e-5)
    _, itself = read(hidden[:1, :1], weight, targets[:1, :1], jnp.asarray(p[0, 0], jnp.float32))
    np.testing.assert_allclose(itself, 0.0, atol=1e-5)


def test_what_neither_can_say_adds_nothing_to_the_divergence():
    """Of two entries, and of three whose last has no mass in the distribution nor in the reference."""
    hidden, targets, three = (
        jnp.array([[[1e20, 1.0]]]),
        jnp.array([[0]]),
        jnp.array([[0, 1], [0, 2], [-1e20, 0]]),
    )
    reference = jnp.array([-0.5, -1.0, -jnp.inf])
    found = [hidden_stats_and_kl(hidden, three[:n], targets, reference[:n], ("entropy",))[1] for n in (2, 3)]
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert np.isinf(hidden_stats_and_kl(hidden, 0 * three, targets, reference, ("entropy",))[1]).all()


def test_bad_shapes(toy):
    hidden, weight, targets = arrays()
    with pytest.raises(UserError, match="unembedding"):
        chunked_stats(hidden, weight[:, :-1], targets)
    with pytest.raises(UserError, match="targets"):
        chunked_stats(hidden, weight, targets[:, :-1])
    with pytest.raises(UserError, match="chunk = 0"):
        chunked_stats(hidden, weight, targets, 0)
    with pytest.raises(UserError, match="chunk = 0"):
        model_token_stats(toy, np.zeros((2, 4), int), chunk=0)
    with pytest.raises(UserError, match="T >= 2"):
        token_logprobs(toy, np.zeros((2, 1), int))
    with pytest.raises(UserError, match="mask of shape"):
        token_logprobs(toy, np.zeros((2, 4), int), np.ones((2, 3), bool))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the tpu extra)"
)
def test_on_a_mesh_the_head_is_gathered_once():
    """In every chunk it was 2,300 times, and 1.7 TB, for 16 rows of 8,192 tokens and the head of a 7B model."""
    rows, length, width, vocab, chips = 8, 64, 512, 8192, 4
    mesh = make_mesh("fsdp:4", topology_devices("v5e:2x2")[1])

    def shaped(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, axes, shape))

    read = jax.jit(functools.partial(hidden_token_stats, fields=("entropy", "logprob"), chunk=8, mesh=mesh))
    lowered = read.lower(
        shaped((rows, length, width), jnp.bfloat16, "batch", None, None),
        shaped((vocab, width), jnp.bfloat16, "vocab", "embed"),
        shaped((rows, length), jnp.int32, "batch", None),
    )
    with compiled_anew():
        program = lowered.compile()
    cost = program_cost(parse(program.as_text()), chips, {}, ())
    assert 0 < cost.ici_bytes < 2 * vocab * width * 2


def test_a_mesh_holds_as_many_logits_on_each_device(monkeypatch):
    mesh = AbstractMesh((4, 2), ("fsdp", "tensor"))
    for platform, held in (("cpu", 1 << 23), ("tpu", 1 << 25), ("gpu", 1 << 25)):
        monkeypatch.setattr(chunked, "platform_of", lambda _, platform=platform: platform)
        for rows, ways in ((8, 8), (2, 2), (3, 2)):  # rows that four devices do not divide are whole on each
            column = rows * 1000 / ways
            most = chunked._chunk_tokens((rows, 10**6, 16), 1000, None, mesh)
            assert most == pytest.approx(held / column, rel=0.01)
