"""Sizes of batches and queues."""

from __future__ import annotations

import pytest

from caspo_jax.sampling.units import QueueRoom, Unit, bucket


def test_buckets_are_few_and_waste_at_most_a_fifth():
    sizes = {step << k for k in range(10) for step in (4, 5, 6, 7)} | {1, 2, 3}
    for count in range(1, 3000):
        assert bucket(count) == min(size for size in sizes if size >= count)
        assert bucket(count) <= 1.25 * count


@pytest.mark.parametrize("shared", [1, 2, 3, 5])
@pytest.mark.parametrize(("entries", "size"), [(1, 1), (8, 2), (12, 3), (20, 5)])
def test_a_queue_is_filled_to_the_last_entry_wherever_the_fill_before_ended(entries, size, shared):
    room = QueueRoom.of(entries, size, shared)
    assert room.prompts % room.read == 0
    assert room.read <= size
    units = [Unit((i // shared,), (0, i)) for i in range(3 * entries)]
    for first in range(entries):
        assert room.fill(units[first:]) == units[first : first + entries]


def test_a_queue_takes_no_more_prompts_than_it_has_room_for():
    room = QueueRoom.of(12, 3, 4)
    apart = [Unit((i,), (0, i)) for i in range(12)]
    assert room.fill(apart) == apart[: room.prompts]
    assert room.prompts < 12
