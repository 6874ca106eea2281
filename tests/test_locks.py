"""One run at a time for one output: by the lock of a process that lives, on whatever file system."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import caspo_jax
from caspo_jax import locks
from caspo_jax.errors import UserError
from caspo_jax.outputs import JsonlOutput, Manifest, discard_unfinished, manifest_path

fcntl = pytest.importorskip("fcntl")

# Without the package's own __init__, which imports JAX.
HOLDER = f"""
import sys, types
package = types.ModuleType("caspo_jax")
package.__path__ = [{str(Path(caspo_jax.__file__).parent)!r}]
sys.modules["caspo_jax"] = package
from caspo_jax.locks import hold
print(hold(sys.argv[1]), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(path):
    """A process that holds `path`, until it is killed or the context ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "True\n"
        yield process
    finally:
        process.communicate()


@contextlib.contextmanager
def locked_by_another(path):
    """What another process's lock is to this one, without the process."""
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def begin(path, overwrite=False, **config):
    manifest = Manifest.open(manifest_path(path), program="p", config=config, overwrite=overwrite)
    return JsonlOutput(path, manifest)


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    output = tmp_path / "out.jsonl"
    with another_process(manifest_path(output)) as other:
        message = rf"another run \(process {other.pid} on .+\) is writing .*out\.jsonl: wait"
        with pytest.raises(UserError, match=message):
            begin(output)
    assert names(tmp_path) == []
    begin(output).finish()
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.manifest.json"]


def test_a_kill_frees_what_was_held(tmp_path):
    output = tmp_path / "out.jsonl"
    with another_process(manifest_path(output)) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert names(tmp_path) == [".out.jsonl.manifest.json.lock"]
    begin(output).finish()
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.manifest.json"]


def test_an_output_is_held_until_it_is_finished(tmp_path):
    output = tmp_path / "out.jsonl"
    lock = manifest_path(output)
    written = begin(output)
    with pytest.raises(BlockingIOError), locked_by_another(lock):
        pass
    assert not locks.hold(lock)  # this process has it: the same output may be opened again
    written.finish()
    with locked_by_another(lock):
        begin(tmp_path / "other.jsonl").finish()  # a neighbour is another output
        with pytest.raises(UserError, match="another run"):
            begin(output)


@pytest.mark.parametrize("end", ["complete", "refused", "somebody's", "discarded"])
def test_what_is_not_being_written_is_not_held(tmp_path, end):
    output = tmp_path / "out.jsonl"
    if end == "complete":
        for _ in range(2):
            written = begin(output)
            if not written.complete:
                written.finish()
    elif end == "refused":
        begin(output, seed=1).finish()
        with pytest.raises(UserError, match="seed"):
            begin(output, seed=2)
    elif end == "somebody's":
        output.write_text("mine")
        with pytest.raises(UserError, match="no manifest"):
            begin(output)
    else:
        begin(output).append([{"id": "a"}])
        discard_unfinished(output)
    assert not [name for name in names(tmp_path) if name.endswith(".lock")]


def test_a_complete_manifest_without_its_file_is_held_again(tmp_path):
    output = tmp_path / "out.jsonl"
    begin(output).finish()
    output.unlink()
    written = begin(output)
    with pytest.raises(BlockingIOError), locked_by_another(manifest_path(output)):
        pass
    written.finish()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_refuses_nothing(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, "no locks")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    output = tmp_path / "out.jsonl"
    written = begin(output)
    assert names(tmp_path) == ["out.jsonl.manifest.json"]
    written.finish()
    assert output.exists()


def test_windows_has_no_such_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with locked_by_another(tmp_path / "x"), locks.held(tmp_path / "x"):
        pass


def test_the_writer_alone_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "is_writer", lambda: False)
    with locked_by_another(tmp_path / "x"), locks.held(tmp_path / "x"):
        pass


def test_a_lock_file_that_is_removed_meanwhile_is_not_the_lock(tmp_path, monkeypatch):
    """Its last holder may remove it between our opening and our locking it; a third run would then lock another."""
    output, flock, seen = tmp_path / "out", fcntl.flock, []

    def removed(descriptor, how):
        if not seen:
            (tmp_path / ".out.lock").unlink()
        seen.append(descriptor)
        flock(descriptor, how)

    with monkeypatch.context() as patched:
        patched.setattr(locks.fcntl, "flock", removed)
        assert locks.hold(output)
    assert len(seen) == 2
    with pytest.raises(BlockingIOError), locked_by_another(output):
        pass
    locks.release(output)
    assert names(tmp_path) == []


def test_who_writes_is_said_whole_and_alone(tmp_path):
    """A kill may have left a longer name in the file."""
    lock = tmp_path / ".x.lock"
    lock.write_text("process 4194304 on a machine with a long name, " * 9)
    with locks.held(tmp_path / "x"):
        assert re.fullmatch(rf"process {os.getpid()} on \S+", lock.read_text())


def test_what_was_held_before_is_held_after(tmp_path):
    assert locks.hold(tmp_path / "x")
    with locks.held(tmp_path / "x"):
        pass
    with pytest.raises(BlockingIOError), locked_by_another(tmp_path / "x"):
        pass
    locks.release(tmp_path / "x")


def test_a_lock_that_was_lost_is_let_go_and_the_other_run_s_stays(tmp_path):
    """Somebody removes our lock file by hand, and another run makes its own."""
    lock = tmp_path / ".x.lock"
    assert locks.hold(tmp_path / "x")
    with open(lock) as ours:
        lock.unlink()
        with locked_by_another(tmp_path / "x"):
            locks.release(tmp_path / "x")
            assert lock.exists()
        fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody has it any more


def test_a_lock_is_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locks.hold("x")
    monkeypatch.chdir("sub")
    assert not locks.hold("../x")
    locks.release(tmp_path / "x")
    assert names(tmp_path) == ["sub"]
