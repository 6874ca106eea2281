"""Checkpoints by time, of runs that were not told how often to keep one."""

import dataclasses
import json
import threading

import numpy as np
import pytest

from caspo_jax.training import checkpoints, make_train_step, save_clock
from caspo_jax.training.checkpoints import CHECKSUMS, Checkpoints
from caspo_jax.training.save_clock import SaveClock

from helpers import Toy  # isort: skip
from small_run import CONFIG, Stopped, assert_same, lines, run, stop_at  # isort: skip

UNTOLD = dataclasses.replace(CONFIG, save_every=None, keep_checkpoints=9, async_checkpoints=False)


def kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def impatient(monkeypatch):
    """The time is always up."""
    monkeypatch.setattr(save_clock, "SAVE_SECONDS", 0.0)


def test_a_killed_run_goes_on_from_the_last_checkpoint_by_time(uninterrupted, tmp_path, impatient):
    folder, model, _ = uninterrupted
    with pytest.raises(Stopped):
        run(tmp_path, UNTOLD, callback=stop_at(3))
    assert kept(tmp_path) == [1, 2]
    resumed, summary = run(tmp_path, UNTOLD)
    assert summary.resumed_from == 2
    assert_same(model, resumed)
    assert lines(tmp_path) == lines(folder)


def test_before_the_time_is_up_the_end_alone_is_kept(tmp_path):
    run(tmp_path, UNTOLD)
    assert kept(tmp_path) == [5]


def test_a_run_that_was_told_keeps_what_it_was_told(tmp_path, impatient):
    run(tmp_path, dataclasses.replace(UNTOLD, save_every=3))
    assert kept(tmp_path) == [3, 5]


def test_nothing_waits_for_a_checkpoint_that_is_still_being_written(tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(Checkpoints, "writing", True)
    run(tmp_path, UNTOLD)
    assert kept(tmp_path) == [5]


def test_the_clock_does_not_decide_which_is_the_best(tmp_path, impatient):
    run(tmp_path, dataclasses.replace(UNTOLD, best_metric="rewards/accuracy"))
    values = [
        json.loads((tmp_path / "checkpoints" / f"{n}" / CHECKSUMS).read_text())["value"] for n in range(1, 6)
    ]
    assert values[:4] == [None] * 4
    assert values[4] is not None


@pytest.mark.parametrize("pace", [0.7, 9.0, 400.0, 5000.0])
def test_several_processes_keep_what_the_first_ones_clock_says(monkeypatch, pace):
    """A look waits for the updates under way, so there are few; no checkpoint is later than by an update and a twentieth."""
    said, looks, now = [], [], [0.0]
    monkeypatch.setattr(save_clock.jax, "process_count", lambda: 2)
    monkeypatch.setattr(save_clock.time, "monotonic", lambda: now[0])

    def told(value):
        said.append(value)
        return value

    def other(value):
        looks.append(value)
        return said[len(looks) - 1]

    first = SaveClock(UNTOLD, 10)
    now[0] = 300.0  # the other's clock runs behind
    second = SaveClock(UNTOLD, 10)
    now[0], kept_at = 0.0, [0.0]
    for update in range(11, 11 + max(5, int(4000 / pace))):
        now[0] += pace
        monkeypatch.setattr(save_clock, "_of_the_first_process", told)
        due = first.due(update, writing=False)
        monkeypatch.setattr(save_clock, "_of_the_first_process", other)
        assert second.due(update, writing=True) == due
        if due:
            kept_at.append(now[0])
            first.saved(update)
            second.saved(update)
    waits = np.diff(kept_at)
    assert len(waits) >= 3
    assert waits.min() >= 600.0
    assert waits.max() <= 600.0 * (1 + 1 / 20) + pace
    assert len(looks) == len(said) <= 12 * (len(waits) + 1)


@pytest.fixture
def simulated(monkeypatch):
    """simulated(pace, writing) -> the times of looks and of checkpoints within an hour of a run of two processes."""

    def simulate(pace, writing=lambda now: False):
        now, looks, kept_at = [0.0], [], []
        monkeypatch.setattr(save_clock.jax, "process_count", lambda: 2)
        monkeypatch.setattr(save_clock.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(save_clock, "_of_the_first_process", lambda value: looks.append(now[0]) or value)
        clock, update = SaveClock(UNTOLD, 0), 0
        while now[0] < 3600:
            update, now[0] = update + 1, now[0] + pace(now[0])
            if clock.due(update, writing(now[0])):
                kept_at.append(now[0])
                clock.saved(update)
        return looks, kept_at

    return simulate


@pytest.mark.parametrize("slower", [10.0, 100.0, 300.0, 500.0])
def test_a_pace_that_halves_makes_no_checkpoint_late(simulated, slower):
    _, kept_at = simulated(lambda now: 1.0 if now < slower else 2.0)
    assert 600.0 <= kept_at[0] <= 600.0 * (1 + 1 / 20) + 2.0


def test_a_checkpoint_that_takes_long_to_write_is_not_looked_for_after_every_update(simulated):
    looks, kept_at = simulated(lambda now: 0.5, writing=lambda now: now < 1800)
    assert 1800 <= kept_at[0] <= 1830
    assert sum(600 < look < 1800 for look in looks) <= 1200 / 15 + 1


def test_a_checkpoint_is_being_written_until_its_checksums_are(tmp_path, monkeypatch):
    go_on, hash_path = threading.Event(), checkpoints.hash_path

    def late(path):
        assert go_on.wait(60)
        return hash_path(path)

    monkeypatch.setattr(checkpoints, "hash_path", late)
    _, state = make_train_step(Toy(), CONFIG, 1)
    writer = Checkpoints(tmp_path)
    try:
        assert not writer.writing
        writer.save(state, {})
        assert writer.writing
        go_on.set()
        writer.wait()
        assert not writer.writing
    finally:
        go_on.set()
        writer.close()
