"""The allocator that training programs restart with, and whose fault it is that a program ends."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import common

# 64 MiB that a thread takes, fills and gives back, twice: page faults of the second time.
TWICE = """
import resource, threading
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=lambda: len(b"x" * 2**26))
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def restarts(monkeypatch):
    """The command lines that the interpreter would have been restarted with."""
    found = []
    monkeypatch.setattr(os, "environ", {"PATH": "here"})
    monkeypatch.setattr(os, "execv", lambda path, argv: found.append((path, argv)))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.train", "--seed=1"])
    return found


def test_a_program_restarts_once_with_its_own_arguments(restarts):
    common.tune_malloc()
    common.tune_malloc()
    assert restarts == [(sys.executable, [sys.executable, "-m", "experiments.train", "--seed=1"])]
    assert os.environ.items() >= {"PATH": "here", **common.MALLOC}.items()


def test_what_the_user_has_set_stays(restarts):
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.check=3"
    common.tune_malloc()
    assert not restarts
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=3"


def test_a_failed_operation_alone_is_blamed_on_the_other_processes(monkeypatch):
    told = []
    monkeypatch.setattr(common, "keep_programs", lambda: None)
    monkeypatch.setattr(common.distributed, "process_count", lambda: 2)
    monkeypatch.setattr(common.distributed, "lost", told.append)
    for error in (KeyError("a mistake of ours"), RuntimeError("connection closed")):

        def fails(error=error):
            raise error

        with pytest.raises(type(error)):
            common.guarded(fails, ["program"])
    assert [str(error) for error in told] == ["connection closed"]


def test_ctrl_c_says_what_the_same_command_does(monkeypatch, capsys):
    guard = []
    monkeypatch.setattr(common, "keep_programs", lambda: None)
    monkeypatch.setattr(common, "tell_sigterm", guard.append)
    monkeypatch.setattr(common.app, "run", lambda main, **_: guard.append(main([])))

    def main():
        raise KeyboardInterrupt

    for resumes, words in ((True, "is kept: run the same command again to go on"), (False, "to start anew")):
        common.run(main, resumes=resumes)
        told, code = guard[-2:]
        assert words in told
        assert code == 130
        assert capsys.readouterr().err == f"interrupted; {told.partition('; ')[2]}\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages to be had"
)
def test_a_large_buffer_takes_few_page_faults():
    untouched = {name: value for name, value in os.environ.items() if name not in common.MALLOC}

    def second_time(settings):
        command = [sys.executable, "-c", TWICE]
        return int(subprocess.check_output(command, env={**untouched, **settings}, text=True))

    if "[madvise]" in HUGE_PAGES.read_text():  # else nobody has to ask
        assert second_time({}) > 2**26 // 4096 * 0.9
    assert second_time(common.MALLOC) < 2**26 // 4096 * 0.1
