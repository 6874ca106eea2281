"""Adapters under training: every option of the loss, the base as the reference, what a run keeps and exports."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.errors import UserError
from caspo_jax.models import Decoder, LoraConfig, ModelConfig, add_lora, base_model, merge_lora
from caspo_jax.models.lora import LINEAR
from caspo_jax.preferences.packing import pack_pairs, pack_rows
from caspo_jax.training import LossConfig, TrainConfig, loop, make_train_step, step_dpo_loss, train
from caspo_jax.training.digests import weights_digest
from caspo_jax.training.restore import restore_trained
from caspo_jax.training.stages import Policy, export_adapter
from caspo_jax.training.step_loss import loss_denominators
from caspo_jax.training.train_step import fused_update, trainable_model
from caspo_jax.types import PairBatch

from helpers import make_data, on_device, tiny_decoder  # isort: skip
import small_run  # isort: skip
from small_run import Stopped, leaves, stop_at  # isort: skip

LORA = LoraConfig(rank=2, alpha=3.0)
CONFIG = dataclasses.replace(small_run.CONFIG, loss=LossConfig(nll_alpha=1.0, nll_on="verified"), lora=LORA)
# Each option of the loss once.
OPTIONS = [
    {"dpop_lambda": 5.0, "nll_alpha": 0.5, "nll_on": "chosen", "label_smoothing": 0.1},
    {
        "loss": "ipo",
        "length_normalised": True,
        "nll_alpha": 1.0,
        "nll_on": "verified",
        "nll_average": "token",
    },
    pytest.param({"loss": "rft"}, marks=pytest.mark.slow),
]
PAIRS, VERIFIED = make_data(1)


def random_adapters(seed=0):
    """Adapters whose B is not 0."""
    model = add_lora(tiny_decoder(), LORA, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    for name in LINEAR.values():
        b = getattr(model.layers, f"{name}_lora_b")
        b[...] = jnp.asarray(rng.normal(0, 0.3, b[...].shape), jnp.float32)
    return model


@pytest.fixture(scope="module")
def batch():
    plain = pack_pairs(PAIRS, 24, 0)
    references = np.random.default_rng(0).normal(-4, 1, (2, len(PAIRS))).astype(np.float32)
    return on_device(
        PairBatch(
            plain.chosen, plain.rejected, plain.weight, *references, verified=pack_rows(VERIFIED, 24, 0)
        )
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_sends_adapters_their_share_of_the_weights_gradient(batch, options):
    """With W' = W + s A B: dL/dA = s dL/dW' B^T and dL/dB = s A^T dL/dW', and nothing else is trained."""
    config = LossConfig(**options)
    run = nnx.jit(nnx.value_and_grad(lambda model, batch: step_dpo_loss(model, batch, config)[0]))
    adapted = random_adapters()
    value, gradients = run(adapted, batch)
    whole_value, whole = run(merge_lora(adapted), batch)
    np.testing.assert_allclose(value, whole_value, rtol=1e-5)
    gradients, whole = nnx.to_pure_dict(gradients), nnx.to_pure_dict(whole)
    assert set(gradients) == {"layers"}
    assert set(gradients["layers"]) == {f"{name}_lora_{side}" for name in LINEAR.values() for side in "ab"}
    for name in LINEAR.values():
        a, b = (np.asarray(getattr(adapted.layers, f"{name}_lora_{side}")[...]) for side in "ab")
        weight = np.asarray(whole["layers"][name])  # [L, in, out]
        assert np.abs(weight).max() > 1e-4
        for side, want in (
            ("a", np.einsum("lio,lro->lir", weight, b)),
            ("b", np.einsum("lir,lio->lro", a, weight)),
        ):
            found = np.asarray(gradients["layers"][f"{name}_lora_{side}"])
            np.testing.assert_allclose(found, LORA.scale * want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    model, summary = train(tiny_decoder(), PAIRS, CONFIG, verified=VERIFIED, out_dir=folder)
    return folder, model, summary


def test_the_base_is_the_reference_and_stays(run):
    _, model, summary = run
    first = summary.history[0]
    assert abs(first["loss"] - first["nll"] - np.log(2)) < 1e-6
    assert summary.last["nll"] < first["nll"]
    for before, after in zip(leaves(tiny_decoder()), leaves(base_model(model)), strict=True):
        np.testing.assert_array_equal(before, after)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_the_reference_is_known_by_the_base_whatever_adapters_a_run_begins_with(tmp_path, monkeypatch):
    """So that the rounds of a LoRA run share its log-probs."""
    known = []

    def fill(*args, digest, **options):
        known.append(digest)
        raise Stopped

    monkeypatch.setattr(loop, "fill_references", fill)
    config = dataclasses.replace(small_run.CONFIG, loss=LossConfig(), lora=LORA)
    for seed in (0, 1):
        with pytest.raises(Stopped):
            train(random_adapters(seed), PAIRS, config, out_dir=tmp_path / f"{seed}")
    assert known == [weights_digest(tiny_decoder())] * 2


def test_fresh_adapters_follow_the_seed_of_the_run():
    model = tiny_decoder()
    first, again, other = (
        np.asarray(trainable_model(model, dataclasses.replace(CONFIG, seed=seed)).layers.q_lora_a[...])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


def test_a_trained_adapter_goes_on_against_the_base(run):
    _, model, summary = run
    config = dataclasses.replace(CONFIG, learning_rate=0.0, max_steps=1)
    _, again = train(model, PAIRS, config, verified=VERIFIED)
    assert again.history[0]["nll"] < summary.history[0]["nll"]
    assert (
        abs(again.history[0]["displacement"]) > 1e-3
    )  # log-ratios are to the base, not to the adapters' start
    with pytest.raises(UserError, match="lora"):
        train(model, PAIRS, dataclasses.replace(CONFIG, lora=LoraConfig(rank=3)), verified=VERIFIED)


def test_resumed_equals_uninterrupted(run, tmp_path):
    _, model, _ = run

    with pytest.raises(Stopped):
        train(tiny_decoder(), PAIRS, CONFIG, verified=VERIFIED, out_dir=tmp_path, callback=stop_at(3))
    resumed, summary = train(tiny_decoder(), PAIRS, CONFIG, verified=VERIFIED, out_dir=tmp_path)
    assert summary.resumed_from == 2
    for a, b in zip(leaves(model), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    other = dataclasses.replace(CONFIG, lora=None)
    with pytest.raises(UserError, match="lora"):
        train(tiny_decoder(), PAIRS, other, verified=VERIFIED, out_dir=tmp_path)


def test_what_is_checkpointed_is_adapters_and_their_moments(run):
    _, model, _ = run
    adapters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    _, state = make_train_step(trainable_model(tiny_decoder(), CONFIG), CONFIG, 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 3 * adapters


def test_a_donated_base_is_left_to_the_caller_for_its_weights_are_not_trained():
    base = tiny_decoder()
    train(base, PAIRS, dataclasses.replace(CONFIG, max_steps=1), verified=VERIFIED, donate=True)
    for before, now in zip(leaves(tiny_decoder()), leaves(base), strict=True):
        np.testing.assert_array_equal(before, now)


def test_a_restored_run_merges_into_a_policy(run):
    folder, model, summary = run
    restored, updates = restore_trained(tiny_decoder(), folder)
    assert updates == summary.steps
    assert restored.lora == LORA
    for a, b in zip(leaves(merge_lora(restored)), leaves(merge_lora(model)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_is_exported_onto_its_own_base_alone(run):
    folder, _, summary = run
    with pytest.raises(UserError, match="started from another policy"):
        restore_trained(tiny_decoder(seed=1), folder)
    graphdef, state = nnx.split(tiny_decoder())
    other_dtype = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    assert restore_trained(other_dtype, folder)[1] == summary.steps
    assert restore_trained(random_adapters(), folder)[1] == summary.steps  # its adapters are replaced


def test_an_export_is_of_the_checkpoint_that_there_is_now(run, tmp_path):
    policy = Policy(tiny_decoder(), None, "base", "hash", {})
    folder, output = shutil.copytree(run[0], tmp_path / "run"), tmp_path / "adapter"
    newest = max((folder / "checkpoints").iterdir(), key=lambda p: int(p.name))
    newest.rename(tmp_path / "later")

    def export(**options):
        export_adapter(policy, folder, output, **options)
        return json.loads((output / "manifest.json").read_text())

    early = export()
    assert early["counts"]["updates"] == early["config"]["update"] < int(newest.name)
    assert export() == early
    (tmp_path / "later").rename(newest)  # training went on
    with pytest.raises(UserError, match=f"update: {early['counts']['updates']} then, {newest.name} now"):
        export()
    assert export(overwrite=True)["counts"]["updates"] == int(newest.name)


@pytest.mark.slow
def test_no_gradient_of_the_frozen_head_is_computed():
    """The head's reverse pass could give one [V, E]; nothing reads it, so the compiled update must not hold it.

    What a larger vocabulary adds to the temporaries is compared: adapters have some of their own, which do not grow with it.
    """
    width, vocabularies = 32, (4096, 8192)
    batch = pack_pairs(PAIRS[:2], 16, 0)
    grown = []
    for lora in (None, LoraConfig(rank=2)):
        temporaries = []
        for vocab in vocabularies:
            shape = ModelConfig("qwen3", vocab, width, 32, 1, 2, 1, 16, tie_word_embeddings=True)
            config = TrainConfig(lora=lora)
            model = trainable_model(Decoder(shape, rngs=nnx.Rngs(0)), config)
            step, state = make_train_step(model, config, 1)
            whole = loss_denominators(batch, config.loss)
            given = (batch, whole, np.float32(0), np.uint32(0))
            lowered = fused_update.lower(step.spec, state, step.frozen, *given)
            temporaries.append(lowered.compile().memory_analysis().temp_size_in_bytes)
        grown.append(temporaries[1] - temporaries[0])
    head = (vocabularies[1] - vocabularies[0]) * width * 4
    assert grown[1] <= grown[0] - head
