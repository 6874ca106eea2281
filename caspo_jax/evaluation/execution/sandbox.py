"""Running Python that a model wrote: only when asked for, in a process of its own, behind what Linux offers.

What holds, in both modes: nothing runs without `allow_code_execution=True`; a fresh interpreter with a fixed
environment; no sockets; limits on CPU time, memory, wall-clock time, file size and output; it dies with its children
when the time is up, and when the host dies.

* With namespaces (root, or a kernel that lets users have them): its own processes, mounts, network and IPC. It sees the
  system's programs and this Python, read-only, and one small folder in memory that goes with it; as many processes as
  the limit says; a user id of its own where the host is root; a system-call filter on top.
* Without (most containers): a stronger system-call filter. No new processes, no signals to others and no say in their
  scheduling, no message to a socket but those of its own pairs (of streams and of ordered packets, not of datagrams), no
  file can be created, changed, locked or removed anywhere; Landlock, where the kernel has it, leaves only the system's
  programs and this Python readable.

Where neither can be had (not Linux; a machine that is neither x86-64 nor 64-bit Arm and has no namespaces), nothing
is run.

What it does not protect from: a hole in the kernel; a program that means to fake its own verdict (test and solution
share an interpreter, as in the benchmarks' own harnesses); side channels and wasted CPU within the limits; memory
beyond the limit of one process times the number of processes; and, without namespaces and without Landlock, reading
what the host's user can read. For code from an adversary rather than from a model, use a virtual machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from caspo_jax.errors import UserError

_GUARD = Path(__file__).with_name("guard")
_GRACE = 10.0  # seconds beyond the wall-clock limit that the guard may take to start and to clear up
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "TMPDIR": "/work",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

Status = Literal["ok", "error", "timeout", "output"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10  # of each process
    memory_bytes: int = 1 << 30  # address space of each process
    processes: int = 8  # and threads; without namespaces one process, whose threads its memory bounds
    file_bytes: int = 16 << 20  # of each file
    folder_bytes: int = 64 << 20  # of all files together
    output_bytes: int = 1 << 20  # standard output and error together

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise UserError(f"Limits.{field.name}={getattr(self, field.name)}: give a positive number")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    # ok: exit code 0; error: another, or a signal; timeout: out of time; output: said too much
    status: Status
    exit_code: int  # minus the signal's number where one ended it
    stdout: str
    stderr: str
    verdict: str  # what the program wrote to file descriptor 3
    seconds: float
    isolation: tuple[str, ...]  # of: namespaces, landlock, user, seccomp


class Sandbox:
    """Runs programs, each alone; get one from `open_sandbox`. Safe to share between threads."""

    def __init__(self, limits: Limits, namespaces: bool, python: str):
        self.limits = limits
        self._namespaces = namespaces
        self._python = python

    def run(self, source: str, *, stdin: str = "", limits: Limits | None = None) -> RunResult:
        """Run a Python program to its end.

        Raises:
          UserError: the sandbox cannot be set up on this machine; says why.
        """
        limits = limits or self.limits
        real = os.path.realpath(self._python)
        prefixes = (
            [sys.prefix, sys.base_prefix] if self._python == sys.executable else _environment(self._python)
        )
        prefixes += [os.path.realpath(p) for p in prefixes] + [os.path.dirname(os.path.dirname(real))]
        request = {
            "host": os.getpid(),
            "program": source,
            "stdin": stdin,
            "python": self._python,
            "prefixes": [p for p in dict.fromkeys(prefixes) if p != "/"],
            "environment": _ENVIRONMENT,
            "namespaces": self._namespaces,
            "limits": dataclasses.asdict(limits),
        }
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="caspo-run-") as folder:
            report, out, error, verdict = _talk(json.dumps(request | {"folder": folder}), folder, limits)
        code = -report["code"] if report["status"] == "signal" else report["code"]
        status: Status = "ok" if code == 0 else "error"
        if report["status"] == "timeout" or code == -signal.SIGXCPU:
            status = "timeout"
        elif report["status"] == "stopped":
            status = "output"
        return RunResult(
            status=status,
            exit_code=code,
            stdout=out.decode(errors="replace"),
            stderr=error.decode(errors="replace"),
            verdict=verdict.decode(errors="replace"),
            seconds=time.monotonic() - started,
            isolation=tuple(report["isolation"]),
        )

    def passes(self, source: str, *, limits: Limits | None = None) -> bool:
        """Does a program (solution and tests) run to its last line, with exit code 0?

        A program that leaves early, by `sys.exit(0)` or `os._exit(0)` say, does not pass: the last line, added here,
        writes a secret to a pipe.
        """
        secret = secrets.token_hex(8)
        result = self.run(f"{source}\n\n__import__('os').write(3, b'{secret}')\n", limits=limits)
        return result.status == "ok" and result.verdict == secret


def open_sandbox(
    *,
    allow_code_execution: bool,
    limits: Limits | None = None,
    namespaces: bool = True,
    python: str = sys.executable,
) -> Sandbox:
    """The one way to a sandbox.

    Args:
      allow_code_execution: the user's explicit word (`--allow_code_execution`).
      limits: what a run may use.
      namespaces: use namespaces where they can be had; off is for trying the other mode.
      python: the interpreter that runs the programs.

    Raises:
      UserError: the word was not given, or a first trivial program shows that this machine has no sandbox.
    """
    if not allow_code_execution:
        raise UserError("this runs code that a model wrote: allow it with --allow_code_execution")
    if sys.platform != "linux":
        raise UserError(f"model-written code is run on Linux only, not on {sys.platform}: score it there")
    limits = limits or Limits()
    if namespaces:
        try:
            return _tried(Sandbox(limits, True, python))
        except UserError:  # some systems grant namespaces in which nothing can be mounted
            pass
    return _tried(Sandbox(limits, False, python))


def _environment(python: str) -> list[str]:
    """The virtual environment that an interpreter belongs to, if it does."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(python)))
    return [folder] if os.path.isfile(os.path.join(folder, "pyvenv.cfg")) else []


def _tried(sandbox: Sandbox) -> Sandbox:
    trial = sandbox.run("print('ready')")
    if trial.stdout != "ready\n":
        raise UserError(
            f"the sandbox runs no program on this machine ({trial.status}: {trial.stderr[-300:]!r})"
        )
    return sandbox


def _talk(request: str, folder: str, limits: Limits) -> tuple[dict, bytes, bytes, bytes]:
    """Start a guard, hand it the request, and gather what it and its program write."""
    verdict_in, verdict_out = os.pipe()
    report_in, report_out = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(verdict_out), str(report_out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(verdict_out, report_out),
            start_new_session=True,
            cwd=folder,
            env={},
        )
    finally:
        os.close(verdict_out)
        os.close(report_out)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        try:
            process.stdin.write(request.encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # the report, or its absence, says what happened
        pipes = (process.stdout.fileno(), process.stderr.fileno(), verdict_in, report_in)
        out, error, verdict, report = _gather(process, pipes, limits)
    finally:
        _finish(process)
        process.stdout.close()
        process.stderr.close()
        os.close(verdict_in)
        os.close(report_in)
    if not report:
        raise UserError(
            f"the sandbox's guard ended without a report: {error.decode(errors='replace')[-500:]}"
        )
    found = json.loads(report)
    if found["status"] == "setup":
        raise UserError(f"the sandbox cannot be set up on this machine: {found['message']}")
    return found, out, error, verdict


def _gather(process: subprocess.Popen[bytes], pipes: tuple[int, ...], limits: Limits) -> list[bytes]:
    """Read all pipes to their ends; a program that says too much, or a guard that hangs, is stopped."""
    texts = {pipe: bytearray() for pipe in pipes}
    deadline = time.monotonic() + limits.wall_seconds + _GRACE
    stopped = False
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            for key, _ in selector.select(left):
                block = os.read(key.fd, 1 << 16)
                if not block:
                    selector.unregister(key.fd)
                elif not stopped or key.fd == pipes[-1]:
                    texts[key.fd] += block
            if not stopped and sum(len(texts[p]) for p in pipes[:-1]) > limits.output_bytes:
                stopped = True
                process.send_signal(signal.SIGTERM)
    return [bytes(text) for text in texts.values()]


def _finish(process: subprocess.Popen[bytes]) -> None:
    """End the guard if it has not ended: first so that it can clear up, then with all that is in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            process.wait(
                timeout=0.0 if process.poll() is not None else 2.0 if number == signal.SIGKILL else 1.0
            )
            return
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
    process.wait()
