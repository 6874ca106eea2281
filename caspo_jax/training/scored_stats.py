"""Log-probs and entropies of the scored tokens of a batch: how many states and how much of the vocabulary at once.

The loss looks at the tokens of steps alone, so only their states meet the head (`masked_head`): all rows' together on one
device, row by row on a mesh.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from caspo_jax.errors import UserError
from caspo_jax.padding import multiple
from caspo_jax.sharding import constrain, platform_of
from caspo_jax.training.masked_head import SPLIT_HEAD, HeadCut, masked_head

Array = jax.Array

# Logits held at once: on a CPU what its last-level cache holds (8 MiB of float32), on a GPU 512 MiB, elsewhere 128 MiB.
_ELEMENTS = {"cpu": 1 << 21, "gpu": 1 << 27}
_ELSEWHERE = 1 << 25
# Logits that a CPU keeps for the backward pass rather than compute them again, a fifth of the head's products: 256 MiB, or
# twice what the head itself takes (training holds it four times; 12 % off an update of 8 layers of Qwen2.5-0.5B's shape).
_CPU_KEPT = 1 << 26
_CPU_KEPT_HEADS = 2
# The head's gradient is read and written once a chunk, which so many states are worth; a GPU's products are faster. On a CPU
# fewer: the last chunk is padding in part where updates differ (512: 4 % faster where none is, 4 to 15 % slower elsewhere).
_LEAST_CHUNK = {"cpu": 384, "gpu": 2048}
_LEAST_ELSEWHERE = 512
# At most, of each row, on a mesh, unless rows are so few that this would be no such chunk; more on GPUs, whose products are faster.
_MESH_COLUMNS = 32
_GPU_COLUMNS = 128
# Equal parts are multiples of what vector units, or the tiles of matrix units, divide.
_ALIGNED = {"cpu": 32}
_ALIGNED_ELSEWHERE = 128


def scored_stats(
    hidden: Array,
    unembedding: Array,
    targets: Array,
    mask: Array,
    chunk: int | None,
    mesh: Mesh | None,
    *,
    keep: bool = False,
) -> tuple[Array, Array]:
    """Log-prob and entropy (no gradient) of the targets where the mask is True, 0 elsewhere.

    Args:
      hidden: [R, S, E] states that predict the targets.
      unembedding: [V, E].
      targets: [R, S] int32.
      mask: [R, S] bool.
      chunk: states of a row whose logits are held at once; None: by the vocabulary.
      mesh: devices that the arrays are split over; each row's mask must then have its True entries first.
      keep: whether the backward pass may find the logits on one CPU, if they take up to 256 MiB or twice what the head
        takes; without, or above, or with `chunk`, it computes them again.

    Returns:
      Two [R, S] float32, nats.

    Raises:
      UserError: chunk < 1.
    """
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk = {chunk}: give the number of tokens at once, at least 1")
    rows, slots, width = hidden.shape
    vocab = unembedding.shape[0]
    if mesh is not None:
        # The head is split by vocabulary over all devices that share rows, and their states are gathered a chunk at a
        # time: no device ever holds the head, or the head's gradient, whole.
        unembedding = constrain(mesh, unembedding, SPLIT_HEAD, uneven=True)
        size = head_chunk(rows, vocab, slots, chunk, mesh)
        head = _widened(hidden, targets, mask, size, unembedding)
        logprob, entropy = masked_head(*head, HeadCut(size, vocab, mesh))
        return logprob[:, :slots], lax.stop_gradient(entropy[:, :slots])
    platform = jax.default_backend()
    count = rows * slots
    size, block = head_block(count, vocab, None if chunk is None else chunk * rows, platform)
    # All rows as one: a row with few scored tokens then costs no more than these.
    order = jnp.argsort(~mask.reshape(count), stable=True)
    place = jnp.argsort(order)
    ids, scored = (jnp.asarray(x).reshape(count)[order][None] for x in (targets, mask))
    states = _permuted(hidden.reshape(count, width), order, place)[None]
    head = _widened(states, ids, scored, size, unembedding)
    affordable = max(_CPU_KEPT, _CPU_KEPT_HEADS * unembedding.size)
    keep = keep and platform == "cpu" and chunk is None and head[0].shape[1] * vocab <= affordable
    logprob, entropy = masked_head(*head, HeadCut(size, block, keep=keep))
    logprob, entropy = (_permuted(x[0, :count], place, order) for x in (logprob, entropy))
    return logprob.reshape(rows, slots), lax.stop_gradient(entropy).reshape(rows, slots)


def head_block(count: int, vocab: int, chunk: int | None, platform: str) -> tuple[int, int]:
    """On one device: how many of `count` states meet how much of the vocabulary at once; `chunk` states if given."""
    elements = _ELEMENTS.get(platform, _ELSEWHERE)
    if chunk is None:
        chunk = max(_LEAST_CHUNK.get(platform, _LEAST_ELSEWHERE), elements // vocab)
    aligned = _ALIGNED.get(platform, _ALIGNED_ELSEWHERE)
    size = _equal_part(count, chunk, aligned)
    return size, _equal_part(vocab, max(1, elements // size), aligned)


def _equal_part(total: int, most: int, aligned: int) -> int:
    """The size of the fewest equal parts, so that the last is as full as the others; a multiple of `aligned` if it can be."""
    parts = math.ceil(total / most)
    return min(total, most, multiple(math.ceil(total / parts), aligned))


def head_chunk(rows: int, vocab: int, slots: int, chunk: int | None, mesh: Mesh) -> int:
    """On a mesh: columns of step tokens whose logits the devices hold at once, of `slots` in each of so many rows."""
    if chunk is None:
        platform = platform_of(mesh)
        elements, columns = (
            (_ELEMENTS["gpu"], _GPU_COLUMNS) if platform == "gpu" else (_ELSEWHERE, _MESH_COLUMNS)
        )
        least = math.ceil(_LEAST_CHUNK.get(platform, _LEAST_ELSEWHERE) / rows)
        chunk = min(elements * mesh.size // (rows * vocab), max(columns, least))
    return max(1, min(chunk, slots))


def _widened(
    hidden: Array, targets: Array, mask: Array, chunk: int, unembedding: Array
) -> tuple[Array, Array, Array, Array]:
    """The first four arguments of `masked_head`, padded to whole chunks."""
    widen = -hidden.shape[1] % chunk
    hidden, targets, mask = (
        jnp.pad(a, ((0, 0), (0, widen)) + ((0, 0),) * (a.ndim - 2)) for a in (hidden, targets, mask)
    )
    return hidden, unembedding, targets, mask


@jax.custom_vjp
def _permuted(x: Array, order: Array, place: Array) -> Array:
    """x[order]; its gradient is gathered with the inverse permutation, where JAX would scatter it."""
    return x[order]


_permuted.defvjp(lambda x, order, place: (x[order], place), lambda place, g: (g[place], None, None))
