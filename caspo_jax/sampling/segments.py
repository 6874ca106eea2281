"""Steps of finished token sequences on the host, by the same machine that the loop's tables are made from."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from caspo_jax.sampling.automaton import DelimiterMachine


class Segment(NamedTuple):
    """One step: tokens [token_start, token_end), which of them are counted, and bytes [byte_start, byte_end)."""

    token_start: int
    token_end: int  # delimiter and run included
    counted: np.ndarray  # [token_end - token_start] bool, tokens that the step confidence looks at
    byte_start: int
    byte_end: int  # delimiter excluded


@functools.lru_cache(maxsize=64)
def _machine(delimiter: bytes) -> DelimiterMachine:
    return DelimiterMachine(delimiter)


def segment_bytes(
    token_bytes: Sequence[bytes], token_ids: Sequence[int], delimiter: str | bytes
) -> list[Segment]:
    """Steps of a token sequence with their byte spans (definition: caspo_jax.sampling.automaton).

    Args:
      token_bytes: V byte strings, b"" for special tokens.
      token_ids: T ids.
      delimiter: the step delimiter.
    """
    machine = _machine(delimiter.encode() if isinstance(delimiter, str) else bytes(delimiter))
    n = len(machine.delimiter)
    pieces = [token_bytes[token] for token in token_ids]
    data = b"".join(pieces)
    sizes = np.array([len(piece) for piece in pieces], int)
    ends = np.cumsum(sizes)
    starts = ends - sizes  # byte at which each token starts
    relevant = np.flatnonzero(np.isin(np.frombuffer(data, np.uint8), list(machine.delimiter)))
    # Most tokens hold none of the delimiter's bytes; only the others can do something to an open step.
    touching = np.unique(np.searchsorted(ends, relevant, side="right")).tolist()
    segments: list[
        tuple[int, int, int, int, np.ndarray]
    ] = []  # first own token, token_end, bytes, counted from first
    state = content = column = 0
    first = -1
    while column < len(pieces):
        piece, position = pieces[column], int(starts[column])
        scan = machine.scan(state, piece)
        if scan.extends:
            first = -1
        elif first < 0 and piece:
            first, content_start = column, content
        delimiter_byte = position + scan.close_end - n
        if scan.close_end and first >= 0 and starts[first] < delimiter_byte:
            counted = starts[first : column + 1] < delimiter_byte
            counted[-1] |= not scan.pure
            segments.append((first, column + 1, content_start, delimiter_byte, counted))
            first = -1
        elif scan.close_end:
            first = -1
        if scan.run_end:
            content = position + scan.run_end
        state = scan.state
        column += 1
        if first >= 0 and state == 0:
            after = bisect.bisect_left(touching, column)
            column = touching[after] if after < len(touching) else len(pieces)
    if first >= 0:
        counted = np.ones(len(pieces) - first, bool)
        segments.append((first, len(pieces), content_start, len(data), counted))
    return _attach(segments, len(pieces))


def _attach(segments: list[tuple[int, int, int, int, np.ndarray]], length: int) -> list[Segment]:
    """Gives uncounted tokens between steps to the step before, and those at the start to the first step."""
    out = []
    for i, (first, end, byte_start, byte_end, counted) in enumerate(segments):
        start = first if i else 0
        token_end = segments[i + 1][0] if i + 1 < len(segments) else length
        mask = np.zeros(token_end - start, bool)
        mask[first - start : end - start] = counted
        out.append(Segment(start, token_end, mask, byte_start, byte_end))
    return out


def resume(token_bytes: Sequence[bytes], token_ids: Sequence[int], delimiter: str) -> int:
    """The token from which steps that begin behind `token_ids` can be cut without those before it.

    It is the last one that begins a character and holds none of the delimiter's bytes: it lies in a step, and no delimiter
    reaches over it, so that all steps after its own, and the counted tokens from it on, are those of the whole. 0: none.
    """
    for column in reversed(range(len(token_ids))):
        piece = token_bytes[token_ids[column]]
        if piece and set(piece).isdisjoint(delimiter.encode()) and piece[0] & 0xC0 != 0x80:
            return column
    return 0


def segment_tokens(
    token_bytes: Sequence[bytes], token_ids: Sequence[int], delimiter: str | bytes
) -> list[tuple[int, int, np.ndarray]]:
    """Steps of a token sequence: (token_start, token_end, counted [token_end - token_start] bool).

    `token_end` includes the delimiter. The definition is that of caspo_jax.sampling.automaton.
    """
    return [(s.token_start, s.token_end, s.counted) for s in segment_bytes(token_bytes, token_ids, delimiter)]


def first_stop(
    token_bytes: Sequence[bytes], token_ids: Sequence[int], stops: Sequence[str], begin: int = 0
) -> int | None:
    """How many tokens there are up to the one that completes a stop string, the first such one; None without one.

    For outputs that were not written in one go: the sampler knows only what it wrote itself.

    Args:
      token_bytes: V byte strings, b"" for special tokens.
      token_ids: T ids.
      stops: strings that end a path.
      begin: stop strings that the first `begin` tokens complete are not looked for.
    """
    pieces = [token_bytes[token] for token in token_ids]
    data = b"".join(pieces)
    before = sum(map(len, pieces[:begin]))
    completed = []
    for stop in map(str.encode, stops):
        at = data.find(stop, max(0, before - len(stop) + 1))
        if at >= 0:
            completed.append(at + len(stop))
    return int(np.searchsorted(np.cumsum(list(map(len, pieces))), min(completed))) + 1 if completed else None


def token_text(token_bytes: Sequence[bytes], token_ids: Sequence[int]) -> str:
    """The text of a token sequence, special tokens left out, invalid UTF-8 replaced."""
    return b"".join(token_bytes[token] for token in token_ids).decode("utf-8", "replace")


def character_spans(data: bytes, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Character spans of the segments in `data.decode("utf-8", "replace")`.

    Exact because a step starts and ends beside the bytes of a delimiter, which are whole characters: decoding the
    bytes up to such a place gives a prefix of the decoded text.
    """
    spans, characters, done = [], 0, 0
    for segment in segments:
        marks = []
        for byte in (segment.byte_start, segment.byte_end):
            characters += len(data[done:byte].decode("utf-8", "replace"))
            done = byte
            marks.append(characters)
        spans.append((marks[0], marks[1]))
    return spans
