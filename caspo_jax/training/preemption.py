"""Notices a request to stop, so that the loop can keep its state before the machine goes away."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax


class StopNotice:
    """Whether this run was asked to stop: by SIGTERM or, where it has several processes, by a notice to any of them.

    A context manager. In one process it holds the handler of SIGTERM; a second SIGTERM ends the process at once. Several
    processes ask JAX's preemption service instead, whose answer becomes true at the same update in all of them. Outside
    the main thread, where Python takes no signals, it notices nothing.
    """

    def __init__(self) -> None:
        self.noticed = False  # by this process's signal, or by all processes when they last asked
        self._asked = 0
        self._before: Any = None
        self._holding = False

    def __enter__(self) -> StopNotice:
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            self._holding = True
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _note(self, *_: object) -> None:
        self.noticed = True
        self._release()

    def _release(self) -> None:
        if self._holding:
            self._holding = False
            # None: a handler that was not installed from Python cannot be put back from here.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def reached(self) -> bool:
        """Whether to stop now; of several processes every one asks, at the same moments."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            self._asked += 1
            self.noticed |= multihost_utils.reached_preemption_sync_point(self._asked)
        return self.noticed
