"""Processes that are told to stop by SIGTERM."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = """
import os, signal, sys, time
from experiments.stopping import tell_sigterm
tell_sigterm("stopped; go on")
"""
# A call into compiled code that lasts for minutes and holds Python's handlers back, but no thread.
BUSY = """
import hashlib
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha512", b"a", b"b", 1 << 30)
"""


@pytest.fixture
def start():
    """start(code) -> a process that has printed `ready`."""
    begun = []

    def run(code: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", START + code],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def test_a_line_and_an_end_at_once_whatever_is_running(start):
    process = start(BUSY)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("", "stopped; go on\n")
    assert process.returncode == 143


def test_training_takes_the_first_signal_and_not_the_second(start):
    process = start(
        """
from caspo_jax.training.preemption import StopNotice
with StopNotice() as notice:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)  # for a thread that would hear of it
    assert notice.reached() == signal.SIGTERM
"""
        + BUSY
    )
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("", "stopped; go on\n")
    assert process.returncode == 143


def test_it_is_told_again_once_training_ended_by_itself(start):
    process = start(
        """
from caspo_jax.training.preemption import StopNotice
with StopNotice():
    pass
"""
        + BUSY
    )
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("", "stopped; go on\n")


def test_a_forked_child_ends_alone(start):
    process = start(
        """
child = os.fork()
if child == 0:
    time.sleep(20)
    os._exit(0)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
assert os.WTERMSIG(status) == signal.SIGTERM
time.sleep(0.2)
print("ready", flush=True)
"""
    )
    _, said = process.communicate(timeout=10)
    assert "go on" not in said  # Python 3.12 and later warn of a fork beside a thread
    assert process.returncode == 0


def test_another_handler_takes_the_signal_alone(start):
    process = start(
        """
taken = []
signal.signal(signal.SIGTERM, lambda *_: taken.append(1))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.5)  # for a thread that would hear of it
assert taken == [1]
print("ready", flush=True)
"""
    )
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0


def test_a_signal_that_is_ignored_stays_ignored(start):
    process = start(
        """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell_sigterm("again")
os.kill(os.getpid(), signal.SIGTERM)
print("ready", flush=True)
"""
    )
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0
