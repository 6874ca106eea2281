"""Programs in the sandbox: what they give, and the limits that they meet."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.execution import Limits, open_sandbox
from tests.evaluation.execution.programs import SHORT, mine, remaining, run


def test_nothing_runs_without_the_users_word():
    with pytest.raises(UserError, match="--allow_code_execution"):
        open_sandbox(allow_code_execution=False)


def test_a_plain_program_runs(sandbox):
    result = run(sandbox, "print(int(input()) + 1)\nraise SystemExit(3)", stdin="41\n")
    assert (result.status, result.exit_code, result.stdout) == ("error", 3, "42\n")


def test_large_input_and_output_arrive_whole(sandbox):
    text = "".join(f"{i}\n" for i in range(100_000))
    result = run(sandbox, "import sys; sys.stdout.write(sys.stdin.read())", stdin=text)
    assert result.status == "ok"
    assert result.stdout == text


@pytest.mark.parametrize(
    "source, expected",
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("import sys; sys.exit(0)", False),  # leaving early is not passing
        ("import os; os._exit(0)", False),
        ("import os; os.write(3, b'made up')", False),
        ("def f(:", False),
        ("'''never closed", False),
        ("from __future__ import annotations\nx: No = 1", True),
        ("print('\\ud800'.encode('utf-8', 'replace'))", True),
    ],
)
def test_passing_means_reaching_the_last_line(sandbox, source, expected):
    assert sandbox.passes(source) is expected


def test_an_endless_loop_is_ended(sandbox):
    started = time.monotonic()
    assert run(sandbox, "while True: pass").status == "timeout"
    assert time.monotonic() - started < SHORT.wall_seconds + 30  # a busy machine starts processes slowly


def test_sleeping_is_ended_by_the_wall_clock(sandbox):
    limits = Limits(wall_seconds=0.7)
    assert run(sandbox, "import time; time.sleep(60)", limits=limits).status == "timeout"


def test_ignored_signals_do_not_help(sandbox):
    source = """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True: pass
    """
    result = run(sandbox, source)
    assert result.status in ("timeout", "error")
    assert result.seconds < SHORT.wall_seconds + 30


def test_a_memory_bomb_meets_its_limit(sandbox):
    limits = Limits(wall_seconds=60.0, cpu_seconds=30, memory_bytes=128 << 20)
    result = run(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 24))", limits=limits)
    assert result.status == "error"
    assert "MemoryError" in result.stderr


def test_a_fork_bomb_is_held_and_leaves_nothing(sandbox):
    source = """
        import os
        count = 0
        while True:
            try:
                if os.fork() == 0:
                    count = -10**9
                count += 1
            except OSError:
                if count >= 0:
                    print("held after", count, flush=True)
                break
        import time
        time.sleep(60)
    """
    result = run(sandbox, source)
    assert result.status == "timeout"
    held = [int(line.rsplit(" ", 1)[1]) for line in result.stdout.splitlines()]
    assert held
    assert max(held) <= SHORT.processes
    assert not remaining("caspo-run-")
    assert not remaining("/work/program.py")


def test_a_daemon_does_not_outlive_the_run(sandbox):
    marker = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    source = f"""
        import os, sys, time
        try:
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "{marker}"])
                os._exit(0)
        except OSError as error:
            print("no", error)
        else:
            time.sleep(0.5)  # time enough for the daemon to start
            print("yes")
    """
    result = run(sandbox, source)
    assert result.status == "ok"
    assert result.stdout[:2] == ("no" if "namespaces" not in result.isolation else "ye")
    assert not mine(marker)


def test_too_much_output_ends_the_run(sandbox):
    result = run(
        sandbox, "while True: print('x' * 10000)", limits=Limits(wall_seconds=5.0, output_bytes=200_000)
    )
    assert result.status == "output"
    assert len(result.stdout) < 400_000
    assert result.seconds < 35


def test_its_own_folder_is_small_and_goes_away(sandbox):
    source = """
        wrote = 0
        try:
            for i in range(100):
                with open(f"f{i}", "wb") as file:
                    for _ in range(16):
                        wrote += file.write(bytes(1 << 20))
        except OSError as error:
            pass
        print(wrote >> 20)
    """
    limits = Limits(wall_seconds=20.0, file_bytes=16 << 20, folder_bytes=32 << 20)
    result = run(sandbox, source, limits=limits)
    assert result.status == "ok", result.stderr
    assert int(result.stdout) <= 32
    if "namespaces" in result.isolation:
        assert int(result.stdout) > 0


def test_one_file_meets_its_limit(sandbox):
    result = run(sandbox, "open('f', 'wb').write(bytes(1 << 21))", limits=Limits(file_bytes=1 << 20))
    assert result.status == "error"


def test_threads_work_and_are_counted(sandbox):
    source = """
        import threading
        done = []
        threads = [threading.Thread(target=done.append, args=(i,)) for i in range(3)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(sorted(done))
    """
    assert run(sandbox, source).stdout == "[0, 1, 2]\n"


def test_a_killed_host_takes_the_program_along(sandbox):
    marker = f"orphan-{os.getpid()}-{time.monotonic_ns()}"
    namespaces = "namespaces" in sandbox.run("pass").isolation
    host = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, types\n"  # the packages without what they import: a host that starts at once
            "for name in ('caspo_jax', 'caspo_jax.evaluation', 'caspo_jax.evaluation.execution'):\n"
            "    sys.modules[name] = types.ModuleType(name)\n"
            "    sys.modules[name].__path__ = [name.replace('.', '/')]\n"
            "from caspo_jax.evaluation.execution.sandbox import Limits, Sandbox\n"
            f"Sandbox(Limits(wall_seconds=60, cpu_seconds=60), {namespaces}, {sys.executable!r}).run("
            f'"import os, sys, time; print(flush=True); '
            f"os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{marker}'])\")",
        ],
        cwd=Path(__file__).parents[3],
    )
    try:
        deadline = time.monotonic() + 60
        while not [p for p in mine(marker) if p != host.pid] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [p for p in mine(marker) if p != host.pid]
        host.send_signal(signal.SIGKILL)
        host.wait()
        deadline = time.monotonic() + 20
        while mine(marker) and time.monotonic() < deadline:  # the guard is told, and clears up
            time.sleep(0.05)
        assert not mine(marker)
    finally:
        host.kill()
        host.wait()


def test_limits_are_checked():
    with pytest.raises(UserError, match=r"Limits\.processes=0"):
        Limits(processes=0)


@pytest.mark.parametrize("namespaces", [True, False])
def test_another_virtual_environment_s_interpreter(tmp_path, namespaces):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    opened = open_sandbox(allow_code_execution=True, python=python, namespaces=namespaces)
    assert opened.run("import sys; print(sys.prefix)").stdout == f"{tmp_path / 'env'}\n"


def test_an_interpreter_that_is_not_there_is_reported():
    with pytest.raises(UserError, match="cannot be set up"):
        open_sandbox(allow_code_execution=True, python="/nowhere/python")
