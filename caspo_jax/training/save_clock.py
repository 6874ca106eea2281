"""When a run that was not told how often to keep its state keeps it nevertheless."""

from __future__ import annotations

import time

import jax
import numpy as np

from caspo_jax.training.config import TrainConfig

SAVE_SECONDS = 600.0  # training that a kill costs at most
_SHARES = 20  # a look at the clock may be late by SAVE_SECONDS / _SHARES


class SaveClock:
    """Asks for a checkpoint every SAVE_SECONDS where `save_every` is not given.

    Several processes write a checkpoint together, and no two read the same time off their clocks: the first one's decides.
    Telling the others makes them wait for the updates under way, so it also says after how many updates to look again.
    """

    def __init__(self, config: TrainConfig, update: int):
        """`update`: the last one that is done."""
        self._counts = config.save_every is None
        self._alone = jax.process_count() == 1
        self.saved(update)

    def saved(self, update: int) -> None:
        """A checkpoint of this update was handed over to be written."""
        self._since, self._update = time.monotonic(), update
        self._look = update + 1  # the update after which the processes ask the first one

    def due(self, update: int, writing: bool) -> bool:
        """Whether to keep the state after this update; of several processes every one asks, at the same updates.

        Args:
          update: the one just done.
          writing: whether the last checkpoint is still being written, so that training would wait for the next one.
        """
        if not self._counts:
            return False
        passed = time.monotonic() - self._since
        up = passed >= SAVE_SECONDS and not writing
        if self._alone:
            return up
        if update < self._look:
            return False
        wait = 0 if up else self._updates_to_wait(passed, update)
        wait = _of_the_first_process(wait)
        self._look = update + wait
        return wait == 0

    def _updates_to_wait(self, passed: float, update: int) -> int:
        """Updates that take half of the time left, as the pace may change."""
        pace = max(passed, 1e-3) / (update - self._update)  # seconds an update
        left = max(SAVE_SECONDS - passed, SAVE_SECONDS / _SHARES)
        return max(1, int(left / pace / 2))


def _of_the_first_process(value: int) -> int:
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(min(value, 2**30))))
