"""SIGTERM told in a line: by itself it ends a process without a word.

Python runs its handlers between two of its own instructions, and a compiled program can keep it from that for minutes,
longer than a scheduler waits before it kills. So a thread hears of the signal too, and whichever is first ends the process,
at once as the signal would: outputs survive any end. While training takes the signal (`caspo_jax.training.preemption`), or
JAX does for several processes, nothing is heard of it here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import Any


def tell_sigterm(line: str) -> None:
    """From now on SIGTERM ends this process with a line on stderr and exit code 143; not if something else takes it.

    Args:
      line: what is said.
    """
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    said = threading.Lock()

    def end(_number: int, _frame: Any) -> None:
        if said.acquire(blocking=False):
            start = "\n" if sys.stderr.isatty() else ""  # behind a bar of progress
            # Not by sys.stderr, which may be what the signal interrupts.
            with contextlib.suppress(OSError):
                os.write(2, f"{start}{line}\n".encode())
            os._exit(128 + signal.SIGTERM)

    heard, tell = os.pipe()
    os.set_blocking(tell, False)

    def listen() -> None:
        while number := os.read(heard, 1):
            if number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is end:  # still
                end(signal.SIGTERM, None)

    def leave() -> None:
        """A forked child's signals are its own: they must not be heard of here."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        hold(signal.SIG_UNBLOCK)

    def hold(how: int) -> None:
        signal.pthread_sigmask(how, [signal.SIGTERM])

    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, end)
    os.register_at_fork(
        before=lambda: hold(signal.SIG_BLOCK),
        after_in_parent=lambda: hold(signal.SIG_UNBLOCK),
        after_in_child=leave,
    )
    threading.Thread(target=listen, name="sigterm", daemon=True).start()
