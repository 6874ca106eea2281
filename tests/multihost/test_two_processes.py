"""Two processes over gloo, with two or four devices each: one result, one writer, and a clear end when one of them is gone."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import run, start

JOB = Path(__file__).parent / "job.py"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def both(job, folder, devices=8):
    port = free_port()
    return [start(JOB, index, port, job, folder, devices=devices // 2) for index in range(2)]


def ends(processes, seconds):
    """(exit code, stderr) of each, which all end in time."""
    deadline = time.monotonic() + seconds
    found = []
    try:
        for process in processes:
            _, err = process.communicate(timeout=max(1, deadline - time.monotonic()))
            found.append((process.returncode, err))
    except subprocess.TimeoutExpired:
        pytest.fail(f"process {len(found)} did not end in {seconds} s")
    finally:
        for process in processes:
            process.kill()
    return found


@pytest.mark.parametrize(("job", "devices"), [("four", 4), pytest.param("eight", 8, marks=pytest.mark.ci)])
def test_two_processes_do_what_one_does(tmp_path, job, devices):
    for code, err in ends(both(job, tmp_path, devices), 600):
        assert code == 0, err[-4000:]
    first, second = (dict(np.load(tmp_path / f"process{i}.npz")) for i in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    script = JOB.parent.parent / "sharding" / "on_devices.py"
    for job in ("trees", "search"):
        (tmp_path / job).mkdir()
        run(script, job, tmp_path / job, "none", devices=1)
    alone = dict(np.load(tmp_path / "search/none.npz"))
    assert json.loads(str(first["trees"])) == json.loads(str(alone["trees"]))
    np.testing.assert_allclose(first["logprob"], alone["logprob"], atol=1e-4)
    trained = dict(np.load(tmp_path / "trees/none.npz"))
    np.testing.assert_allclose(first["loss"], trained["loss"], rtol=2e-4)
    np.testing.assert_allclose(first["embed"], trained["embed"], atol=2e-5)
    lines = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["by"] == 0
    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]


@pytest.mark.ci
def test_ctrl_c_in_one_keeps_a_checkpoint_of_both_beside_those_by_time(tmp_path):
    checkpoints = tmp_path / "run/checkpoints"
    processes = both("long", tmp_path)
    deadline = time.monotonic() + 240
    while not any(checkpoints.glob("*/checksums.json")):
        assert time.monotonic() < deadline, "no checkpoint by time"
        assert all(process.poll() is None for process in processes), ends(processes, 60)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGINT)
    (code, err), (other, told) = ends(processes, 120)
    assert (code, other) == (143, 143), err[-2000:] + told[-2000:]
    stopped = {int(n) for text in (err, told) for n in re.findall(r"stopped after update (\d+) of", text)}
    assert len(stopped) == 1, err + told
    kept = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    assert len(kept) == 2  # `keep_checkpoints`
    assert kept[-1] == stopped.pop()
    assert (checkpoints / str(kept[-1]) / "checksums.json").exists()


def test_a_barrier_names_who_is_missing(tmp_path):
    (code, err), (other, told) = ends(both("late", tmp_path), 120)
    assert (code, other) == (1, 1)
    assert "barrier 'without the other': process 1 (" in err
    assert "last at 'together'" in err
    assert "process 0" in told
    assert "without the other" in told


def test_bad_input_in_one_process_ends_both(tmp_path):
    (code, err), (other, told) = ends(both("refused", tmp_path), 120)
    assert (code, other) == (1, 1)
    assert "error: line 7 is bad" in told
    assert "process 1" in err
    assert "line 7 is bad" in err or "failed" in err


@pytest.mark.parametrize(
    "victim", [pytest.param(1, marks=pytest.mark.ci), pytest.param(0, marks=pytest.mark.slow)]
)
def test_when_one_is_killed_the_other_says_so_and_ends(tmp_path, victim):
    processes = both("forever", tmp_path)
    deadline = time.monotonic() + 180
    while not all((tmp_path / f"running{i}").exists() for i in range(2)):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.2)
    processes[victim].kill()
    ((code, err),) = ends([processes[1 - victim]], 60)
    assert code != 0
    if victim == 1 or "error:" in err:
        assert f"error: process {victim}" in err
        assert "start all processes again" in err
    else:  # without its service JAX ends the process at once, in its own words
        assert "leader task" in err, err[-3000:]


def test_flags_go_together(tmp_path):
    from caspo_jax import distributed
    from caspo_jax.errors import UserError

    with pytest.raises(UserError, match="go together"):
        distributed.start("127.0.0.1:1", 2)
    for wrong in (2, -1):
        with pytest.raises(UserError, match=f"--process_id={wrong}: must be from 0 to 1"):
            distributed.start("127.0.0.1:1", 2, wrong, timeout=5)
    for count in (0, -1):
        with pytest.raises(UserError, match=f"--num_processes={count}: must be at least 1"):
            distributed.start("127.0.0.1:1", count, 0)
    for address in ("host", ":1234", "host:", "host:port", "host:0", "host:65536"):
        with pytest.raises(UserError, match=f"--coordinator_address={address}: give HOST:PORT"):
            distributed.start(address, 2, 0)
    distributed.start()  # in no cluster: one process, which waits for nobody
    distributed.start("127.0.0.1:1", 1, 0)
    assert (distributed.process_count(), distributed.process_index()) == (1, 0)
    with distributed.writer_first("file"):
        distributed.barrier("nobody else", timeout=0)
    assert distributed.from_writer("word", lambda: "mine") == "mine"
    distributed.finish()


def test_processes_are_joined_before_a_device_is_touched():
    import jax

    from caspo_jax import distributed
    from caspo_jax.errors import UserError

    jax.devices()
    with pytest.raises(UserError, match=r"call distributed\.start before anything touches a device"):
        distributed.start("127.0.0.1:1", 2, 0, timeout=5)


@pytest.mark.parametrize("call, said", [("fail('x')", ""), ("lost(RuntimeError('gone'))", "failed (gone)")])
def test_a_process_by_itself_ends_at_once(call, said):
    script = f"from caspo_jax import distributed\ndistributed.{call}\nprint('still here')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_watch_outlives_neither_the_client_nor_the_interpreter():
    """After Ctrl-C a process may end while its watch is in a call: that was an abort, or a coordinator that is gone."""
    script = f"""
import time, jax
from jax._src.distributed import global_state
from caspo_jax.distributed import watch
jax.distributed.initialize("127.0.0.1:{free_port()}", 1, 0)
watch.BEAT_SECONDS = 0.0
watch.GROUP.count, watch.GROUP.client = 2, global_state.client
watch.begin()
time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "error:" in done.stderr) == (0, False), done.stderr
