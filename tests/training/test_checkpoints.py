"""Checkpoints: which are kept, what is damaged, and which one a restart or an export takes."""

import contextlib
import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.errors import UserError
from caspo_jax.training import make_train_step, train
from caspo_jax.training.checkpoints import (
    CHECKSUMS,
    ORBAX_NOTES,
    Checkpoints,
    DamagedCheckpointWarning,
    damage_of,
)
from caspo_jax.training.restore import resolve_checkpoint, restore_trained
from caspo_jax.training.step_state import TrainState
from caspo_jax.training.train_step import TrainStep, parameters_alone

from helpers import Toy  # isort: skip
from small_run import CONFIG, PAIRS, VERIFIED, Stopped, assert_same, leaves, lines, run, stop_at  # isort: skip


def test_old_checkpoints_are_removed(uninterrupted):
    folder, _, _ = uninterrupted
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["4", "5"]


def files_of(checkpoint):
    """Those with checksums: all but the list itself and what orbax adds as it commits."""
    listed = set(json.loads((checkpoint / CHECKSUMS).read_text())["files"])
    there = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}
    assert there - listed <= {CHECKSUMS, ORBAX_NOTES, "commit_success.txt"}
    return sorted(listed)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(bytes(data))


def test_any_changed_byte_and_any_missing_file_is_found(uninterrupted, tmp_path):
    checkpoint = shutil.copytree(uninterrupted[0] / "checkpoints" / "5", tmp_path / "5")
    assert damage_of(checkpoint) is None
    for number, name in enumerate(files_of(checkpoint)):
        path = checkpoint / name
        data = path.read_bytes()
        if data:
            flip(path, 7919 * number)
            assert name in damage_of(checkpoint)
            path.write_bytes(data[:-1])
            assert name in damage_of(checkpoint)
        path.unlink()
        assert name in damage_of(checkpoint)
        path.write_bytes(data)
    assert damage_of(checkpoint) is None
    for name in (ORBAX_NOTES, CHECKSUMS):
        flip(checkpoint / name, 0)
        assert name in damage_of(checkpoint)
        flip(checkpoint / name, 0)
        (checkpoint / name).rename(checkpoint / "away")
        assert name in damage_of(checkpoint)
        (checkpoint / "away").rename(checkpoint / name)
    assert damage_of(checkpoint) is None


def truncate(checkpoint):
    largest = max((checkpoint / name for name in files_of(checkpoint)), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    return largest.name


def unseal(checkpoint):
    (checkpoint / "checksums.json").unlink()
    return "checksums.json"


@pytest.mark.parametrize("damage", [truncate, unseal])
def test_the_checkpoint_before_a_damaged_one_is_used(uninterrupted, tmp_path, damage):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    name = damage(folder / "checkpoints" / "5")
    with pytest.warns(DamagedCheckpointWarning, match=rf"/5: .*{name}"):
        resumed, summary = run(folder)
    assert summary.resumed_from == 4
    assert_same(uninterrupted[1], resumed)
    assert damage_of(folder / "checkpoints" / "5") is None  # it was written again


def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(uninterrupted, tmp_path):
    """It was passed over, and what is written before it is all that the next start has."""
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    for step in ("4", "5"):
        truncate(folder / "checkpoints" / step)
    config = dataclasses.replace(CONFIG, keep_checkpoints=1, save_every=3)

    with pytest.warns(DamagedCheckpointWarning), pytest.raises(Stopped):
        run(folder, config, callback=stop_at(4))
    resumed, summary = run(folder, config)
    assert summary.resumed_from == 3
    assert_same(uninterrupted[1], resumed)


def test_with_every_checkpoint_damaged_the_run_starts_anew(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    for step in ("4", "5"):
        truncate(folder / "checkpoints" / step)
    with pytest.raises(UserError, match="5: damaged"):
        restore_trained(Toy(), folder, "5")
    with pytest.warns(DamagedCheckpointWarning) as warned:
        resumed, summary = run(folder)
    assert len(warned) == 2
    assert summary.resumed_from == 0
    assert_same(uninterrupted[1], resumed)


def test_what_a_kill_left_is_removed(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    for name in ("6.orbax-checkpoint-tmp", "removed-2"):
        shutil.copytree(folder / "checkpoints" / "4", folder / "checkpoints" / name)
    run(folder)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["4", "5"]


def test_no_second_state_is_held_while_one_is_read(uninterrupted):
    """Two states may not fit into memory, where a run of one went well until it was interrupted."""
    state = make_train_step(Toy(), CONFIG, 1)[1]
    checkpoints = Checkpoints(uninterrupted[0] / "checkpoints")
    restored, _ = checkpoints.restore(state)
    checkpoints.close()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert int(restored.step) == 5


def test_an_export_reads_the_parameters_alone(uninterrupted, monkeypatch):
    def no_state(step, params):
        raise AssertionError("an optimiser state is no part of what is exported")

    monkeypatch.setattr(TrainStep, "init", no_state)
    exported, updates = restore_trained(Toy(), uninterrupted[0])
    assert updates == 5
    assert_same(uninterrupted[1], exported)
    checkpoints = Checkpoints(uninterrupted[0] / "checkpoints")
    found, _ = checkpoints.restore(parameters_alone(Toy(), CONFIG), 5, partial=True)
    checkpoints.close()
    assert found.opt_state is None


def test_the_best_checkpoint_is_kept_and_exported(tmp_path):
    # The loss falls, so by `max` the first checkpoint is the best.
    config = dataclasses.replace(
        CONFIG, epochs=4, keep_checkpoints=1, best_metric="loss", best_mode="max", save_every=2
    )
    _, summary = run(tmp_path, config)
    means = {n: np.mean([r["loss"] for r in summary.history[n - 2 : n]]) for n in range(2, 11, 2)}
    best = max(means, key=means.get)
    assert best != 10
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [best, 10]
    exported, updates = restore_trained(Toy(), tmp_path, "best")
    assert updates == best
    stopped, _ = train(Toy(), PAIRS, dataclasses.replace(config, max_steps=None), verified=VERIFIED)
    assert any(np.any(a != b) for a, b in zip(leaves(exported), leaves(stopped)))
    with pytest.raises(UserError, match="last, best"):
        restore_trained(Toy(), tmp_path, "newest")


def test_the_best_of_one_metric_is_not_held_against_another(tmp_path):
    state, folder = make_train_step(Toy(), CONFIG, 1)[1], tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep=1, background=False)
    values = ((1, 9.0, "max a"), (2, 8.0, "max a"), (3, -5.0, "min b"), (4, -7.0, "min b"))
    for step, value, of in values:
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(step)), {}, value, of)
    assert checkpoints.best() == 3
    assert checkpoints.steps == [3, 4]
    checkpoints.close()


def test_of_equal_checkpoints_the_later_is_the_best_and_kept(tmp_path):
    state = make_train_step(Toy(), CONFIG, 1)[1]
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1, background=False)
    for step, value in ((1, 2.0), (2, 2.0), (3, 1.0)):
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(step)), {}, value, "max a")
    assert checkpoints.best() == 2
    assert checkpoints.steps == [2, 3]
    checkpoints.close()


def test_a_removal_cut_short_leaves_no_damaged_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        if step == 2:
            monkeypatch.setattr("caspo_jax.training.checkpoints.shutil.rmtree", stopped)
        checkpoints.save(TrainState(jnp.int32(step), {"w": jnp.zeros(2)}, ()), {})
        with pytest.raises(Stopped) if step == 2 else contextlib.nullcontext():
            checkpoints.wait()
    assert checkpoints.steps == [2]
    monkeypatch.undo()
    checkpoints.clean()
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def stopped(path):
    (path / CHECKSUMS).unlink()
    raise Stopped


def test_last_is_the_newest_that_is_whole(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted[0], tmp_path / "run")
    newest, name = resolve_checkpoint(folder, "last")
    assert newest == 5
    assert resolve_checkpoint(folder, "4")[1] != name
    truncate(folder / "checkpoints" / "5")
    with pytest.warns(DamagedCheckpointWarning):
        assert resolve_checkpoint(folder, "last") == resolve_checkpoint(folder, "4")
    with pytest.raises(UserError, match="no checkpoint has a value"):
        resolve_checkpoint(folder, "best")
    truncate(folder / "checkpoints" / "4")
    with pytest.warns(DamagedCheckpointWarning), pytest.raises(UserError, match="no whole checkpoint"):
        resolve_checkpoint(folder, "last")


def test_an_unknown_metric_is_named(tmp_path):
    with pytest.raises(UserError, match=r"best_metric='accuracy'.*rewards/accuracy"):
        run(tmp_path, dataclasses.replace(CONFIG, best_metric="accuracy", save_every=None))
    for name in ("schema", "step", "tokens"):  # in a record, but no metric
        with pytest.raises(UserError, match=f"best_metric='{name}'"):
            run(tmp_path / name, dataclasses.replace(CONFIG, best_metric=name))
    assert [record["step"] for record in lines(tmp_path)] == [1]  # before more is spent on it
