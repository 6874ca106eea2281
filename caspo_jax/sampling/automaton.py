r"""Step delimiters and stop strings found exactly over tokens, as tables for the device.

This is the one definition of a step on tokens (docs/design.md, section 2). Let the path's bytes be numbered 0, 1, ...

* A *delimiter* is an occurrence of the delimiter's n bytes, found left to right without overlap. A *run* extends it:
  more of what the delimiter repeats (`\n` in `\n\n`, `\r\n` in `\r\n\r\n`), else more whole delimiters.
* A token is *own* to the step whose content (not delimiter, not run) holds its first byte. A step closes after the
  token that completes its delimiter, at most one step a token; a step without an own token is no step, and its tokens
  go to the step before it (to the step after it, if there is none before).
* Tokens *counted* in a step's confidence: from its first own token on, those that start before the delimiter, and the
  closing token unless it is pure delimiter. Tokens without bytes (EOS, specials) count in the open step, and belong
  uncounted to the step before when none is open.

A run is known only as far as it has been read, so everything is decided online, the same way on the device and here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caspo_jax.errors import UserError

NO_COLUMN = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Automaton:
    """Transition tables over token classes; tokens that act alike in every state share a class C."""

    token_class: jax.Array  # [V] int32, class in the delimiter tables
    length: jax.Array  # [V] int32, bytes of the token; 0 for special tokens
    next_state: jax.Array  # [S, C] int32
    extends: jax.Array  # [S, C] bool, the token starts inside a run that it lengthens
    close_end: jax.Array  # [S, C] int32, bytes of the token up to the end of its first delimiter; 0: none
    pure: jax.Array  # [S, C] bool, no byte of the token after that end lies outside the run
    delimiter_length: jax.Array  # scalar int32, n
    stop_class: jax.Array  # [V] int32, class in the stop tables
    stop_next: jax.Array  # [Q, D] int32
    stop_hit: jax.Array  # [Q, D] bool, the token completes a stop string
    is_eos: jax.Array  # [V] bool, the token ends a path


class Scan(NamedTuple):
    """What one token does to the delimiter machine."""

    state: int
    extends: bool
    close_end: int
    pure: bool
    run_end: int  # bytes of the token up to the end of the last delimiter or run in it; 0: none


class DelimiterMachine:
    """The delimiter's byte machine.

    States 0..n-1 are inside content with that many bytes of the delimiter matched (KMP); state n + j is inside a run,
    j bytes of its next unit matched.
    """

    def __init__(self, delimiter: str | bytes):
        data = delimiter.encode() if isinstance(delimiter, str) else delimiter
        if not data:
            raise UserError("step_delimiter is empty: give at least one character")
        self.delimiter = data
        self.unit = data[: (data + data).index(data, 1)]  # the shortest text that the delimiter repeats
        self.num_states = len(data) + len(self.unit)
        self._memo: dict[tuple[int, bytes], Scan] = {}
        self._failure = _failure(data)

    def _match(self, matched: int, byte: int) -> int:
        while matched and self.delimiter[matched] != byte:
            matched = self._failure[matched - 1]
        return matched + (self.delimiter[matched] == byte)

    def scan(self, state: int, token: bytes) -> Scan:
        """Reads one token's bytes from `state`."""
        found = self._memo.get((state, token))
        if found is None:
            found = self._memo[state, token] = self._scan(state, token)
        return found

    def _scan(self, state: int, token: bytes) -> Scan:
        n = len(self.delimiter)
        extends, close_end, run_end = False, 0, 0
        leading = state >= n  # no content byte of this token seen yet, and it started inside a run
        content_after_close = False
        for position, byte in enumerate(token, 1):
            if state >= n:
                matched = state - n
                if byte == self.unit[matched]:
                    matched += 1
                    if matched == len(self.unit):
                        matched, run_end = 0, position
                        extends |= leading
                    state = n + matched
                    continue
                state = self._match(matched, byte)
                leading = False
                content_after_close |= close_end > 0
            else:
                state = self._match(state, byte)
                if state == n:
                    run_end = position
                    close_end = close_end or position
        pure = 0 < close_end <= n and run_end == len(token) and not content_after_close
        return Scan(state, extends, close_end, pure, run_end)


def _failure(pattern: bytes) -> list[int]:
    table, matched = [0] * len(pattern), 0
    for i in range(1, len(pattern)):
        while matched and pattern[matched] != pattern[i]:
            matched = table[matched - 1]
        matched += pattern[matched] == pattern[i]
        table[i] = matched
    return table


def _stop_delta(stops: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Aho-Corasick over bytes: next state [Q, 256], and whether a state completes a stop string [Q]."""
    prefixes = sorted(
        {stop[:i] for stop in stops for i in range(len(stop) + 1)} | {b""}, key=lambda p: (len(p), p)
    )
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    delta = np.zeros((len(prefixes), 256), np.int32)
    hit = np.array([any(prefix.endswith(stop) for stop in stops) for prefix in prefixes])
    for prefix, i in index.items():
        for byte in range(256):
            text = prefix + bytes([byte])
            delta[i, byte] = next(index[text[k:]] for k in range(len(text) + 1) if text[k:] in index)
    return delta, hit


def _stop_tables(tokens: Sequence[bytes], stops: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Next state and hit of every token in every state, [Q, V]; byte by byte over all tokens at once."""
    delta, hit = _stop_delta(stops)
    lengths = np.array([len(token) for token in tokens])
    padded = np.zeros((len(tokens), max(1, int(lengths.max(initial=0)))), np.uint8)
    for row, token in zip(padded, tokens):
        row[: len(token)] = np.frombuffer(token, np.uint8)
    states = np.repeat(np.arange(len(delta), dtype=np.int32)[:, None], len(tokens), axis=1)
    hits = np.zeros(states.shape, bool)
    for position in range(padded.shape[1]):
        active = np.flatnonzero(lengths > position)
        states[:, active] = delta[states[:, active], padded[active, position]]
        hits[:, active] |= hit[states[:, active]]
    return states, hits


def _classes(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct columns of [X, V]: the column indices that represent each class, and each token's class."""
    _, first, inverse = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1).astype(np.int32)


def build_automaton(
    token_bytes: Sequence[bytes],
    delimiter: str | bytes,
    stops: Iterable[str | bytes] = (),
    eos_ids: Iterable[int] = (),
) -> Automaton:
    """Tables that find the step delimiter and the stop strings however the tokenizer cuts them.

    Args:
      token_bytes: V byte strings, b"" for special tokens.
      delimiter: the step delimiter, one byte or more.
      stops: strings that end a path.
      eos_ids: token ids that end a path; none if EOS is to be ignored.

    Raises:
      UserError: empty delimiter or stop string, an EOS id outside the vocabulary.
    """
    tokens = tuple(map(bytes, token_bytes))
    encoded = tuple(stop.encode() if isinstance(stop, str) else bytes(stop) for stop in stops)
    if not all(encoded):
        raise UserError("stop holds an empty string: remove it")
    eos = sorted(set(eos_ids))
    if eos and not 0 <= eos[0] <= eos[-1] < len(tokens):
        raise UserError(
            f"EOS id {eos[-1] if eos[0] >= 0 else eos[0]} lies outside the vocabulary of {len(tokens)}"
        )
    data = delimiter.encode() if isinstance(delimiter, str) else bytes(delimiter)
    return _build(tokens, data, encoded, tuple(eos))


@functools.lru_cache(maxsize=16)
def _build(
    tokens: tuple[bytes, ...], delimiter: bytes, stops: tuple[bytes, ...], eos: tuple[int, ...]
) -> Automaton:
    machine = DelimiterMachine(delimiter)
    n, states = len(machine.delimiter), machine.num_states
    table = np.zeros((4, states, len(tokens)), np.int32)  # next_state, extends, close_end, pure
    relevant = set(delimiter)
    columns: dict[bytes | None, np.ndarray] = {}
    for v, token in enumerate(tokens):
        # Two tokens without any of the delimiter's bytes act alike, and most tokens have none.
        key = token if not token or not relevant.isdisjoint(token) else None
        if key not in columns:
            scans = [machine._scan(s, token) for s in range(states)]
            columns[key] = np.array([[s.state, s.extends, s.close_end, s.pure] for s in scans], np.int32).T
        table[:, :, v] = columns[key]
    first, token_class = _classes(table.reshape(4 * states, -1))
    next_state, extends, close_end, pure = table[:, :, first]
    if stops:
        stop_state, stop_hit = _stop_tables(tokens, stops)
        stop_first, stop_class = _classes(np.concatenate([stop_state, stop_hit]))
        stop_state, stop_hit = stop_state[:, stop_first], stop_hit[:, stop_first]
    else:
        stop_state, stop_hit = np.zeros((1, 1), np.int32), np.zeros((1, 1), bool)
        stop_class = np.zeros(len(tokens), np.int32)
    is_eos = np.zeros(len(tokens), bool)
    is_eos[list(eos)] = True
    with jax.ensure_compile_time_eval():
        return Automaton(
            token_class=jnp.asarray(token_class),
            length=jnp.asarray([len(token) for token in tokens], jnp.int32),
            next_state=jnp.asarray(next_state),
            extends=jnp.asarray(extends, bool),
            close_end=jnp.asarray(close_end),
            pure=jnp.asarray(pure, bool),
            delimiter_length=jnp.asarray(n, jnp.int32),
            stop_class=jnp.asarray(stop_class),
            stop_next=jnp.asarray(stop_state),
            stop_hit=jnp.asarray(stop_hit),
            is_eos=jnp.asarray(is_eos),
        )
