"""The steps of a thinking block on tokens: spans of text and spans of token ids that map onto each other exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from caspo_jax.evaluation.faithfulness.thinking import Thinking, thinking_steps
from caspo_jax.sampling.segments import Segment, character_spans, segment_bytes
from caspo_jax.steps.segmentation import DEFAULT_DELIMITER, join_bytes
from caspo_jax.types import CLOSE_THOUGHT, OPEN_THOUGHT, Step

_TAG = re.compile(rb"</?think>")
_Range = tuple[int, int]


def place_steps(
    token_ids: Sequence[int],
    token_bytes: Sequence[bytes],
    *,
    opened: bool = False,
    whole_text: bool = False,
    delimiter: str = DEFAULT_DELIMITER,
    split_giant: bool = True,
) -> tuple[str, Thinking, tuple[Step, ...], np.ndarray]:
    """`thinking_steps` on emitted tokens.

    The tokens of each block are cut by the library's one definition of a step (`steps.segmentation`): a token belongs
    to the step that holds its first byte. A token that begins in a tag belongs to no step; a step without a token of
    its own, or of white space alone, is no step.

    Args:
      token_ids: T emitted ids.
      token_bytes: for each id of the vocabulary the bytes it spells.
      opened: the prompt ended with `<think>`.
      whole_text: take the whole text where there is no thinking, without the tags of empty blocks.
      delimiter: what ends a paragraph.
      split_giant: cut a giant paragraph at its line breaks.

    Returns:
      The text; what `thinking_steps` says of it; the steps, text[start:end] == step.text without surrounding white
      space, tokens with their delimiter; counted [T] bool, the tokens that a step confidence looks at.

    Raises:
      UserError: an id outside the vocabulary, an empty delimiter.
    """
    data = join_bytes(token_ids, token_bytes)
    text = data.decode("utf-8", "replace")
    found = thinking_steps(
        text, opened=opened, whole_text=whole_text, delimiter=delimiter, split_giant=split_giant
    )
    pieces = [token_bytes[i] for i in token_ids]
    starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
    whole = found.status == "none"
    offsets = _tag_offsets(data)
    ranges = [(offsets[block.start], offsets[block.end]) for block in found.blocks]
    segments = [s for r in ranges for s in _segments(data, pieces, starts, r, delimiter, whole)]
    if found.giant and split_giant:
        segments = [
            s
            for giant in segments
            for s in _segments(data, pieces, starts, (giant.byte_start, giant.byte_end), "\n", False)
        ]
    counted = np.zeros(len(token_ids), bool)
    steps = []
    for segment, (start, end) in zip(segments, character_spans(data, segments), strict=True):
        counted[segment.token_start : segment.token_end] = segment.counted
        body = text[start:end]
        start += len(body) - len(body.lstrip())
        body = body.strip()
        steps.append(Step(start, start + len(body), segment.token_start, segment.token_end, body))
    return text, found, tuple(steps), counted


def _tag_offsets(data: bytes) -> dict[int, int]:
    """Byte offset of every character at which a block can begin or end."""
    places = {0, len(data), *(place for match in _TAG.finditer(data) for place in match.span())}
    return {len(data[:place].decode("utf-8", "replace")): place for place in sorted(places, reverse=True)}


def _segments(
    data: bytes, pieces: Sequence[bytes], starts: np.ndarray, where: _Range, delimiter: str, whole: bool
) -> list[Segment]:
    """Steps of the bytes [begin, end), in tokens and bytes of the whole; those of white space alone left out.

    Of a whole text, the tokens at its beginning and end that spell nothing (EOS) belong to its steps too.
    """
    begin, end = where
    first = int(np.searchsorted(starts[1:], begin, side="right"))
    last = max(first, int(np.searchsorted(starts[:-1], end, side="left")))
    if whole:
        first, last = first if begin else 0, last if end < len(data) else len(pieces)
    inside = [
        piece[max(0, begin - int(at)) : max(0, end - int(at))]
        for piece, at in zip(pieces[first:last], starts[first:last])
    ]
    owned = first + (first < last and int(starts[first]) < begin)  # a token that begins in a tag is not ours
    offset = max(begin, int(starts[first]))
    found = []
    for segment in segment_bytes(inside, range(len(inside)), delimiter):
        token_start = max(first + segment.token_start, owned)
        token_end = first + segment.token_end
        byte_start, byte_end = offset + segment.byte_start, offset + segment.byte_end
        if token_start < token_end and data[byte_start:byte_end].decode("utf-8", "replace").strip():
            counted = segment.counted[token_start - first - segment.token_start :]
            found.append(Segment(token_start, token_end, counted, byte_start, byte_end))
    return found


def token_ids_by_bytes(tokenizer: object, spelled: Sequence[bytes]) -> dict[bytes, int]:
    """What a server says a token spells -> its id: of a special token, which spells nothing, that is its name."""
    found = {data: i for i, data in enumerate(spelled) if data}
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    for name, index in vocabulary.items():
        if index < len(spelled) and not spelled[index]:
            found.setdefault(name.encode("utf-8", "surrogatepass"), index)
    return found


def spelled_tags(tokenizer: object, token_bytes: Sequence[bytes]) -> list[bytes]:
    """`token_bytes` where `<think>` and `</think>` have their text even if the tokenizer calls them special."""
    spelled = list(token_bytes)
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    for tag in (OPEN_THOUGHT, CLOSE_THOUGHT):
        index = vocabulary.get(tag)
        if index is not None and index < len(spelled):
            spelled[index] = tag.encode()
    return spelled
