"""Updates whose loss or gradient is not finite: named and written out, or skipped without a trace."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.training import LossConfig, TrainConfig, make_train_step, train
from caspo_jax.training.base_plan import Micro
from caspo_jax.training.data import RowStore
from caspo_jax.training.nonfinite import MOST_IN_A_ROW, describe, write_batch
from caspo_jax.training.step_state import StepReport

from helpers import Toy, random_batch  # isort: skip
from small_run import CONFIG, PAIRS, VERIFIED, leaves  # isort: skip


def poisoned():
    """A batch of its own for each of three groups of pairs; the second gives an infinite loss."""
    batch = random_batch(seed=4, pairs=3)
    reference = batch.reference_chosen.copy()
    reference[1] = np.inf
    return [dataclasses.replace(batch, reference_chosen=reference)]


LONELY = dataclasses.replace(CONFIG, loss=LossConfig(), batch_size=1, epochs=2)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_ids(tmp_path):
    config = dataclasses.replace(LONELY, batch_size=2)
    with pytest.raises(UserError, match=r"batch 0 row 1 .*not_finite/update_\d+\.json"):
        train(Toy(), poisoned(), config, out_dir=tmp_path)
    (path,) = (tmp_path / "not_finite").iterdir()
    found = json.loads(path.read_text())
    assert found["not_finite"] == {"pairs": ["batch 0 row 1"], "verified": []}
    assert "batch 0 row 1" in found["batch"]["pairs"]
    assert len(found["batch"]["pairs"]) == 2
    assert not found["skipped"]
    # The same run goes on where it stopped, now without that batch.
    _, summary = train(Toy(), poisoned(), dataclasses.replace(config, skip_nonfinite=True), out_dir=tmp_path)
    assert summary.skipped == 2  # once an epoch
    assert summary.steps == len(summary.history) == 3


def test_skipped_updates_leave_no_trace(tmp_path):
    config = dataclasses.replace(LONELY, skip_nonfinite=True)
    model, summary = train(Toy(), poisoned(), config, out_dir=tmp_path)
    skipped = [record["step"] for record in summary.history if record.get("skipped")]
    assert summary.skipped == len(skipped) == 2
    assert {json.loads(p.read_text())["update"] for p in (tmp_path / "not_finite").iterdir()} == set(skipped)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves(model))
    assert summary.last["loss"] is None or np.isfinite(summary.last["loss"])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_skipped_update_changes_the_count_alone(parts):
    (bad,) = poisoned()
    good = random_batch(seed=5, pairs=3)
    step, state = make_train_step(
        Toy(), TrainConfig(loss=LossConfig(), learning_rate=1e-2, skip_nonfinite=True), 10
    )
    state, output = step(state, [good] * parts, 0)
    assert not output.fetch(LossConfig()).skipped
    before = jax.tree.map(np.asarray, jax.tree.map(lambda leaf: leaf.copy(), (state.params, state.opt_state)))
    state, output = step(state, [*[good] * (parts - 1), bad], 1)
    assert output.fetch(LossConfig()).skipped
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state))
    assert int(state.step) == 2


def test_many_skipped_in_a_row_stop_the_run():
    batch = random_batch(seed=4, pairs=3)
    bad = dataclasses.replace(batch, reference_chosen=np.full(3, np.inf, np.float32))
    config = dataclasses.replace(LONELY, epochs=MOST_IN_A_ROW, skip_nonfinite=True)
    with pytest.raises(UserError, match=f"{MOST_IN_A_ROW} updates in a row"):
        train(Toy(), [bad], config)


def test_the_rows_to_blame_are_named_whatever_pads_the_batches(tmp_path):
    """A micro-batch of rows ends before its padding does; in one of trees -1 stands between."""
    store = RowStore.build(PAIRS, VERIFIED)
    rows = Micro(None, np.array([4, 2]), np.array([0, 3]))
    trees = Micro(None, np.array([-1, 7, 0, -1]), np.array([5, -1, 1]))
    report = StepReport(
        metrics={"loss": float("nan"), "grad_norm": float("inf")},
        skipped=True,
        pair_finite=[np.array([True, False, True, True]), np.array([True, True, False, True])],
        verified_finite=[np.array([True, False, True]), np.array([False, True, True])],
    )
    found = json.loads(write_batch(tmp_path, 7, report, [rows, trees], store).read_text())
    assert found["not_finite"] == {"pairs": ["q2-s0", "q0-s0"], "verified": [3, 5]}
    assert found["batch"] == {"pairs": ["q4-s0", "q2-s0", "q7-s0", "q0-s0"], "verified": [0, 3, 5, 1]}
    assert (found["update"], found["skipped"], found["loss"]) == (7, True, "nan")
    said = describe(7, report, [rows, trees], store)
    assert "not finite: q2-s0, q0-s0; verified steps 3, 5" in said
    fine = dataclasses.replace(
        report, pair_finite=[np.ones(4, bool)] * 2, verified_finite=[np.zeros(0, bool)] * 2
    )
    assert "the batch: q4-s0, q2-s0, q7-s0, q0-s0" in describe(7, fine, [rows, trees], store)


class Cornered(Toy):
    """Its states are finite, at a root whose slope is not."""

    def hidden_states(self, *args, **options):
        return super().hidden_states(*args, **options) + jnp.sqrt(0.0 * self.mix[...][0, 0])


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
    step, state = make_train_step(
        Cornered(), TrainConfig(loss=LossConfig(loss="sft"), skip_nonfinite=True), 10
    )
    before = leaves(Cornered())
    state, output = step(state, [random_batch(seed=5, pairs=3)], 0)
    report = output.fetch(LossConfig(loss="sft"))
    assert np.isfinite(report.metrics["loss"])
    assert not np.isfinite(report.metrics["grad_norm"])
    assert report.skipped
    for old, new in zip(before, jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(old, new)
