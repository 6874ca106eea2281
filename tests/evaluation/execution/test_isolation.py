"""Programs that try to get out, in both modes of the sandbox."""

import os
import socket
from pathlib import Path

import pytest

from caspo_jax.errors import UserError
from caspo_jax.evaluation.execution import Limits, open_sandbox
from caspo_jax.evaluation.execution import sandbox as sandbox_module
from tests.evaluation.execution.programs import run


def test_files_outside_cannot_be_written(sandbox, tmp_path):
    inside = tmp_path / "there.txt"
    inside.write_text("before")
    tmp_path.chmod(0o777)
    inside.chmod(0o666)
    source = f"""
        import os
        for path in ({str(inside)!r}, {str(tmp_path / "new.txt")!r}, "/tmp/../usr/new.txt", "/usr/lib/new.txt", "/new.txt"):
            try:
                open(path, "w").write("after")
                print("wrote", path)
            except OSError:
                pass
        for attempt in (lambda: os.remove({str(inside)!r}), lambda: os.chmod({str(inside)!r}, 0),
                        lambda: os.truncate({str(inside)!r}, 0), lambda: os.mkdir({str(tmp_path / "d")!r})):
            try:
                attempt()
                print("changed")
            except OSError:
                pass
    """
    result = run(sandbox, source)
    assert result.status == "ok", result.stderr
    wrote = result.stdout.split()
    assert "changed" not in wrote
    assert inside.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.txt"]
    assert not Path("/usr/new.txt").exists()
    assert not Path("/usr/lib/new.txt").exists()
    assert not Path("/new.txt").exists()


def test_files_outside_cannot_be_read(sandbox, tmp_path):
    isolation = sandbox.run("pass").isolation
    if not {"namespaces", "landlock"} & set(isolation):
        pytest.skip("neither namespaces nor Landlock here: reading is not prevented, as documented")
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    for path in (str(secret), "/etc/passwd", f"/proc/{os.getpid()}/environ", "/proc/self/environ"):
        assert run(sandbox, f"print(open({path!r}).read())").status == "error"


def test_no_sockets(sandbox):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        source = f"""
            import socket
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
                try:
                    socket.socket(family, socket.SOCK_STREAM).connect(("127.0.0.1", {server.getsockname()[1]}))
                    print("connected", family)
                except OSError:
                    pass
            socket.getaddrinfo("example.org", 80)
        """
        result = run(sandbox, source)
    assert result.stdout == ""
    assert result.status == "error"


def test_the_environment_is_not_passed_on(sandbox, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret-token")
    result = run(sandbox, "import os; print(dict(os.environ))")
    assert "secret-token" not in result.stdout
    assert set(eval(result.stdout)) >= {"PATH", "HOME", "PYTHONHASHSEED"}


@pytest.mark.parametrize(
    "source",
    [
        """
        import asyncio, socket
        async def main():
            one, other = socket.socketpair()
            reader, kept = await asyncio.open_connection(sock=one, limit=1 << 22)
            unread, writer = await asyncio.open_connection(sock=other)
            for size in (100_000,) * 20:  # more than the pair holds
                writer.write(b"x" * size)
            writer.write(b"\\nline\\n")
            sent = asyncio.create_task(writer.drain())
            assert len(await reader.readuntil(b"\\n")) == 2_000_001
            found = await asyncio.gather(reader.readline(), asyncio.to_thread(str, 5), asyncio.sleep(0.01, 7), sent)
            assert found == [b"line\\n", "5", 7, None]
        asyncio.run(main())
        """,
        """
        import concurrent.futures, queue
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            assert list(pool.map(abs, [-1, 2])) == [1, 2]
        """,
        """
        import multiprocessing
        for duplex in (True, False):
            end, other = multiprocessing.Pipe(duplex)
            other.send({"a": 1})
            assert end.recv() == {"a": 1}
        """,
        """
        import fcntl, os, signal, socket
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            one, other = socket.socketpair(socket.AF_UNIX, kind)
            one.sendmsg([b"the", b"re"]), other.send(b"back")
            assert other.recv(9) == b"there" and one.recvfrom(9)[0] == b"back"
            one.setblocking(False), os.set_inheritable(one.fileno(), True)
            fcntl.fcntl(one, fcntl.F_SETFL, fcntl.fcntl(one, fcntl.F_GETFL) | os.O_NONBLOCK)
        caught = []
        signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
        os.kill(os.getpid(), signal.SIGALRM), signal.raise_signal(signal.SIGALRM)
        signal.setitimer(signal.ITIMER_REAL, 0.01), signal.pause()
        assert len(caught) == 3
        """,
    ],
    ids=["asyncio", "threads", "pipes", "pairs and signals"],
)
def test_ordinary_programs_run(sandbox, source):
    result = run(sandbox, source, limits=Limits())
    assert (result.status, result.stderr) == ("ok", "")


def test_the_kernel_s_other_doors_are_closed(sandbox):
    source = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        x86 = os.uname().machine == "x86_64"
        calls = {
            "unshare": (272 if x86 else 97, 0x10000000), "ptrace": (101 if x86 else 117, 16, 1),
            "bpf": (321 if x86 else 280, 0, 0, 0), "io_uring": (425, 1, 0), "memfd": (319 if x86 else 279, b"x", 0),
            "mount": (165 if x86 else 40, b"tmpfs", b"/usr", b"tmpfs", 0, 0), "chroot": (161 if x86 else 51, b"/usr"),
            "keyctl": (250 if x86 else 219, 0, 0), "clone3": (435, 0, 0),
        }
        for name, arguments in calls.items():
            ctypes.set_errno(0)
            if libc.syscall(*arguments) >= 0 or ctypes.get_errno() not in (1, 38):
                print(name, ctypes.get_errno())
    """
    if "seccomp" not in sandbox.run("pass").isolation:
        pytest.skip("no system-call filter for this machine")
    result = run(sandbox, source)
    assert (result.status, result.stdout) == ("ok", "")


def test_no_capabilities_are_left(sandbox):
    source = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        print(data[0], data[1], data[3], data[4])  # effective and permitted
    """
    assert run(sandbox, source).stdout == "0 0 0 0\n"


def test_namespaces_that_cannot_be_furnished_are_done_without(monkeypatch):
    whole = sandbox_module._talk

    def talk(request, folder, limits):
        if '"namespaces": true' in request:
            raise UserError("the sandbox cannot be set up on this machine: mount: Operation not permitted")
        return whole(request, folder, limits)

    monkeypatch.setattr(sandbox_module, "_talk", talk)
    opened = open_sandbox(allow_code_execution=True)
    assert "namespaces" not in opened.run("pass").isolation
    assert opened.passes("assert True")
