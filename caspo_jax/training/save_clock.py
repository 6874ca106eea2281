"""When a run that was not told how often to keep its state keeps it nevertheless."""

from __future__ import annotations

import time

import jax

from caspo_jax.training.config import TrainConfig

SAVE_SECONDS = 600.0  # training that a kill costs at most


class SaveClock:
    """Asks for a checkpoint every SAVE_SECONDS where `save_every` is not given.

    Not in several processes: they write a checkpoint together, and no two read the same time off their clocks.
    """

    def __init__(self, config: TrainConfig):
        self._counts = config.save_every is None and jax.process_count() == 1
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether it has been so long since the last checkpoint, or since the start."""
        return self._counts and time.monotonic() - self._since >= SAVE_SECONDS

    def saved(self) -> None:
        """A checkpoint was handed over to be written."""
        self._since = time.monotonic()
