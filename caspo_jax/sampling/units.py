"""What is to be grown: one tree's unit, how many fit into a batch or a queue, and how well the slots were used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from caspo_jax.padding import multiple


@dataclasses.dataclass
class Usage:
    """How well the slots were used: a caller's counters, which grow while a call decodes."""

    live: int = 0  # steps of slots that held a live branch: tokens decoded
    slots: int = 0  # steps of all slots


@dataclasses.dataclass(frozen=True)
class Unit:
    """One tree to grow: a prompt, the key of its question, and which child of the root comes first."""

    prompt_ids: tuple[int, ...]
    key: tuple[int, int]  # raw threefry key data
    first_rank: int = 0
    # Of its own, where batches do without a queue; None: those of the knobs.
    threshold: float | None = None
    max_new_tokens: int | None = None  # no more than those of the batch


PADDING = Unit((0,), (0, 0))  # fills up a batch


@dataclasses.dataclass(frozen=True)
class QueueRoom:
    """The sizes of a queue, the same each time that it is filled."""

    entries: int  # units
    prompts: int  # different ones that they may have, a multiple of `read`
    read: int  # prompts that are read together

    @classmethod
    def of(cls, entries: int, size: int, shared: int) -> QueueRoom:
        """For a batch of `size`, where `shared` units in a row have one prompt."""
        # One more than the units fill: the first prompt may be the rest of the fill before.
        prompts = min(entries, math.ceil(entries / shared) + 1)
        read = min(size, prompts)
        return cls(entries, multiple(prompts, read), read)

    def fill(self, units: Sequence[Unit]) -> list[Unit]:
        """The first units, as many as there is room for."""
        taken, prompts = [], set()
        for unit in units[: self.entries]:
            prompts.add(unit.prompt_ids)
            if len(prompts) > self.prompts:
                break
            taken.append(unit)
        return taken


def bucket(count: int) -> int:
    """The next number that is 2^k times 4, 5, 6 or 7: few shapes, at most a fifth of padding."""
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return multiple(count, step)
