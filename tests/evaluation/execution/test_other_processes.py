"""Programs that reach for other processes: by signals, sockets, locks and the scheduler, in both modes of the sandbox."""

import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from caspo_jax.evaluation.execution import sandbox as sandbox_module
from tests.evaluation.execution.programs import run


def test_others_cannot_be_killed(sandbox):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    source = f"""
        import os, signal
        for pid in ({os.getpid()}, {bystander.pid}, os.getppid(), -1, 0, 1):
            try:
                os.kill(pid, signal.SIGKILL if pid > 0 else 0)
            except OSError:
                pass
        print("still here")
    """
    try:
        run(sandbox, source)
        time.sleep(0.2)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_kernel_signals_nobody_on_its_behalf(sandbox):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    source = f"""
        import fcntl, os, signal, socket, struct
        pid = {bystander.pid}
        ways = dict(
            F_SETOWN=lambda end: fcntl.fcntl(end, 8, pid),
            F_SETOWN_EX=lambda end: fcntl.fcntl(end, 15, struct.pack("ii", 1, pid)),
            FIOSETOWN=lambda end: fcntl.ioctl(end, 0x8901, struct.pack("i", pid)),
            SIOCSPGRP=lambda end: fcntl.ioctl(end, 0x8902, struct.pack("i", pid)),
            F_SETSIG=lambda end: fcntl.fcntl(end, 10, signal.SIGKILL),
            F_NOTIFY=lambda end: fcntl.fcntl(os.open("/usr", os.O_RDONLY), 0x402, 1),
        )
        for own in ways:
            end, other = socket.socketpair()
            for name in (own, "F_SETSIG"):
                try:
                    ways[name](end)
                    print(name)
                except OSError:
                    pass
            fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            other.send(b"x")
    """
    try:
        result = run(sandbox, source)
        assert result.status == "ok", result.stderr
        harmless = {"F_SETSIG", "F_NOTIFY"} if "namespaces" in result.isolation else set()
        assert set(result.stdout.split()) <= harmless
        time.sleep(0.2)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_host_s_unix_sockets_hear_nothing(sandbox, tmp_path):
    names = [str(tmp_path / "s"), f"\0caspo-{os.getpid()}-{time.monotonic_ns()}"]
    servers = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in names]
    try:
        for server, name in zip(servers, names):
            server.bind(name)
        tmp_path.chmod(0o777)
        (tmp_path / "s").chmod(0o777)
        source = f"""
            import ctypes, itertools, socket
            kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
            for kind, name in itertools.product(kinds, {names!r}):
                for attempt in (
                    lambda end, other: end.sendto(b"sendto", name),
                    lambda end, other: end.sendto(b"", name),
                    lambda end, other: end.sendmsg([b"sendmsg"], [], 0, name),
                    lambda end, other: (other.close(), end.sendmsg([b"sendmsg"], [], 0, name)),
                    lambda end, other: (end.connect(name), end.send(b"connect")),
                    lambda end, other: end.bind(name + "2") if name[0] == "/" else end.connect(name),
                ):
                    try:
                        ends = socket.socketpair(socket.AF_UNIX, kind)
                        attempt(*ends)
                        ends[1].setblocking(False)
                        ends[1].recv(9)  # it went to the other end, address or not
                    except BlockingIOError:
                        print("reached", name)
                    except OSError:
                        pass
        """
        result = run(sandbox, source)
        assert (result.status, result.stdout) == ("ok", "")
        for server in servers:
            with pytest.raises(BlockingIOError):
                server.recv(100)
        assert [path.name for path in tmp_path.iterdir()] == ["s"]
    finally:
        for server in servers:
            server.close()


def test_no_say_in_the_scheduling_of_others_and_no_locks(sandbox):
    source = """
        import errno, fcntl, os
        others = 2**30  # nobody: the kernel would say so, if it were asked
        own = os.open(__file__, os.O_RDONLY)
        for attempt in (
            lambda: os.setpriority(os.PRIO_PROCESS, others, 5),
            lambda: os.setpriority(os.PRIO_USER, 0, 5),
            lambda: os.sched_setaffinity(others, {0}),
            lambda: os.sched_setscheduler(others, os.SCHED_OTHER, os.sched_param(0)),
            lambda: os.sched_setparam(others, os.sched_param(0)),
            lambda: fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_RDLCK),
            lambda: fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB),
            lambda: fcntl.lockf(own, fcntl.LOCK_SH | fcntl.LOCK_NB),
        ):
            try:
                attempt()
                print("allowed")
            except OSError as error:
                print(errno.errorcode[error.errno])
        os.sched_setaffinity(0, os.sched_getaffinity(0)), os.nice(0)
    """
    if "namespaces" in sandbox.run("pass").isolation:
        pytest.skip("nobody else is there")
    result = run(sandbox, source)
    assert (result.status, result.stdout.split()) == ("ok", ["EPERM"] * 8), result.stderr


def test_landlock_alone_keeps_signals_in():
    source = f"""
        import os, signal, sys
        sys.path.insert(0, {str(sandbox_module._GUARD)!r})
        import kernel
        if kernel._landlock_version() < 6:
            sys.exit("too old")
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.restrict_reading(["/usr"])
        signal.signal(signal.SIGUSR1, lambda *_: print("own"))
        os.kill(os.getpid(), signal.SIGUSR1)
        try:
            os.kill({os.getpid()}, 0)
        except PermissionError:
            print("kept in")
    """
    result = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=60
    )
    if "too old" in result.stderr:
        pytest.skip("this kernel's Landlock knows no signals")
    assert result.stdout == "own\nkept in\n", result.stderr
