"""One forward pass over given traces: statistics of their tokens, RCC and features of their steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.confidence.chunked import hidden_token_stats
from caspo_jax.confidence.hidden import check_rcc_settings, rcc_batch
from caspo_jax.errors import UserError
from caspo_jax.models.precision import product
from caspo_jax.padding import MOST_TOKENS, multiple, padded_rows, width
from caspo_jax.sharding import mesh_of, to_host

FIELDS = ("entropy", "logprob", "top1_logprob", "mean_top5_logprob")
# Row lengths and numbers of steps are rounded up to multiples of these at least (`padding.width`), so that
# few programs are compiled.
_LENGTH_BUCKET = 64
_STEP_BUCKET = 8
_ROW_BUCKET = 4
_TILES = (16, 32, 64, 128)  # sides of RCC's tiles: the first that holds the longest step


@dataclasses.dataclass(frozen=True)
class StepRow:
    """One trace as the model reads it. Step i is tokens [starts[i], starts[i + 1]) of `token_ids`.

    Tokens before the first step (a `<think>`) count as prompt; tokens after the last belong to no step.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    starts: tuple[int, ...]  # S + 1 ascending, or empty: a trace without steps

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.starts, self.starts[1:])):
            raise UserError(f"starts {self.starts} contain an empty step: remove it")
        if self.starts and not (self.starts[0] >= 0 and self.starts[-1] <= len(self.token_ids)):
            raise UserError(f"starts {self.starts} lie outside the {len(self.token_ids)} token_ids")

    @property
    def steps(self) -> int:
        """S."""
        return max(len(self.starts) - 1, 0)

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def columns(self) -> int:
        """The width of its batch: `length`, rounded up."""
        return width(self.length, _LENGTH_BUCKET)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one trace of R tokens and S steps, on the host."""

    stats: dict[str, np.ndarray]  # TokenStats field -> [R] float32; NaN for a token that no other precedes
    q: np.ndarray  # [S] float32, RCC of the step; NaN where it is undefined
    p: np.ndarray  # [S] float32, its running form
    features: np.ndarray  # [S, 2E] float32: mean state of the step's tokens, state of its last token


def plan_batches(rows: Sequence[StepRow], batch_tokens: int = MOST_TOKENS) -> list[list[int]]:
    """Groups rows of similar length into batches: lists of row indices.

    A batch has at most `batch_tokens` tokens, padding included, but at least one row.
    """
    widths = [row.columns for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (widths[i], rows[i].steps, i))
    batches: list[list[int]] = []
    for i in order:
        if batches and widths[i] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def steps_by_width(rows: Sequence[StepRow]) -> dict[int, int]:
    """Row width -> the most steps of a row of that width. Batches with room for so many share one program."""
    most: dict[int, int] = {}
    for row in rows:
        most[row.columns] = max(most.get(row.columns, 0), row.steps)
    return most


def measure(
    model: Any,
    rows: Sequence[StepRow],
    *,
    rcc: bool = True,
    features: bool = False,
    final_norm: bool = False,
    mu: float = 0.5,
    delta: float = 0.4,
    room: Mapping[int, int] | None = None,
) -> list[Measured]:
    """One batch of traces through the model.

    Args:
      model: a Decoder.
      rows: the batch, of any lengths; `plan_batches` keeps like lengths together.
      rcc: compute q and p (else NaN).
      features: compute the step features (else empty).
      final_norm: take the states of RCC and of the features after the final norm; as published, before.
      mu: RCC's threshold on the attention weights, in [0, 1].
      delta: RCC's weight of the newest step, in [0, 1].
      room: `steps_by_width` of all rows that are to be measured. Without it, the whole program (the model
        too) is compiled anew for every other number of steps.

    Returns:
      One Measured a row, in order. Statistics are of the temperature-1, full-vocabulary distribution, in nats.

    Raises:
      UserError: a row without tokens, an id outside the vocabulary, a row longer than the context, mu or delta
        outside [0, 1].
    """
    check_rcc_settings(mu, delta)
    for i, row in enumerate(rows):
        _check(row, i, model.config)
    arrays, block = _pad(rows, room)
    graphdef, params = nnx.split(model)
    options = (rcc, features, final_norm, block)
    found = to_host(_measure(graphdef, params, *arrays, mu, delta, options))
    return [_unpad(row, i, found) for i, row in enumerate(rows)]


def _check(row: StepRow, index: int, config: Any) -> None:
    ids = (*row.prompt_ids, *row.token_ids)
    if not row.token_ids:
        raise UserError(f"row {index} has no tokens to measure; leave it out")
    bad = next((i for i in ids if not 0 <= i < config.vocab_size), None)
    if bad is not None:
        raise UserError(f"row {index}: token id {bad} is outside the vocabulary of {config.vocab_size}")
    if len(ids) > config.context:
        raise UserError(
            f"row {index}: {len(ids)} tokens exceed the model's context of {config.context} "
            f"(config.json: {config.context_key})"
        )


def _pad(
    rows: Sequence[StepRow], room: Mapping[int, int] | None = None
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """Token ids and mask [B, T], bounds [B, S + 2], and the tile that fits the longest step."""
    length = max(row.columns for row in rows)
    steps = width(max(1, (room or {}).get(length, 0), *(row.steps for row in rows)), _STEP_BUCKET)
    # The smaller of the next power of two and the next multiple of 4. Full batches of one length have one
    # size, and rounded to a power of two they could be half as much work again.
    batch = min(1 << (len(rows) - 1).bit_length(), multiple(len(rows), _ROW_BUCKET))
    token_ids, mask = padded_rows([(*row.prompt_ids, *row.token_ids) for row in rows], length, batch)
    bounds = np.zeros((batch, steps + 2), np.int32)
    longest = 1
    for i, row in enumerate(rows):
        ends = [len(row.prompt_ids) + s for s in row.starts] or [len(row.prompt_ids)]
        bounds[i, 1:] = ends[-1]
        bounds[i, 1 : 1 + len(ends)] = ends
        longest = max([longest, *np.diff(row.starts)]) if row.steps else longest
    block = next((tile for tile in _TILES if tile >= longest), _TILES[-1])
    return (token_ids, mask, bounds), block


@functools.partial(jax.jit, static_argnames=("graphdef", "options"))
def _measure(
    graphdef: Any,
    params: Any,
    token_ids: jax.Array,
    mask: jax.Array,
    bounds: jax.Array,
    mu: jax.Array,
    delta: jax.Array,
    options: tuple[bool, bool, bool, int],
) -> dict[str, jax.Array]:
    rcc, features, final_norm, block = options
    model = nnx.merge(graphdef, params)
    before = model.hidden_states(token_ids, mask=mask, final_norm=False)
    after = model.normed(before)
    # Column t predicts token t + 1; the last column predicts nothing and is cut off below.
    following = jnp.roll(token_ids, -1, axis=1)
    stats = hidden_token_stats(after, model.unembedding(), following, FIELDS, mesh=mesh_of(model))
    out = {name: jnp.roll(getattr(stats, name), 1, axis=1).at[:, 0].set(jnp.nan) for name in FIELDS}
    states = (after if final_norm else before).astype(jnp.float32)
    if rcc:
        top1 = jnp.nan_to_num(jnp.exp(out["top1_logprob"]))
        out["q"], out["p"] = rcc_batch(states, top1, bounds, mu, delta, block=block)
    if features:
        out["features"] = _step_features(states, bounds)
    return out


def _step_features(states: jax.Array, bounds: jax.Array) -> jax.Array:
    """[B, S, 2E]: mean state of each step's tokens, and the state of its last token."""
    start, end = bounds[:, 1:-1], bounds[:, 2:]
    column = jnp.arange(states.shape[1])
    inside = (column >= start[..., None]) & (column < end[..., None])  # [B, S, T]
    total = product("bst,bte->bse", inside.astype(jnp.float32), states)
    mean = total / jnp.maximum(end - start, 1)[..., None]
    last = jnp.take_along_axis(states, jnp.maximum(end - 1, 0)[..., None], axis=1)
    return jnp.concatenate([mean, last], axis=-1)


def _unpad(row: StepRow, i: int, found: dict[str, np.ndarray]) -> Measured:
    span = slice(len(row.prompt_ids), row.length)
    nothing = np.full(row.steps, np.nan, np.float32)
    features = found.get("features")
    return Measured(
        stats={name: np.array(found[name][i, span]) for name in FIELDS},
        q=np.array(found["q"][i, : row.steps]) if "q" in found else nothing,
        p=np.array(found["p"][i, : row.steps]) if "p" in found else nothing,
        features=np.zeros((row.steps, 0), np.float32)
        if features is None
        else np.array(features[i, : row.steps]),
    )
