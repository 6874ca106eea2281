"""The loop: exact accumulation, resumption bit for bit, log 2 at the start, what it writes and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caspo_jax.errors import UserError
from caspo_jax.models import Decoder
from caspo_jax.outputs import manifest_path
from caspo_jax.preferences.packing import pack_pairs
from caspo_jax.records import trace_to_record
from caspo_jax.store import write_json, write_jsonl
from caspo_jax.training import LossConfig, TrainConfig, make_train_step, step_dpo_loss, train, trained_model
from caspo_jax.training.optimizer import learning_rates
from caspo_jax.training.stages import Policy, train_stage
from caspo_jax.training.train_step import fused_update
from caspo_jax.types import Step, Trace

from helpers import Toy, on_device, random_batch, random_rows, tiny_decoder  # isort: skip
from small_run import CONFIG, PAIRS, VERIFIED, Stopped, assert_same, leaves, lines, stop_at  # isort: skip


def test_first_update_is_log_two_and_training_helps(uninterrupted):
    _, model, summary = uninterrupted
    first, last = summary.history[0], summary.last
    # Rewards are 0 at the start, so the sigmoid term is log 2 and the rest of the loss is the NLL.
    assert abs(first["loss"] - first["nll"] - np.log(2)) < 1e-6
    assert abs(first["displacement"]) < 1e-5
    everything = on_device(pack_pairs(PAIRS, 16, 0))
    everything = dataclasses.replace(
        everything, reference_chosen=jnp.zeros(10), reference_rejected=jnp.zeros(10)
    )
    for name, sign in (("nll", -1), ("rewards/margin", 1)):
        before, after = (step_dpo_loss(m, everything, LossConfig())[1][name] for m in (Toy(), model))
        assert sign * (after - before) > 0, name
    assert last["rewards/margin"] > 0
    assert summary.steps == 5
    assert summary.resumed_from == 0


def test_the_first_update_in_bfloat16_is_log_two():
    """Compiled without optimising it always was: `XLA_FLAGS= pytest` tests it as users compile."""
    shape = dataclasses.replace(tiny_decoder().config, num_layers=4)
    model = Decoder(shape, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    config = TrainConfig(batch_size=4, max_steps=1, min_length=16)
    _, summary = train(model, PAIRS, config)
    assert abs(summary.last["loss"] - np.log(2)) < 1e-6


def test_the_callers_model_stays_as_it_was(uninterrupted):
    _, model, _ = uninterrupted
    start = Toy()
    train(start, PAIRS, dataclasses.replace(CONFIG, max_steps=1), verified=VERIFIED)
    for before, now, after in zip(leaves(Toy()), leaves(start), leaves(model)):
        np.testing.assert_array_equal(before, now)
        assert np.any(now != after)


def test_a_donated_model_is_free_before_the_first_update_and_the_run_is_the_same(uninterrupted, tmp_path):
    _, model, _ = uninterrupted
    kept = []

    def note(start, stop=None):
        def callback(record):
            kept.extend(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(start)))
            if record["step"] == stop:
                raise Stopped

        return callback

    start = Toy()
    with pytest.raises(Stopped):
        train(start, PAIRS, CONFIG, verified=VERIFIED, out_dir=tmp_path, donate=True, callback=note(start, 4))
    start = Toy()
    again, _ = train(
        start, PAIRS, CONFIG, verified=VERIFIED, out_dir=tmp_path, donate=True, callback=note(start)
    )
    assert kept
    assert all(kept)
    assert_same(model, again)


@pytest.mark.parametrize("masters", ["float32", "none"])
def test_a_donated_bfloat16_model_gives_what_a_kept_one_gives(masters):
    config = dataclasses.replace(CONFIG, max_steps=2, save_every=None, masters=masters)
    runs = []
    for donate in (False, True):
        start = Decoder(tiny_decoder().config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        runs.append(train(start, PAIRS, config, verified=VERIFIED, donate=donate)[0])
    assert_same(*runs)


@pytest.mark.parametrize("step", [1, 4])
def test_resumed_equals_uninterrupted(uninterrupted, tmp_path, step):
    folder, model, summary = uninterrupted
    with pytest.raises(Stopped):
        train(Toy(), PAIRS, CONFIG, verified=VERIFIED, out_dir=tmp_path, callback=stop_at(step))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9')  # what a kill in the middle of a write leaves
    resumed, resumed_summary = train(Toy(), PAIRS, CONFIG, verified=VERIFIED, out_dir=tmp_path)
    for a, b in zip(leaves(model), leaves(resumed)):
        np.testing.assert_array_equal(a, b)
    assert resumed_summary.resumed_from == (0 if step == 1 else 2)
    assert lines(tmp_path) == lines(folder)
    assert [record["step"] for record in resumed_summary.history] == [1, 2, 3, 4, 5]
    assert resumed_summary.tokens == summary.tokens


def test_a_finished_run_is_only_read(uninterrupted):
    folder, model, _ = uninterrupted
    again, summary = train(Toy(), PAIRS, CONFIG, verified=VERIFIED, out_dir=folder)
    assert summary.resumed_from == summary.steps == len(summary.history)
    for a, b in zip(leaves(model), leaves(again)):
        np.testing.assert_array_equal(a, b)


def test_accumulation_over_unequal_micro_batches_is_exact():
    """Micro-batches of other sizes, widths, weights and numbers of verified steps: the big batch's gradient."""
    parts = [
        random_batch(seed=1, pairs=1, width=9, verified=3, weights=[2.0]),
        random_batch(seed=2, pairs=3, width=12, verified=1, weights=[0.5, 0.0, 1.0]),
    ]
    big = dataclasses.replace(
        random_batch(pairs=4, verified=4),
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("weight", "reference_chosen", "reference_rejected")
        },
        **{
            name: jax.tree.map(
                lambda *a: np.concatenate([np.pad(x, ((0, 0), (0, 12 - x.shape[1]))) for x in a]),
                *(getattr(part, name) for part in parts),
            )
            for name in ("chosen", "rejected", "verified")
        },
    )
    loss = LossConfig.preset("caspo", nll_average="token", length_normalised=True)
    step, state = make_train_step(Toy(), TrainConfig(loss=loss, clip_norm=None, learning_rate=0.1), 10)
    accumulated, output = step(state, parts, 0)
    report = output.fetch(loss)
    whole = nnx.jit(nnx.value_and_grad(lambda m, b: step_dpo_loss(m, b, loss), has_aux=True))
    (value, aux), gradients = whole(Toy(), on_device(big))
    for moment, gradient in zip(jax.tree.leaves(accumulated.opt_state[0].mu), jax.tree.leaves(gradients)):
        np.testing.assert_allclose(moment, 0.1 * gradient, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(report.metrics["loss"], value, rtol=1e-6)
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(report.metrics["grad_norm"], norm, rtol=1e-5)
    for name in aux:
        np.testing.assert_allclose(report.metrics[name], aux[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "whole, parts",
    [
        ({"pack": "trees"}, {"pack": "trees", "pack_length": 24, "pack_rows": 1}),
        ({"pack": "rows"}, {"pack": "rows", "micro_batch_size": 3}),
    ],
    ids=["trees", "rows"],
)
def test_micro_batches_give_the_same_run(whole, parts):
    # Without DPO-Positive: its hinge is undecided at the start, where policy and reference are equal up to rounding.
    config = dataclasses.replace(CONFIG, loss=LossConfig.preset("caspo", dpop_lambda=0.0))
    runs = [
        train(Toy(), PAIRS, dataclasses.replace(config, **change), verified=VERIFIED)
        for change in (whole, parts)
    ]
    for a, b in zip(*(leaves(model) for model, _ in runs)):
        np.testing.assert_allclose(a, b, atol=2e-5)
    rewards = [[r["rewards/margin"] for r in summary.history] for _, summary in runs]
    np.testing.assert_allclose(*rewards, atol=1e-5)
    if whole["pack"] == "rows":
        tokens = [[r["tokens"] for r in summary.history] for _, summary in runs]
        assert tokens[0] == tokens[1]


def test_one_batch_of_trees_is_the_batch_of_its_rows():
    # Without DPO-Positive: its hinge is undecided at the start, where policy and reference are equal up to rounding.
    loss = LossConfig.preset("caspo", dpop_lambda=0.0)
    config = dataclasses.replace(CONFIG, batch_size=10, epochs=1, loss=loss)
    trees, rows = (
        train(Toy(), PAIRS, dataclasses.replace(config, pack=pack), verified=VERIFIED)[1].last
        for pack in ("trees", "rows")
    )
    for name in ("loss", "nll", "grad_norm", "logps/chosen", "entropy/rejected"):
        np.testing.assert_allclose(trees[name], rows[name], rtol=1e-4, err_msg=name)
    assert trees["tokens"] < rows["tokens"]


@pytest.mark.parametrize("name", ["sft", "rft"])
def test_controls_learn_their_steps(name):
    data = [] if name == "rft" else PAIRS
    config = dataclasses.replace(CONFIG, loss=LossConfig(loss=name), epochs=6)
    _, summary = train(Toy(), data, config, verified=VERIFIED if name == "rft" else ())
    assert summary.last["loss"] < summary.history[0]["loss"]
    assert "rewards/margin" not in summary.last


def test_loss_that_is_not_finite_names_the_pairs():
    batch = random_batch(seed=4, pairs=3)
    reference = batch.reference_chosen.copy()
    reference[1] = np.inf
    config = dataclasses.replace(CONFIG, loss=LossConfig(), batch_size=3)
    with pytest.raises(UserError, match=r"update 1: .*: batch 0 row 1\. "):
        train(Toy(), [dataclasses.replace(batch, reference_chosen=reference)], config)


def test_reference_that_is_not_finite_names_the_pairs():
    bad = Toy()
    bad.embed[...] = bad.embed[...].at[0].set(jnp.nan)
    with pytest.raises(UserError, match=r"reference.*q0-s0"):
        train(Toy(), PAIRS, CONFIG, verified=VERIFIED, reference=bad)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match="no pairs"):
        train(Toy(), [], CONFIG, verified=VERIFIED)
    with pytest.raises(UserError, match=r"needs verified steps.* nll_on=chosen"):
        train(Toy(), PAIRS, CONFIG)
    unready = dataclasses.replace(PAIRS[0], chosen_ids=())
    with pytest.raises(UserError, match=r"q0-s0.*token ids"):
        train(Toy(), [unready], CONFIG, verified=VERIFIED)


def test_rft_goes_on_where_a_round_has_no_pairs(tmp_path):
    pairs, annotated = tmp_path / "pairs.jsonl", tmp_path / "annotated.jsonl"
    pairs.touch()
    step = Step(0, 1, 0, 2, "a", confidence=0.5, verdict="correct")
    trace = Trace("t", "?", None, None, (1, 2), (3, 4), "a", "eos", steps=(step,))
    write_jsonl(annotated, [trace_to_record(trace)])
    policy = Policy(tiny_decoder(), None, "tiny", "tiny", {})
    rft = TrainConfig(loss=LossConfig(loss="rft"), min_length=16, tensorboard=False)
    counts = train_stage(policy, pairs, annotated, tmp_path / "rft", rft)
    assert (counts["pairs"], counts["verified_rows"], counts["updates"]) == (0, 1, 1)
    with pytest.raises(UserError, match=r"pairs\.jsonl: no pairs in it: nothing to train on$"):
        train_stage(policy, pairs, annotated, tmp_path / "dpo", CONFIG)
    counts = {"candidates": 1200, "unverified_prefix": 80, "flawed_prefix": 0, "unknown_verdict": 1020}
    counts |= {"competitor_unfinished": 60, "duplicate_ids": 40}
    write_json(manifest_path(pairs), {"counts": counts})
    why = "1,020 unknown verdict, 80 unverified prefix, 60 competitor unfinished, 40 duplicate ids"
    with pytest.raises(UserError, match=rf"\(1,200 candidates: {why}\)"):
        train_stage(policy, pairs, annotated, tmp_path / "dpo", CONFIG)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_weights_that_mean_nothing_are_refused(weight):
    pairs = [PAIRS[0], dataclasses.replace(PAIRS[1], weight=weight)]
    with pytest.raises(UserError, match=r"q1-s0.*weight"):
        train(Toy(), pairs, CONFIG, verified=VERIFIED)


def test_bfloat16_models_train_on_float32_masters():
    model = Toy(dtype=jnp.bfloat16)
    # One update of 1e-5 is lost in a bfloat16 weight near 1; the master keeps it.
    config = TrainConfig(learning_rate=1e-5, warmup_fraction=0)
    step, state = make_train_step(model, config, 10)
    start = np.asarray(jax.tree.leaves(state.params)[0])
    new, _ = step(state, [random_batch(seed=6)], 0)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new.params))
    moved = np.abs(np.asarray(jax.tree.leaves(new.params)[0]) - start)
    assert 5e-6 < moved.max() < 2e-5
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(nnx.state(trained_model(model, new))))


def test_tensorboard_events_and_progress(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, tensorboard=True, max_steps=2)
    seen = []
    train(
        Toy(),
        PAIRS,
        config,
        verified=VERIFIED,
        out_dir=tmp_path,
        callback=lambda r: seen.append(r["step"]),
        progress=True,
    )
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"rewards/margin" in events.read_bytes()
    assert seen == [1, 2]
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert captured.out == ""


def test_an_update_takes_the_rate_of_its_number_and_later_ones_the_last():
    """Adam moves a weight first by the rate itself."""
    config = TrainConfig(learning_rate=1e-2, warmup_fraction=0.5)
    step, state = make_train_step(Toy(), config, 6)
    start = np.asarray(jax.tree.leaves(state.params)[0])
    rates = learning_rates(config, 6)
    for number, expected in ((0, rates[0]), (1, rates[1]), (5, rates[5]), (9, rates[5])):
        state, output = step(state, [random_batch(seed=number)], number)
        assert output.learning_rate == expected
        if number == 0:
            moved = np.abs(np.asarray(jax.tree.leaves(state.params)[0]) - start)
            assert np.median(moved) == pytest.approx(rates[0], rel=1e-3)


def test_one_program_for_one_length():
    before = fused_update._cache_size()
    # Another run with another seed, rate and length uses the same program.
    for config, total in [(TrainConfig(), 10), (TrainConfig(learning_rate=1e-2, seed=3), 20)]:
        step, state = make_train_step(Toy(seed=total), config, total)
        for seed in range(4):
            state, _ = step(state, [random_batch(seed=seed, width=10, weights=[1.0, seed, 0.5])], seed)
    assert fused_update._cache_size() == before + 1


def test_a_run_that_accumulates_has_one_large_program_whatever_its_micro_batches():
    """The update of a single one is that of the fused program, which is not compiled beside it."""
    batch, config = random_batch(seed=8, pairs=2, width=11), TrainConfig(learning_rate=1e-2)
    moved = []
    for accumulate in (True, False):
        step, state = make_train_step(Toy(), config, 10, accumulate=accumulate)
        before = fused_update._cache_size()
        state, output = step(state, [batch], 0)
        assert not accumulate or fused_update._cache_size() == before
        moved.append((jax.tree.leaves(state.params), output.grad_norm))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *moved)


def test_rows_without_a_step_are_refused_where_they_start_the_row():
    rows = random_rows(np.random.default_rng(0), [4], 8)
    rows = dataclasses.replace(rows, step_mask=rows.mask)
    with pytest.raises(UserError, match="verified step 0"):
        train(Toy(), [], dataclasses.replace(CONFIG, loss=LossConfig(loss="rft")), verified=[rows])
