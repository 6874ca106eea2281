"""Which rows each update reads: every pair once an epoch, questions together, in micro-batches that hold what they name."""

import dataclasses

import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.training import LossConfig, TrainConfig
from caspo_jax.training.data import RowStore
from caspo_jax.training.make_plan import make_plan
from caspo_jax.training.row_plan import RowPlan, _round_up
from experiments import bench_model

from helpers import make_data, random_batch  # isort: skip


def store(pairs=10, verified=0):
    return RowStore.build([random_batch(seed=i, pairs=5, verified=verified) for i in range(pairs // 5)])


def visited(plan):
    rows = [plan.micro(*item) for item in plan.iterator()]

    def found(name):
        both = [np.concatenate([getattr(micro, name) for micro in micros]) for micros in rows]
        return [indices[indices >= 0] for indices in both]

    return rows, found("pairs"), found("verified")


PACKS = pytest.mark.parametrize("pack", ["trees", "rows"])


@PACKS
def test_every_epoch_sees_every_pair_once_in_another_order(pack):
    micro = 2 if pack == "rows" else None
    config = TrainConfig(batch_size=4, epochs=3, micro_batch_size=micro, pack=pack)
    plan = make_plan(store(), config)
    rows, pairs, _ = visited(plan)
    assert len(rows) == plan.steps == 8
    epochs = np.concatenate(pairs).reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert sorted(epochs[0][:4]) != sorted(epochs[1][:4]) or sorted(epochs[0][:4]) != sorted(epochs[2][:4])
    assert not np.array_equal(epochs[0], epochs[1])
    shapes = {np.shape(micro.batch.weight) for micros in rows for micro in micros}
    assert len(shapes) == 1
    assert pack == "trees" or shapes == {(2,)}
    again = np.concatenate(visited(make_plan(store(), dataclasses.replace(config, micro_batch_size=None)))[1])
    assert sorted(again[:4]) == sorted(epochs.ravel()[:4])
    other = np.concatenate(visited(make_plan(store(), dataclasses.replace(config, seed=1)))[1])
    assert not np.array_equal(again, other)


@PACKS
def test_every_verified_step_rides_along_once_an_epoch(pack):
    config = TrainConfig(
        batch_size=5, epochs=1, loss=LossConfig(dpop_lambda=5.0, nll_alpha=1.0, nll_on="verified"), pack=pack
    )
    _, _, verified = visited(make_plan(store(verified=3), config))
    assert sorted(np.concatenate(verified)) == list(range(6))
    fixed = dataclasses.replace(config, verified_per_batch=2)
    sizes = [len(v) for v in visited(make_plan(store(verified=3), fixed))[2]]
    assert max(sizes) <= 2
    assert pack == "trees" or sizes == [2, 2]


@PACKS
@pytest.mark.parametrize("pairs, batch, verified, epochs", [(50, 32, 50, 1), (60, 8, 11, 1), (50, 32, 50, 3)])
def test_every_verified_step_is_read_once_an_epoch_whatever_the_batches(pack, pairs, batch, verified, epochs):
    loss = LossConfig(nll_alpha=1.0, nll_on="verified")
    config = TrainConfig(loss=loss, batch_size=batch, epochs=epochs, min_length=16, pack=pack)
    data = RowStore.build(
        [random_batch(seed=i, pairs=5) for i in range(pairs // 5)],
        [((1, 2, 3), (4 + i % 5, 5 + i // 5)) for i in range(verified)],
    )
    plan = make_plan(data, config)
    read = [plan.rows_of(step)[1] for step in range(plan.steps)]
    assert np.bincount(np.concatenate(read)).tolist() == [epochs] * verified
    if pack == "rows":
        order = np.concatenate(read).reshape(epochs, verified)
        assert all(sorted(epoch) == list(range(verified)) for epoch in order.tolist())
        assert epochs == 1 or not np.array_equal(order[0], order[1])
    micros = [micro for step in range(plan.steps) for micro in plan.micro(*plan.rows_of(step))]
    packed = np.concatenate([micro.verified for micro in micros])
    assert np.bincount(packed[packed >= 0]).tolist() == [epochs] * verified


@PACKS
def test_a_limit_on_verified_steps_leaves_none_of_them_out_for_good(pack):
    """One update an epoch, each with two of six."""
    loss = LossConfig(nll_alpha=1.0, nll_on="verified")
    config = TrainConfig(loss=loss, batch_size=10, epochs=20, verified_per_batch=2, pack=pack)
    _, _, verified = visited(make_plan(store(verified=3), config))
    assert [len(v) for v in verified] == [2] * 20
    assert set(np.concatenate(verified)) == set(range(6))


@PACKS
def test_rft_counts_verified_steps(pack):
    plan = make_plan(
        store(verified=3), TrainConfig(batch_size=4, epochs=2, loss=LossConfig(loss="rft"), pack=pack)
    )
    _, pairs, verified = visited(plan)
    assert plan.steps == 3
    assert all(len(p) == 0 for p in pairs)
    assert sorted(np.concatenate(verified)) == sorted(list(range(6)) * 2)


def test_a_step_without_tokens_is_refused_by_name():
    pairs, verified = make_data(0)
    with pytest.raises(UserError, match="verified step 1: its step has no tokens"):
        RowStore.build(pairs, [verified[0], (verified[0][0], ())])
    batch = random_batch(seed=0, pairs=5)
    masks = batch.chosen.step_mask.copy()
    masks[2] = False
    bare = dataclasses.replace(batch, chosen=dataclasses.replace(batch.chosen, step_mask=masks))
    with pytest.raises(UserError, match="batch 0 row 2: its step has no tokens"):
        RowStore.build([bare])


def test_a_question_stays_together_and_its_steps_go_with_its_pairs():
    pairs, verified = make_data(0, pairs=40, verified=30)
    data = RowStore.build(pairs, verified)
    assert len(np.unique(data.pair_group)) == 3
    config = TrainConfig(
        batch_size=8,
        epochs=2,
        loss=LossConfig(dpop_lambda=5.0, nll_alpha=1.0, nll_on="verified"),
        min_length=8,
    )
    plan = make_plan(data, config)
    changes = 0
    for step in range(plan.steps):
        chosen, beside = plan.rows_of(step)
        groups = data.pair_group[chosen]
        changes += np.count_nonzero(np.diff(groups))
        assert set(data.verified_group[beside]) <= set(groups)
    assert changes <= 2 * 3  # questions meet inside a batch, never alternate


def test_references_are_computed_of_what_the_run_reads():
    data = RowStore.build(make_data(1, pairs=12, verified=0)[0])
    for pack in ("trees", "rows"):
        plan = make_plan(
            data, TrainConfig(batch_size=4, epochs=2, pack=pack)
        )  # but once, however often they are read
        seen = np.concatenate([micro.pairs for micro in plan.reference_micros()])
        assert sorted(seen[seen >= 0]) == list(range(12))
    short = make_plan(data, TrainConfig(batch_size=4, max_steps=1))
    seen = np.concatenate([micro.pairs for micro in short.reference_micros()])
    assert sorted(seen[seen >= 0]) == sorted(short.rows_of(0)[0])
    data.reference_chosen[:] = data.reference_rejected[:] = -1.0
    assert not list(make_plan(data, TrainConfig()).reference_micros())


def benchmark_plan(workload, **settings):
    config = TrainConfig(batch_size=workload.batch_size, **settings)
    return make_plan(RowStore.build(bench_model.as_pairs(workload.pairs)), config)


def test_rows_take_the_length_and_the_slots_that_fit_whatever_the_seed():
    pairs = bench_model.unrelated_pairs(16, 1000, prompt=64, response=192)
    steps = bench_model.step_pairs(3, 1000, prompt=64, steps=16, step=20)
    for seed in (0, 5):
        plan = benchmark_plan(pairs, pack_length=512, seed=seed)
        # A tree of 64 + 2 x 192 a row.
        assert plan.packing == {"pack": "trees", "rows": 4, "lengths": [448], "slots": 384}
        assert plan.accumulates  # an update has 8 of them
        plan = benchmark_plan(steps, seed=seed)
        # A trace of 64 + 2 x 16 x 20.
        assert plan.packing == {"pack": "trees", "rows": 1, "lengths": [704], "slots": 640}
        assert not plan.accumulates
        assert [len(plan.micro(*plan.rows_of(step))) for step in range(plan.steps)] == [1, 1, 1]


@pytest.mark.parametrize("ways", [1, 2])
def test_where_the_longest_pair_makes_rows_longer_a_pass_has_fewer_of_them(ways):
    """The memory of a pass is what `pack_rows` and `pack_length` ask for, not `pack_rows` times the longest pair."""
    pairs = make_data(0, pairs=60)[0]
    pairs[7] = dataclasses.replace(pairs[7], prefix_ids=tuple(range(1, 300)))
    data = RowStore.build(pairs)
    config = TrainConfig(batch_size=60, min_length=16, pack_length=128, pack_rows=8)
    plan = make_plan(data, config, ways)
    (length,) = plan.packing["lengths"]
    assert length > 300
    assert plan.rows == ways or plan.rows * length <= 8 * 128
    found = np.concatenate([micro.pairs for micro in plan.micro(*plan.rows_of(0))])
    assert sorted(found[found >= 0]) == list(range(60))
    assert plan.accumulates  # without the long pair all of it were one pass of 8 rows of 128


def test_rows_may_be_as_short_as_the_only_pair():
    pairs, _ = make_data(0, pairs=1, verified=0)
    short = dataclasses.replace(
        pairs[0], prompt_ids=(1,), prefix_ids=(), chosen_ids=(2, 3), rejected_ids=(2, 4)
    )
    plan = make_plan(RowStore.build([short]), TrainConfig(min_length=4))
    assert plan.packing["lengths"] == [4]
    assert plan.rows == 1


def test_rows_have_one_shape_whatever_the_seed_where_updates_differ():
    """The references that another seed's run computed are then of the same program."""
    rng = np.random.default_rng(0)
    pairs = make_data(0, pairs=90)[0]
    pairs = [
        dataclasses.replace(p, prompt_ids=tuple(rng.integers(1, 99, rng.integers(1, 150)))) for p in pairs
    ]
    data = RowStore.build(pairs)
    shapes = [
        make_plan(data, TrainConfig(batch_size=3, min_length=16, seed=seed)).packing for seed in range(5)
    ]
    assert shapes == shapes[:1] * 5


def test_the_number_of_rows_beside_the_pairs_takes_few_values():
    sizes = [_round_up(count) for count in range(1, 1001)]
    assert all(count <= size <= count * 9 / 8 for count, size in enumerate(sizes, start=1))
    assert len(set(sizes)) < 75


def test_an_update_with_more_to_score_than_those_that_were_looked_at_takes_more_rows():
    """Slots follow a few updates and the largest pair; the others are packed around them, and nothing is lost."""
    load = bench_model.unrelated_pairs(400, 1000, prompt=60, response=20, batch_size=4)
    settings = {"pack_length": 256, "pack_rows": 2}
    heavy = benchmark_plan(load, **settings).rows_of(1)[0]  # between two that are looked at
    for pair in (load.pairs[i] for i in heavy):  # as long as before, 100 tokens of it scored and not 40
        pair["prompt"], pair["chosen"] = pair["prompt"][:10], pair["chosen"] + pair["prompt"][10:]
    plan = benchmark_plan(load, **settings)
    assert plan.packing == {"pack": "trees", "rows": 2, "lengths": [256], "slots": 128}
    micros = [plan.micro(*plan.rows_of(step)) for step in range(plan.steps)]
    assert [len(m) for m in micros[:3]] == [1, 2, 1]
    found = np.concatenate([micro.pairs for update in micros for micro in update])
    assert sorted(found[found >= 0]) == list(range(400))


def test_micro_batches_are_sorted_by_length_and_hold_the_rows():
    data = store(20)
    plan = RowPlan(data, TrainConfig(batch_size=20, pack="rows", micro_batch_size=5, min_length=8))
    micros = plan.micro(*next(plan.iterator()))
    widths = [micro.batch.chosen.token_ids.shape[1] for micro in micros]
    assert widths == sorted(widths)
    for micro in micros:
        for row, pair in enumerate(micro.pairs):
            mask = micro.batch.chosen.mask[row]
            np.testing.assert_array_equal(
                micro.batch.chosen.token_ids[row][mask], data.chosen[pair].token_ids
            )
            np.testing.assert_array_equal(
                micro.batch.chosen.step_mask[row][mask], data.chosen[pair].step_mask
            )
            assert micro.batch.weight[row] == data.weight[pair]
