"""What an update costs and what it computes do not depend on each other: remat, masters, donation, the head's chunks.

Sizes are those of the compiled program's own analysis; nothing of these shapes is run.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.confidence import chunked_stats
from caspo_jax.errors import UserError
from caspo_jax.models import Decoder, ModelConfig
from caspo_jax.training import TrainConfig, make_train_step, train
from caspo_jax.training.masked_head import HeadCut, masked_head
from caspo_jax.training.rounding import stochastic_round, stored_like
from caspo_jax.training.scored_stats import head_block, head_chunk, scored_stats
from caspo_jax.training.step_loss import loss_denominators
from caspo_jax.training.train_step import fused_update

from helpers import Toy, random_batch, tiny_decoder  # isort: skip

CONFIG = TrainConfig(
    learning_rate=1e-2, warmup_fraction=0, min_length=16, displacement_margin=100.0, tensorboard=False
)


def compiled_update(model, config, batch):
    step, state = make_train_step(model, config, 10)
    whole = loss_denominators(batch, config.loss)
    lowered = fused_update.lower(step.spec, state, step.frozen, batch, whole, np.float32(0), np.uint32(0))
    return lowered.compile(), state


def after_two_updates(model, config):
    step, state = make_train_step(model, config, 10)
    for number in range(2):
        state, output = step(state, [random_batch(seed=number)], number)
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(state.params)], output.fetch(config.loss)


@pytest.fixture(scope="module")
def kept():
    return after_two_updates(tiny_decoder(), CONFIG)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_gives_the_same_update(kept, remat):
    params, report = after_two_updates(tiny_decoder(), dataclasses.replace(CONFIG, remat=remat))
    np.testing.assert_allclose(report.metrics["loss"], kept[1].metrics["loss"], rtol=1e-5)
    # Adam divides by the root of the second moment: a gradient near 0 may turn over.
    for a, b in zip(params, kept[0], strict=True):
        assert np.mean(np.abs(a - b)) < 1e-5


@pytest.mark.slow
def test_full_remat_needs_less_memory():
    """In a loop `none` keeps what `dots` does and attention's results, so these two are about alike."""
    # Long enough that layers' activations are most of it.
    shape = ModelConfig("qwen3", 64, 32, 128, 6, 2, 1, 16, tie_word_embeddings=True)
    batch = random_batch(pairs=4, width=256)
    sizes = {}
    for remat in ("none", "dots", "full"):
        config = dataclasses.replace(CONFIG, remat=remat)
        program, _ = compiled_update(Decoder(shape, rngs=nnx.Rngs(0)), config, batch)
        sizes[remat] = program.memory_analysis().temp_size_in_bytes
    assert sizes["full"] < 0.6 * min(sizes["dots"], sizes["none"])
    assert abs(sizes["dots"] - sizes["none"]) < 0.1 * sizes["none"]


def test_unknown_names_are_refused():
    for change, word in (
        ({"remat": "some"}, "full, dots"),
        ({"remat": True}, "remat"),
        ({"masters": "bf16"}, "masters"),
    ):
        with pytest.raises(UserError, match=word):
            dataclasses.replace(CONFIG, **change)


def test_the_state_is_donated():
    program, state = compiled_update(Toy(), CONFIG, random_batch())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= size


def test_without_masters_the_state_is_smaller_and_moments_stay_float32():
    model, batch = Toy(vocab=64, width=64, dtype=jnp.bfloat16), random_batch()
    sizes = {}
    for masters in ("float32", "none"):
        program, state = compiled_update(model, dataclasses.replace(CONFIG, masters=masters), batch)
        sizes[masters] = program.memory_analysis().argument_size_in_bytes
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim} == {"float32"}
    entries = 2 * 64 * 64
    assert sizes["float32"] - sizes["none"] == pytest.approx(2 * entries, rel=0.01)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state.params))


def test_training_without_masters_follows_training_with_them():
    runs = {}
    for masters in ("float32", "none"):
        config = dataclasses.replace(
            CONFIG, masters=masters, learning_rate=3e-3, epochs=12, displacement_margin=100.0
        )
        _, summary = train(Toy(dtype=jnp.bfloat16), [random_batch(seed=6, pairs=4)], config)
        runs[masters] = [record["loss"] for record in summary.history]
    assert runs["float32"][-1] < runs["float32"][0] - 0.02
    np.testing.assert_allclose(runs["none"], runs["float32"], atol=0.02)


def test_rounding_is_unbiased_and_to_a_neighbour():
    rng = np.random.default_rng(0)
    x = jnp.asarray(
        np.concatenate([rng.normal(size=60) * 10.0 ** rng.integers(-8, 8, 60), [0.0, 1.0, -2.5, np.inf]]),
        jnp.float32,
    )
    drawn = np.asarray(
        jax.vmap(lambda key: stochastic_round(x, key))(jax.random.split(jax.random.key(1), 4000)), np.float64
    )
    exact = np.asarray(x, np.float64)
    np.testing.assert_array_equal(drawn[:, 60:], np.broadcast_to(exact[60:], drawn[:, 60:].shape))
    gap = np.abs(exact[:60]) * 2.0**-7
    assert np.all(np.abs(drawn[:, :60] - exact[:60]) <= gap)
    assert all(len(np.unique(column)) <= 2 for column in drawn.T)
    np.testing.assert_array_less(np.abs(drawn[:, :60].mean(axis=0) - exact[:60]), 0.05 * gap)


def test_equal_weights_of_two_parameters_are_rounded_apart():
    new = {name: jnp.full(200, 1 + 2.0**-9, jnp.float32) for name in "ab"}
    stored = stored_like(jax.tree.map(lambda x: x.astype(jnp.bfloat16), new), new, jax.random.key(0))
    assert 0.2 < np.mean(np.asarray(stored["a"] != stored["b"])) < 0.6


@pytest.mark.parametrize("parts", [1, 2])
def test_runs_of_other_seeds_round_apart_by_one_program(parts):
    """The rounds of a recipe have a seed each: rounded alike, the same weights would be moved in all of them."""
    after = {}
    for seed in (0, 1, 2**31 + 5, 0):
        model = Toy(width=32, dtype=jnp.bfloat16)
        config = dataclasses.replace(CONFIG, masters="none", learning_rate=1e-4, seed=seed)
        step, state = make_train_step(model, config, 10)
        if after:
            programs = fused_update._cache_size()
        state, _ = step(state, [random_batch(seed=6)] * parts, 0)
        mix = np.asarray(nnx.to_pure_dict(state.params)["mix"], np.float64)
        if seed in after:
            np.testing.assert_array_equal(mix, after[seed])
        after[seed] = mix
    assert fused_update._cache_size() == programs
    assert not np.array_equal(after[0], after[1])
    assert not np.array_equal(after[0], after[2**31 + 5])


def test_updates_below_the_last_bit_add_up():
    """At a rate of 1e-5 rounding to nearest would leave every bfloat16 weight of size 1 where it is."""
    moved = {}
    for masters in ("float32", "none"):
        model = Toy(width=32, dtype=jnp.bfloat16)
        config = dataclasses.replace(CONFIG, masters=masters, learning_rate=1e-5)
        step, state = make_train_step(model, config, 4000)
        start = np.asarray(nnx.to_pure_dict(state.params)["mix"], np.float64)
        for number in range(40):
            state, _ = step(state, [random_batch(seed=6)], number)
        moved[masters] = np.asarray(nnx.to_pure_dict(state.params)["mix"], np.float64) - start
    way = np.sign(moved["float32"])
    assert np.mean(way != 0) > 0.9
    assert np.mean(moved["none"] == 0) > 0.5  # most weights have not moved at all, and yet:
    assert np.mean(way * moved["none"]) == pytest.approx(np.mean(np.abs(moved["float32"])), rel=0.3)


HEADS = {
    "chunked_stats": lambda h, w, t: chunked_stats(h, w, t)[0].sum(),
    "step head": lambda h, w, t: scored_stats(h, w, t, t >= 0, None, None, keep=True)[0].sum(),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_heads_temporaries_do_not_grow_with_length(name):
    """Forward and backward at V = 152k: no array of T x V, at any T."""
    vocab, width = 152_064, 8
    sizes = {}
    for length in (512, 4096):
        shapes = (
            jax.ShapeDtypeStruct((1, length, width), jnp.bfloat16),
            jax.ShapeDtypeStruct((vocab, width), jnp.bfloat16),
            jax.ShapeDtypeStruct((1, length), jnp.int32),
        )
        program = jax.jit(jax.value_and_grad(HEADS[name], (0, 1))).lower(*shapes).compile()
        sizes[length] = program.memory_analysis().temp_size_in_bytes
    # A few sums a position, and chunks that even out to 52 tokens in one case and 55 in the other.
    assert sizes[4096] - sizes[512] < 0.01 * (4096 - 512) * vocab * 4
    assert sizes[4096] < 0.1 * 4096 * vocab * 4


@pytest.mark.parametrize("length, kept", [(480, True), (544, False)])
def test_one_cpu_keeps_logits_of_twice_the_head(length, kept):
    """More than 256 MiB of them, where training holds the head and its moments anyway: 512 states of width 256."""
    vocab, width = 152_064, 256
    shapes = (
        jax.ShapeDtypeStruct((1, length, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
    )
    program = jax.jit(jax.value_and_grad(HEADS["step head"], (0, 1))).lower(*shapes).compile()
    assert (program.memory_analysis().temp_size_in_bytes > length * vocab * 4) == kept


@pytest.mark.parametrize("platform, most", [("cpu", 8), ("gpu", 512), ("tpu", 128)])
def test_as_many_logits_at_once_as_the_platform_has_room_for(platform, most):
    for count, vocab in ((100_000, 152_064), (100_000, 512), (64, 152_064), (3, 5)):
        size, block = head_block(count, vocab, None, platform)
        assert 1 <= size <= count
        assert 1 <= block <= vocab
        assert size * block * 4 <= most << 20
    size, block = head_block(100_000, 152_064, None, platform)
    assert size * block * 4 > 0.7 * (most << 20)
    assert size == {"cpu": 384, "gpu": 2048, "tpu": 512}[platform]
    assert head_block(100_000, 152_064, 7, platform)[0] == 7
    # On a mesh of eight each holds an eighth of the logits of a chunk of all rows.
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]), size=8)
    columns = head_chunk(64, 152_064, 2048, None, mesh)
    assert columns == (110 if platform == "gpu" else 27)
    assert head_chunk(1, 512, 20, None, mesh) == 20
    assert head_chunk(4, 152_064, 4096, 100, mesh) == 100
    # Of few rows as many states as on one device: each chunk reads the head, and reads and writes its gradient.
    assert 4 * head_chunk(4, 152_064, 4096, None, mesh) == {"cpu": 384, "gpu": 2048, "tpu": 512}[platform]


@pytest.mark.parametrize("platform, aligned", [("cpu", 32), ("gpu", 128), ("tpu", 128)])
def test_states_and_vocabulary_go_by_in_equal_parts(platform, aligned):
    """A last part that is nearly empty costs as much as the others: 640 states go by as 2 x 320 and not as 2 x 512."""
    for count, vocab in ((640, 32_768), (1_500, 152_064), (5_000, 151_936), (100_000, 128_256)):
        for total, part in zip((count, vocab), head_block(count, vocab, None, platform), strict=True):
            parts = -(-total // part)
            assert parts * part - total < aligned * parts


def test_the_step_head_in_bf16_against_float64():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, 40, 64)), jnp.bfloat16)
    weight = jnp.asarray(rng.normal(size=(2048, 64)) / 8, jnp.bfloat16)
    targets = rng.integers(0, 2048, (1, 40))
    # 300 does not divide the vocabulary: the last block begins before its turn.
    hidden_padded = jnp.pad(hidden, ((0, 0), (0, 8), (0, 0)))
    padded, real = np.pad(targets, ((0, 0), (0, 8))), np.arange(48)[None] < 40
    logprob, entropy = (x[:, :40] for x in masked_head(hidden_padded, weight, padded, real, HeadCut(16, 300)))
    logits = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
    logps = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    np.testing.assert_allclose(logprob, np.take_along_axis(logps, targets[..., None], -1)[..., 0], atol=1e-5)
    np.testing.assert_allclose(entropy, -np.sum(np.exp(logps) * logps, axis=-1), atol=1e-5)


@pytest.mark.parametrize("keep, scored", [(False, 40), (True, 40), (False, 48), (True, 32), (False, 0)])
def test_blocks_of_the_vocabulary_that_overlap_count_once(keep, scored):
    """300 does not divide 1,000: values and gradients against whole logits, targets in the overlap among them.

    The scored tokens end within a chunk, or with one, the last of all or not.
    """
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((1, 48, 16), (1000, 16)))
    targets = rng.integers(0, 1000, (1, 48)).astype(np.int32)
    targets[0, :4] = (999, 700, 899, 0)
    real, factor = np.arange(48)[None] < scored, np.linspace(-1, 1, 48, dtype=np.float32)

    def by_blocks(hidden, weight):
        return jnp.sum(factor * masked_head(hidden, weight, targets, real, HeadCut(16, 300, keep=keep))[0])

    def whole(hidden, weight):
        logps = jax.nn.log_softmax(hidden @ weight.T)
        picked = jnp.take_along_axis(logps, targets[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(real, factor * picked, 0))

    value, gradients = jax.value_and_grad(by_blocks, (0, 1))(hidden, weight)
    expected, wanted = jax.value_and_grad(whole, (0, 1))(hidden, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for mine, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
