"""Text and token ids to steps, with spans that map onto each other exactly (docs/design.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.sampling.segments import character_spans, segment_bytes
from caspo_jax.types import DEFAULT_DELIMITER, Step


def segment_text(text: str, delimiter: str = DEFAULT_DELIMITER) -> tuple[Step, ...]:
    r"""Steps of a text without tokens: each non-empty span between delimiters; token spans are empty (0, 0).

    Raises:
      UserError: an empty delimiter.

    >>> [step.text for step in segment_text("6 * 7 = 42\n\n\nSo 42.")]
    ['6 * 7 = 42', 'So 42.']
    """
    data = text.encode("utf-8", "replace")  # a lone surrogate, one character, becomes one question mark
    segments = segment_bytes([bytes([b]) for b in range(256)], list(data), delimiter)
    return tuple(
        Step(start=start, end=end, token_start=0, token_end=0, text=text[start:end])
        for start, end in character_spans(data, segments)
    )


def join_bytes(token_ids: Sequence[int], token_bytes: Sequence[bytes]) -> bytes:
    """The bytes that tokens spell. Raises UserError for an id outside the vocabulary, or a tokenizer instead of its bytes."""
    if not hasattr(token_bytes, "__getitem__"):
        raise UserError(
            f"token_bytes is a {type(token_bytes).__name__}: give the bytes of every id, "
            "as caspo_jax.models.token_bytes(tokenizer, vocab_size) lists them"
        )
    if len(token_ids) and not 0 <= min(token_ids) <= max(token_ids) < len(token_bytes):
        index = next(i for i, token in enumerate(token_ids) if not 0 <= token < len(token_bytes))
        raise UserError(
            f"token_ids[{index}] = {token_ids[index]} is outside the vocabulary of {len(token_bytes)} tokens: "
            "give the tokenizer that wrote these ids"
        )
    return b"".join([token_bytes[token] for token in token_ids])


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
    text = data.decode("utf-8", "replace")
    counted = np.zeros(len(token_ids), bool)
    segments = segment_bytes(token_bytes, token_ids, delimiter)
    steps = []
    for segment_, (start, end) in zip(segments, character_spans(data, segments), strict=True):
        first, last = segment_.token_start, segment_.token_end
        counted[first:last] = segment_.counted
        steps.append(Step(start=start, end=end, token_start=first, token_end=last, text=text[start:end]))
    return text, tuple(steps), counted
