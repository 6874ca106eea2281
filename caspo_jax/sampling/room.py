"""How many rows a search takes by default: as many as the device's memory has room for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from caspo_jax.sampling.model_decode import prefers_apart
from caspo_jax.sharding import batch_ways, bytes_a_device, mesh_of

# What rows may take of an accelerator's free memory. The rest is for reading prompts, for what the program holds besides,
# and for the allocator's gaps.
SHARE = 0.5
HOST_BYTES = 2 << 30  # the same of a device that does not say how much memory it has: a CPU
LOGITS_COPIES = 4  # float32 arrays of the logits' shape that an iteration may hold
QUEUE_BATCHES = 4  # the most times the units of a batch that a queue holds
MOST_ROWS = 2048
BUSY = 0.6  # the share at work of slots that wait for the longest of their question's outputs


def default_rows(
    model: Any, prompt: int, new_tokens: int, slots: int = 1, split: bool = False, given: int | None = None
) -> tuple[int, bool]:
    """Rows whose keys, values and logits fit beside the parameters, and how those of one prompt go.

    Where they may be trees of their own, each of them holds and reads the whole prompt, and none waits for the others.
    Together they are that many more as have room, of which `BUSY` are at work.

    Args:
      model: a Decoder.
      prompt: tokens of the longest prompt.
      new_tokens: the most that are decoded.
      slots: rows of one prompt.
      split: whether they may be trees of their own.
      given: rows that somebody has settled already.

    Returns:
      The rows, and whether those of one prompt should be trees of their own.
    """
    together = given or _rows(model, prompt, new_tokens, slots, 1 / slots)
    if not split:
        return together, False
    apart = _rows(model, prompt, new_tokens, slots, 1.0)
    return (given or apart, True) if apart >= BUSY * together else (together, False)


def _rows(model: Any, prompt: int, new_tokens: int, slots: int, held: float) -> int:
    """The same, where a row holds so much of its prompt.

    A row also has its own columns, one and a half times while buffers are doubled, and its share of the prompts that wait
    in the queue, twice while parts become one.
    """
    config, mesh = model.config, mesh_of(model)
    tensor = 1 if mesh is None else dict(mesh.shape).get("tensor", 1)
    heads = config.num_kv_heads // (tensor if config.num_kv_heads % tensor == 0 else 1)
    column = 2 * config.num_layers * heads * config.head_dim * jnp.dtype(model.dtype).itemsize
    columns = prompt * (held + 2 * queue_batches(prompt, new_tokens) / slots) + 1.5 * new_tokens
    row = column * columns + 4 * LOGITS_COPIES * config.vocab_size
    rows = int(min(MOST_ROWS, room(model) * batch_ways(mesh) // row))
    # Four numbers to a doubling: what is free is not always the same, and every number of rows is compiled anew.
    step = 1 << max(0, rows.bit_length() - 3)
    return max(1, rows // step * step)


def queue_batches(prompt: int, new_tokens: int) -> int:
    """How many times the units of a batch wait in a queue: fewer where their prompts would take more than the batch."""
    return max(1, min(QUEUE_BATCHES, (prompt + new_tokens) // prompt))


def room(model: Any) -> float:
    """Bytes a device that rows may take."""
    params = nnx.state(model)
    devices = [d for d in jax.tree.leaves(params)[0].devices() if d.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in devices]
    if any(not found or "bytes_limit" not in found for found in stats):
        return HOST_BYTES
    held = bytes_a_device(params)
    if jax.process_count() > 1:  # what all processes find alike: each must come to the same number of rows
        used = [held] * len(stats)
    else:
        used = [found["bytes_in_use"] for found in stats]
    free = min(found["bytes_limit"] - bytes for found, bytes in zip(stats, used, strict=True))
    return SHARE * max(0, free - (held if prefers_apart(params) else 0))
