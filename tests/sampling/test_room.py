"""How many rows a search takes by default."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from caspo_jax.compile_check.shapes import model_shape
from caspo_jax.models import init_cache
from caspo_jax.sampling import room

GIB = 1 << 30


def taken(model, rows, prompt, new_tokens, slots, holders):
    """Bytes of keys, values and logits, by what the loop holds: its own rows while they grow, prompts here and queued."""

    def cache(rows, columns):
        return jax.eval_shape(lambda: init_cache(model.config, rows, columns, model.dtype))

    def size(*caches):
        return sum(x.size * jnp.dtype(x.dtype).itemsize for cache in caches for x in (cache.k, cache.v))

    waiting = room.queue_batches(prompt, new_tokens)
    own = [cache(rows, new_tokens), cache(rows, new_tokens // 2)]
    prompts = [cache(rows // holders, prompt), cache(2 * waiting * rows // slots, prompt)]
    return size(*own, *prompts) + 4 * room.LOGITS_COPIES * rows * model.config.vocab_size


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("prompt, new_tokens, slots", [(10, 20, 1), (300, 20, 4), (16, 300, 2)])
def test_as_many_rows_as_there_is_room_for(
    model_and_tokenizer, monkeypatch, prompt, new_tokens, slots, split
):
    model, _ = model_and_tokenizer
    monkeypatch.setattr(room, "HOST_BYTES", 1 << 24)
    rows, apart = room.default_rows(model, prompt, new_tokens, slots, split)
    holders = 1 if apart else slots
    assert 8 <= rows < room.MOST_ROWS
    assert taken(model, rows, prompt, new_tokens, slots, holders) <= room.HOST_BYTES
    more = rows + max(slots, 1 << rows.bit_length() - 3)  # the next number
    assert taken(model, more + slots, prompt, new_tokens, slots, holders) > room.HOST_BYTES


def test_one_row_goes_where_there_is_room_for_none(model_and_tokenizer, monkeypatch):
    monkeypatch.setattr(room, "HOST_BYTES", 1)
    assert room.default_rows(model_and_tokenizer[0], 5, 5) == (1, False)
    monkeypatch.setattr(room, "HOST_BYTES", 1 << 50)
    assert room.default_rows(model_and_tokenizer[0], 5, 5) == (room.MOST_ROWS, False)


def test_given_rows_are_trees_of_their_own_where_each_has_room_for_its_prompt(
    model_and_tokenizer, monkeypatch
):
    model, _ = model_and_tokenizer
    monkeypatch.setattr(room, "HOST_BYTES", 1 << 24)
    short, long = (20, 300, 4), (300, 20, 4)
    for of in (short, long):
        rows, apart = room.default_rows(model, *of, split=True)
        assert room.default_rows(model, *of, split=True, given=rows) == (rows, apart) == (rows, of == short)
        assert room.default_rows(model, *of, split=True, given=4) == (4, True)
        assert room.default_rows(model, *of, split=False, given=4) == (4, False)


@dataclasses.dataclass(frozen=True)
class Device:
    limit: int
    used: int
    process_index: int = 0

    def memory_stats(self):
        return {"bytes_limit": self.limit, "bytes_in_use": self.used}


class Mute(Device):
    def memory_stats(self):
        return None


@pytest.fixture
def room_on(monkeypatch):
    """The room for a model with 16 GiB of parameters on such devices, of which this process has those of index 0."""

    def found(*devices, apart=False, processes=1):
        leaf = types.SimpleNamespace(devices=lambda: set(devices))
        with monkeypatch.context() as patch:
            patch.setattr(room.nnx, "state", lambda model: leaf)
            patch.setattr(room, "bytes_a_device", lambda tree: 16 * GIB)
            patch.setattr(room, "prefers_apart", lambda params: apart)
            patch.setattr(jax, "process_count", lambda: processes)
            return room.room(None)

    return found


def test_rows_take_their_share_of_what_is_free_on_the_fullest_device(room_on):
    assert room_on(Device(60 * GIB, 20 * GIB)) == 40 * GIB * room.SHARE
    assert room_on(Device(60 * GIB, 20 * GIB), Device(60 * GIB, 30 * GIB)) == 30 * GIB * room.SHARE
    assert (
        room_on(Device(60 * GIB, 20 * GIB), apart=True) == 24 * GIB * room.SHARE
    )  # the layers' copy comes first
    assert room_on(Device(20 * GIB, 18 * GIB), apart=True) == 0
    assert room_on(Mute(0, 0)) == room.HOST_BYTES


def test_processes_come_to_the_same_room_whatever_else_their_devices_hold(room_on):
    mine, others = Device(60 * GIB, 20 * GIB), Mute(0, 0, process_index=1)
    busy = Device(60 * GIB, 25 * GIB)
    assert room_on(mine, others, processes=2) == room_on(busy, others, processes=2) == 44 * GIB * room.SHARE


def test_no_more_prompts_wait_than_the_batch_has_room_for():
    asked = [(1, 1000), (256, 1024), (512, 512), (512, 511), (4096, 200)]
    assert [room.queue_batches(*of) for of in asked] == [4, 4, 2, 1, 1]


def test_the_rows_of_a_real_model(monkeypatch):
    monkeypatch.setattr(room, "room", lambda model: 30 * GIB)

    def rows(new_tokens, mesh=None, slots=1, split=False, prompt=256):
        model = types.SimpleNamespace(config=model_shape("qwen3-8b"), dtype=jnp.bfloat16, mesh=mesh)
        return room.default_rows(model, prompt, new_tokens, slots, split)

    assert rows(1024) == (56, False)  # 144 KiB a column, 3,840 of them and the logits
    assert rows(16384) == (8, False)
    assert rows(1024, slots=10) == (112, False)  # a prompt is shared: 122
    assert rows(1024, slots=10, split=True) == (96, True)  # 108, and none waits for another
    assert rows(256, slots=10, split=True, prompt=4096) == (128, False)  # 134; each with its own: 41
    assert rows(1024, AbstractMesh((8,), ("fsdp",))) == (448, False)  # 453
    assert rows(1024, AbstractMesh((8,), ("tensor",))) == (384, False)  # heads are split: 440
