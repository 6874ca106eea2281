"""Text and token ids to steps, with spans that map onto each other exactly (DESIGN section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.sampling.segments import segment_bytes
from caspo_jax.types import Step

DEFAULT_DELIMITER = "\n\n"


def decode_with_offsets(data: bytes) -> tuple[str, np.ndarray]:
    """UTF-8 text of `data` and the character that each byte belongs to.

    Each maximal invalid subsequence becomes one U+FFFD, as byte-level tokenizers decode it.

    Args:
        data: N bytes, possibly cut in the middle of a character.

    Returns:
        The text (C characters), and offsets [N + 1] int64: entry b is the index of the character that
        holds byte b; entry N is C.
    """
    pieces: list[str] = []
    invalid: list[tuple[int, int]] = []
    position = 0
    while position < len(data):
        try:
            pieces.append(data[position:].decode())
            break
        except UnicodeDecodeError as error:
            start, end = position + error.start, position + error.end
            pieces += [data[position:start].decode(), "\ufffd"]
            invalid.append((start, end))
            position = end
    text = "".join(pieces)
    starts = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    for start, end in invalid:
        starts[start:end] = False
        starts[start] = True
    offsets = np.append(np.cumsum(starts) - 1, len(text)).astype(np.int64)
    return text, offsets


def segment_text(text: str, delimiter: str = DEFAULT_DELIMITER) -> tuple[Step, ...]:
    """Steps of a text without tokens: each non-empty span between delimiters; token spans are empty (0, 0).

    Raises:
        UserError: an empty delimiter.
    """
    data = text.encode("utf-8", "surrogatepass")
    each_byte = [bytes([b]) for b in range(256)]
    _, char_of = decode_with_offsets(data)
    return tuple(
        Step(start=a, end=b, token_start=0, token_end=0, text=text[a:b])
        for a, b in (
            (int(char_of[s.byte_start]), int(char_of[s.byte_end]))
            for s in segment_bytes(each_byte, list(data), delimiter)
        )
    )


def join_bytes(token_ids: Sequence[int], token_bytes: Sequence[bytes]) -> bytes:
    """The bytes that tokens spell. Raises UserError for an id outside the vocabulary."""
    for index, token in enumerate(token_ids):
        if not 0 <= token < len(token_bytes):
            raise UserError(
                f"token_ids[{index}] = {token} is outside the vocabulary of {len(token_bytes)} tokens: "
                "give the tokenizer that wrote these ids"
            )
    return b"".join(token_bytes[token] for token in token_ids)


def segment(
    token_ids: Sequence[int], token_bytes: Sequence[bytes], delimiter: str = DEFAULT_DELIMITER
) -> tuple[str, tuple[Step, ...], np.ndarray]:
    r"""Steps of emitted tokens.

    A token belongs to the step that holds its first byte, and a step without a token of its own is no
    step. Characters are counted in the decoded bytes: a step's text starts after the delimiter before it,
    even where one token spells that delimiter and the first letters (`.\n\nSo`, which belongs to the step
    that it closes). An incomplete character is one U+FFFD of the step that holds its first byte.

    Args:
        token_ids: T emitted ids, special tokens included.
        token_bytes: for each id of the vocabulary the bytes it spells (`b""` for special tokens).
        delimiter: text that ends a step.

    Returns:
        The text, the steps in order, and counted [T] bool: the tokens of a step confidence (those that are
        not pure delimiter).

    Raises:
        UserError: an id outside the vocabulary, an empty delimiter.
    """
    data = join_bytes(token_ids, token_bytes)
    text, char_of = decode_with_offsets(data)
    counted = np.zeros(len(token_ids), bool)
    steps = []
    for token_start, token_end, mask, byte_start, byte_end in segment_bytes(
        token_bytes, token_ids, delimiter
    ):
        counted[token_start:token_end] = mask
        start, end = int(char_of[byte_start]), int(char_of[byte_end])
        steps.append(
            Step(start=start, end=end, token_start=token_start, token_end=token_end, text=text[start:end])
        )
    return text, tuple(steps), counted
