"""Whatever ends a run, the next start ends with the parameters of a run that nothing ended."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.errors import Interrupted, UserError
from caspo_jax.training import LossConfig, TrainConfig, make_train_step, train
from caspo_jax.training.checkpoints import (
    CHECKSUMS,
    ORBAX_NOTES,
    Checkpoints,
    DamagedCheckpointWarning,
    damage_of,
)
from caspo_jax.training.nonfinite import MOST_IN_A_ROW
from caspo_jax.training.preemption import StopNotice
from caspo_jax.training.restore import restore_trained

from helpers import Toy, random_batch  # isort: skip
from test_train import CONFIG, PAIRS, VERIFIED, leaves, lines  # isort: skip


def run(folder, config=CONFIG, **options):
    return train(Toy(), PAIRS, config, verified=VERIFIED, out_dir=folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model, summary = run(folder)
    return folder, model, summary


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("background", [True, False])
def test_sigterm_keeps_the_state_and_the_next_start_goes_on(whole, tmp_path, background):
    folder, model, _ = whole
    config = dataclasses.replace(CONFIG, save_every=None, async_checkpoints=background)

    def terminate(record):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="update 3 of 5") as stopped:
        run(tmp_path, config, callback=terminate)
    assert stopped.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert [record["step"] for record in lines(tmp_path)] == [1, 2, 3]
    resumed, summary = run(tmp_path, config)
    assert summary.resumed_from == 3
    assert_same(model, resumed)
    assert lines(tmp_path) == lines(folder)


def test_a_second_sigterm_is_not_held_back():
    hits = []
    before = signal.signal(signal.SIGTERM, lambda *_: hits.append(1))
    try:
        with StopNotice() as notice:
            assert not notice.reached(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert notice.reached(2)
            assert not hits
            os.kill(os.getpid(), signal.SIGTERM)
            assert hits == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_program_that_was_stopped_says_so_and_exits_with_143(capsys):
    from experiments import common

    def main():
        raise Interrupted("stopped after update 3", signal.SIGTERM)

    assert common.guarded(main, ["train"]) == 143
    assert capsys.readouterr().err == "stopped after update 3\n"


def test_without_the_main_thread_nothing_is_held():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopNotice() as notice:
            seen.append((signal.getsignal(signal.SIGTERM), notice.reached(1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


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


def test_any_changed_byte_and_any_missing_file_is_found(whole, tmp_path):
    checkpoint = shutil.copytree(whole[0] / "checkpoints" / "5", tmp_path / "5")
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
def test_the_checkpoint_before_a_damaged_one_is_used(whole, tmp_path, damage):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    name = damage(folder / "checkpoints" / "5")
    with pytest.warns(DamagedCheckpointWarning, match=rf"/5: .*{name}"):
        resumed, summary = run(folder)
    assert summary.resumed_from == 4
    assert_same(whole[1], resumed)
    assert damage_of(folder / "checkpoints" / "5") is None  # it was written again


def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(whole, tmp_path):
    """It was passed over, and what is written before it is all that the next start has."""
    folder = shutil.copytree(whole[0], tmp_path / "run")
    for step in ("4", "5"):
        truncate(folder / "checkpoints" / step)
    config = dataclasses.replace(CONFIG, keep_checkpoints=1, save_every=3)

    def die(record):
        if record["step"] == 4:
            raise KeyboardInterrupt

    with pytest.warns(DamagedCheckpointWarning), pytest.raises(KeyboardInterrupt):
        run(folder, config, callback=die)
    resumed, summary = run(folder, config)
    assert summary.resumed_from == 3
    assert_same(whole[1], resumed)


def test_with_every_checkpoint_damaged_the_run_starts_anew(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    for step in ("4", "5"):
        truncate(folder / "checkpoints" / step)
    with pytest.raises(UserError, match="5: damaged"):
        restore_trained(Toy(), folder, "5")
    with pytest.warns(DamagedCheckpointWarning) as warned:
        resumed, summary = run(folder)
    assert len(warned) == 2
    assert summary.resumed_from == 0
    assert_same(whole[1], resumed)


def test_what_a_kill_left_is_removed(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    for name in ("6.orbax-checkpoint-tmp", "removed-2"):
        shutil.copytree(folder / "checkpoints" / "4", folder / "checkpoints" / name)
    run(folder)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["4", "5"]


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


def test_an_unknown_metric_is_named(tmp_path):
    with pytest.raises(UserError, match=r"best_metric='accuracy'.*rewards/accuracy"):
        run(tmp_path, dataclasses.replace(CONFIG, best_metric="accuracy", save_every=None))
    assert [record["step"] for record in lines(tmp_path)] == [1]  # before more is spent on it


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


class Nursery:
    """See nursery.py."""

    def __init__(self, folder: Path, updates: int, cache: Path):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "OPENBLAS_NUM_THREADS": "1",  # no thread may live when it forks
        }
        self.errors = open(folder.parent / f"{folder.name}.stderr", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "nursery.py"), str(folder), str(updates)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )

    def start(self) -> int:
        """Start a run; its pid."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self._line())

    def status(self) -> int:
        """Wait for the run's end."""
        return int(self._line())

    def _line(self) -> str:
        line = self.process.stdout.readline()
        self.errors.seek(0)
        assert line, self.errors.read()
        return line

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def updates_done(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def survive(tmp_path, kills, updates, seed=0):
    """Kill a run at `kills` random moments; it must end as one that was left alone."""
    left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
    nurseries = [Nursery(folder, updates, tmp_path / "cache") for folder in (left_alone, killed)]
    chance = random.Random(seed)
    try:
        nurseries[0].start()
        assert nurseries[0].status() == 0, (tmp_path / "left_alone.stderr").read_text()
        for _ in range(kills):
            pid = nurseries[1].start()
            target, deadline = updates_done(killed) + chance.randrange(4), time.monotonic() + 120
            while updates_done(killed) < target and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.05 if target else 1.0))
            os.kill(pid, signal.SIGKILL)
            assert nurseries[1].status() == -signal.SIGKILL, "the run ended before it was killed"
        nurseries[1].start()
        assert nurseries[1].status() == 0, (tmp_path / "killed.stderr").read_text()
    finally:
        for nursery in nurseries:
            nursery.close()
    with np.load(left_alone / "final.npz") as expected, np.load(killed / "final.npz") as found:
        for name in expected.files:
            np.testing.assert_array_equal(expected[name], found[name])
    assert lines(killed) == lines(left_alone)
    examples = [
        dict(map(json.loads, (folder / "examples.jsonl").read_text().splitlines()))
        for folder in (left_alone, killed)
    ]
    assert list(examples[0]) == list(range(1, updates + 1))
    assert examples[0] == {n: examples[1][n] for n in sorted(examples[1])}


def test_two_sigkills(tmp_path):
    survive(tmp_path, kills=2, updates=12)


@pytest.mark.slow
def test_twenty_five_sigkills(tmp_path):
    survive(tmp_path, kills=25, updates=110)
