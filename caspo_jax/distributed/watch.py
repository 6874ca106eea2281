"""The watch that each process keeps over the others, and how a run ends: in good order, or all at once with a reason."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

from caspo_jax.distributed.group import GROUP, PREFIX, barrier, is_writer
from caspo_jax.errors import first_line

BEAT_SECONDS = 2.0  # between two signs of life
SILENT_SECONDS = 30.0  # after which a process without one is taken for dead


def begin() -> None:
    """Watches over the others from now on, until `leave`: at the latest when the interpreter ends."""
    GROUP.watch = threading.Thread(target=_watch, name="processes", daemon=True)
    GROUP.watch.start()
    atexit.register(leave)


def leave() -> None:
    """Ends the watch. It must not outlive JAX's client, whose end it would take for the coordinator's, nor the
    interpreter, which aborts if it stops a thread within a call of the client.
    """
    GROUP.over.set()
    if GROUP.watch is not None:
        GROUP.watch.join(SILENT_SECONDS)


def finish() -> None:
    """Leaves the run in good order, together with the others; a second call does nothing."""
    if GROUP.count == 1 or GROUP.over.is_set():
        return
    barrier("the end")
    leave()
    import jax

    jax.distributed.shutdown()


def fail(message: str) -> NoReturn:
    """Ends this process, with exit code 1, and with it the others if there are any, which name it and its reason."""
    GROUP.over.set()
    if GROUP.count > 1:
        with contextlib.suppress(RuntimeError):
            GROUP.client.key_value_set(f"{PREFIX}/failed/{GROUP.index}", message, allow_overwrite=True)
            time.sleep(2 * BEAT_SECONDS)  # process 0 takes the message with it
    _exit()


def lost(error: Exception) -> NoReturn:
    """Ends this process after a collective operation failed: another process is gone, and the watch finds out which."""
    if GROUP.count > 1:
        time.sleep(SILENT_SECONDS + 3 * BEAT_SECONDS)
    _die(f"an operation over all processes failed ({first_line(error)})")


def _watch() -> None:
    """Gives signs of life and looks for those of the others; the main thread may be waiting for one of them forever."""
    client, index = GROUP.client, GROUP.index
    seen = dict.fromkeys(range(GROUP.count), ("", time.monotonic()))
    beat = 0
    while not GROUP.over.wait(BEAT_SECONDS):
        beat += 1
        try:
            client.key_value_set(f"{PREFIX}/alive/{index}", str(beat), allow_overwrite=True)
            alive = client.key_value_dir_get(f"{PREFIX}/alive")
            failed = client.key_value_dir_get(f"{PREFIX}/failed")
        except RuntimeError:
            if not GROUP.over.is_set():
                _die(f"{GROUP.name(0)}, which coordinates the run, is gone")
            return
        if failed:
            path, message = failed[0]
            _die(f"{GROUP.name(int(path.rpartition('/')[2]))} stopped: {message}")
        now = time.monotonic()
        for path, sign in alive:
            other = int(path.rpartition("/")[2])
            if seen[other][0] != sign:
                seen[other] = (sign, now)
        silent = [i for i, (_, when) in seen.items() if now - when > SILENT_SECONDS and i != index]
        if silent:
            names = ", ".join(GROUP.name(i) for i in silent)
            _die(f"{names} gave no sign of life for {SILENT_SECONDS:.0f} s")


def _die(reason: str) -> NoReturn:
    if not GROUP.over.is_set():
        print(
            f"error: {' '.join(reason.split())}; start all processes again: the run goes on where it was",
            file=sys.stderr,
            flush=True,
        )
    if is_writer() and GROUP.count > 1:
        # The service goes last: without it JAX aborts the processes that still end.
        time.sleep(3 * BEAT_SECONDS)
    _exit()


def _exit() -> NoReturn:
    # Leaving in order would wait for the processes that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
