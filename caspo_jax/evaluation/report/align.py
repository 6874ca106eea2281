"""Tokens on text, exactly: which characters each emitted token spells, in the units that a browser counts."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

CONTINUES = -1  # the token shares characters with the one before it


def utf16_length(text: str) -> int:
    """Length in UTF-16 units: what a browser's strings count, two for a character beyond U+FFFF.

    >>> utf16_length("né"), utf16_length("🤖")
    (2, 2)
    """
    return len(text) + sum(character > "\uffff" for character in text)


def token_lengths(token_ids: Sequence[int], token_bytes: Sequence[bytes]) -> tuple[str, list[int]]:
    """Text of tokens, and how many UTF-16 units of it each token owns.

    A character that several tokens spell together belongs to the first of them: that token owns every unit of the run
    of tokens up to the next whole character, and the others are `CONTINUES`. A special token owns 0. The lengths that
    are not negative add up to the text's.

    Args:
      token_ids: T ids.
      token_bytes: for each id the bytes it spells; an id beyond the list spells nothing (a padded vocabulary).

    Returns:
      The text as `bytes.decode("utf-8", "replace")` gives it, and T lengths.

    >>> token_lengths([0, 1, 2], [b"a", "🤖".encode()[:2], "🤖".encode()[2:]])
    ('a🤖', [1, 2, -1])
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    lengths: list[int] = []
    pieces: list[str] = []
    owner = -1  # index of the token that owns the characters now open; -1: none is open
    for index, token in enumerate(token_ids):
        data = token_bytes[token] if token < len(token_bytes) else b""
        piece = decoder.decode(data)
        pieces.append(piece)
        if owner < 0 or not data:
            lengths.append(utf16_length(piece))
        else:
            lengths.append(CONTINUES)
            lengths[owner] += utf16_length(piece)
        if decoder.getstate()[0]:
            owner = index if owner < 0 else owner
        elif data:
            owner = -1
    rest = decoder.decode(b"", final=True)
    if rest:
        pieces.append(rest)
        lengths[owner] += utf16_length(rest)
    return "".join(pieces), lengths
