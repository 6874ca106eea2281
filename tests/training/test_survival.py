"""Whatever ends a run, the next start ends with the parameters of a run that nothing ended."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from caspo_jax.errors import Interrupted
from caspo_jax.training.preemption import StopNotice

from small_run import CONFIG, assert_same, lines, run  # isort: skip


SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request):
    """A signal that asks a run to stop; its handler is afterwards what it was before."""
    before = [signal.getsignal(each) for each in SIGNALS]
    yield request.param
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("background", [True, False])
def test_a_signal_keeps_the_state_and_the_next_start_goes_on(uninterrupted, tmp_path, number, background):
    folder, model, _ = uninterrupted
    config = dataclasses.replace(CONFIG, save_every=None, async_checkpoints=background)

    def terminate(record):
        if record["step"] == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="update 3 of 5") as stopped:
        run(tmp_path, config, callback=terminate)
    assert stopped.value.signal == number
    assert [record["step"] for record in lines(tmp_path)] == [1, 2, 3]
    resumed, summary = run(tmp_path, config)
    assert summary.resumed_from == 3
    assert_same(model, resumed)
    assert lines(tmp_path) == lines(folder)


def test_a_signal_in_the_last_update_stops_whatever_would_come_next(uninterrupted, tmp_path, number):
    folder, model, _ = uninterrupted

    def terminate(record):
        if record["step"] == record["steps"]:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="the last update, 5") as stopped:
        run(tmp_path, callback=terminate)
    assert stopped.value.signal == number
    again, summary = run(tmp_path, callback=terminate)
    assert summary.resumed_from == summary.steps
    assert_same(model, again)
    assert lines(tmp_path) == lines(folder)


def test_a_second_sigterm_is_not_held_back():
    hits = []
    before = signal.signal(signal.SIGTERM, lambda *_: hits.append(1))
    try:
        with StopNotice() as notice:
            assert not notice.reached()
            os.kill(os.getpid(), signal.SIGTERM)
            assert notice.reached()
            assert not hits
            os.kill(os.getpid(), signal.SIGTERM)
            assert hits == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_ctrl_c_interrupts_at_once(capfd):
    with StopNotice() as notice:
        os.kill(os.getpid(), signal.SIGINT)
        assert notice.reached() == signal.SIGINT
        assert "Ctrl-C again ends at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_of_several_processes_one_hands_ctrl_c_on_to_jax_which_knows_sigterm(monkeypatch):
    hits = []
    before = signal.signal(signal.SIGTERM, lambda *_: hits.append(1))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    try:
        with StopNotice():
            os.kill(os.getpid(), signal.SIGINT)
            assert hits == [1]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopNotice() as notice:
            os.kill(os.getpid(), signal.SIGINT)
            assert notice.reached() is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_program_that_was_stopped_says_so_and_exits_with_its_signals_code(capsys, number, code):
    from experiments import common

    def main():
        raise Interrupted("stopped after update 3", number)

    assert common.guarded(main, ["train"]) == code
    assert capsys.readouterr().err == "stopped after update 3\n"


def test_without_the_main_thread_nothing_is_held():
    before, seen = [signal.getsignal(number) for number in SIGNALS], []

    def work():
        with StopNotice() as notice:
            seen.append(([signal.getsignal(number) for number in SIGNALS], notice.reached()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


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
