"""Notices a request to stop, so that the loop can keep its state before the process goes away."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AT_SIGINT = b"\nstopping once the state is kept; Ctrl-C again ends at once\n"


class StopNotice:
    """Whether this run was asked to stop: by SIGTERM or Ctrl-C or, where it has several processes, by a notice to any of them.

    A context manager. In one process it holds the handlers of SIGTERM and SIGINT; after the first of them a second one does
    what it would without this: SIGTERM ends the process, Ctrl-C raises KeyboardInterrupt. Several processes ask JAX's
    preemption service instead, whose answer becomes true at the same update in all of them; it knows SIGTERM alone, so there
    Ctrl-C is handed on as one. Outside the main thread, where Python takes no signals, it notices nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # this process's, or SIGTERM once all processes agreed
        self._asked = 0
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> StopNotice:
        # JAX's service has its own handler of SIGTERM.
        mine = SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
        if threading.current_thread() is threading.main_thread():
            # Whoever listens there would act on a signal that is taken here.
            self._wakeup = signal.set_wakeup_fd(-1)
            for number in mine:
                # What a shell starts in the background ignores Ctrl-C, and goes on doing so.
                if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _note(self, number: int, *_: object) -> None:
        self._release()
        if jax.process_count() == 1:
            self.signal = signal.Signals(number)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        if number == signal.SIGINT:
            # An update can take minutes. Not by sys.stderr, which may be what the signal interrupts.
            with contextlib.suppress(OSError):
                os.write(2, _AT_SIGINT)

    def _release(self) -> None:
        while self._before:
            number, before = self._before.popitem()
            # None: a handler that was not installed from Python cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        if self._wakeup != -1:
            signal.set_wakeup_fd(self._wakeup)
            self._wakeup = -1

    def reached(self) -> signal.Signals | None:
        """The signal to stop by now, None to go on; of several processes every one asks, at the same moments."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.signal = signal.SIGTERM
        return self.signal
