"""Where each path stands in the automaton of delimiters and stops, and what its newest token means."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from caspo_jax.sampling.automaton import NO_COLUMN, Automaton


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where each path stands in the automaton; a fork copies it as it is."""

    state: jax.Array  # [...] int32, delimiter machine
    stop_state: jax.Array  # [...] int32, stop machine
    position: jax.Array  # [...] int32, bytes emitted so far
    first_column: jax.Array  # [...] int32, column of the open step's first own token, NO_COLUMN: none yet
    first_byte: jax.Array  # [...] int32, byte at which that token starts


class Reading(NamedTuple):
    """What the newest token of each path means."""

    closes: jax.Array  # [...] bool, it completed the delimiter of a step with an own token
    delimiter_byte: jax.Array  # [...] int32, byte at which that delimiter starts; past every byte if none
    pure: jax.Array  # [...] bool, the newest token is pure delimiter
    eos: jax.Array  # [...] bool
    stop: jax.Array  # [...] bool


def cursor_init(shape: tuple[int, ...]) -> Cursor:
    """Paths without a token."""
    zeros = jnp.zeros(shape, jnp.int32)
    return Cursor(zeros, zeros, zeros, jnp.full(shape, NO_COLUMN, jnp.int32), zeros)


def advance(
    automaton: Automaton, cursor: Cursor, token: jax.Array, column: jax.Array
) -> tuple[Cursor, Reading]:
    """Reads one token on every path.

    The cursor that comes back still describes the step that the token closed, if it closed one;
    `next_step` clears it.

    Args:
      automaton: the tables.
      cursor: [...].
      token: [...] int32.
      column: scalar or [B, 1] int32, the token's index in its path.
    """
    kind = automaton.token_class[token]
    length = automaton.length[token]
    extends = automaton.extends[cursor.state, kind]
    close_end = automaton.close_end[cursor.state, kind]
    opens = ~extends & (length > 0) & (cursor.first_column < 0)
    first_column = jnp.where(extends, NO_COLUMN, jnp.where(opens, column, cursor.first_column))
    first_byte = jnp.where(opens, cursor.position, cursor.first_byte)
    delimiter_byte = cursor.position + close_end - automaton.delimiter_length
    complete = close_end > 0
    closes = complete & (first_column >= 0) & (first_byte < delimiter_byte)
    # A delimiter after no own token closes nothing: what came before it belongs to the step before.
    first_column = jnp.where(complete & ~closes, NO_COLUMN, first_column)
    stop_kind = automaton.stop_class[token]
    reading = Reading(
        closes=closes,
        delimiter_byte=jnp.where(closes, delimiter_byte, jnp.iinfo(jnp.int32).max),
        pure=closes & automaton.pure[cursor.state, kind],
        eos=automaton.is_eos[token],
        stop=automaton.stop_hit[cursor.stop_state, stop_kind],
    )
    moved = Cursor(
        state=automaton.next_state[cursor.state, kind],
        stop_state=automaton.stop_next[cursor.stop_state, stop_kind],
        position=cursor.position + length,
        first_column=first_column,
        first_byte=first_byte,
    )
    return moved, reading


def next_step(cursor: Cursor, closed: jax.Array) -> Cursor:
    """The cursor of the step after the one just closed."""
    return dataclasses.replace(cursor, first_column=jnp.where(closed, NO_COLUMN, cursor.first_column))


def counted_mask(
    cursor: Cursor, reading: Reading, byte_start: jax.Array, column: jax.Array, columns: jax.Array
) -> jax.Array:
    """[..., T] bool: the tokens that the confidence of the step that ends at `column` looks at.

    Args:
      cursor: [...], as `advance` left it.
      reading: [...].
      byte_start: [..., T] int32, byte at which the token of each column starts.
      column: scalar or [B, 1] int32, the newest column: indices of tokens in their paths.
      columns: [T] int32, 0 .. T-1.
    """
    column = jnp.asarray(column)[..., None]
    inside = (
        (columns >= cursor.first_column[..., None])
        & (columns <= column)
        & (cursor.first_column >= 0)[..., None]
    )
    before = byte_start < reading.delimiter_byte[..., None]
    return inside & (before | ((columns == column) & ~reading.pure[..., None]))
