"""The steps of a thinking block: paragraphs between `<think>` and `</think>`, as spans of the text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from caspo_jax.errors import UserError
from caspo_jax.steps.segmentation import DEFAULT_DELIMITER, segment_text
from caspo_jax.types import CLOSE_THOUGHT, OPEN_THOUGHT

GIANT = 2000  # characters; a single paragraph longer than this is no step but a trace without steps

_TAG = re.compile(f"{OPEN_THOUGHT}|{CLOSE_THOUGHT}")

Status = Literal["closed", "unclosed", "none"]


class Span(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Thinking:
    """What a text thinks, and what is odd about it."""

    steps: tuple[Span, ...]  # non-empty, in order, without surrounding white space
    blocks: tuple[Span, ...]  # what lies inside the tags; of a whole text without thinking, outside them
    status: Status  # none: no block, or nothing but white space in it
    giant: bool  # all of it is one paragraph of more than `giant` characters

    def texts(self, text: str) -> list[str]:
        """The steps' texts."""
        return [text[start:end] for start, end in self.steps]


@dataclasses.dataclass(frozen=True)
class ThinkingCounts:
    """How many texts a report had to treat in a special way."""

    texts: int
    no_thinking: int
    unclosed: int
    giant: int
    steps: int


def thinking_steps(
    text: str,
    *,
    opened: bool = False,
    whole_text: bool = False,
    delimiter: str = DEFAULT_DELIMITER,
    giant: int = GIANT,
    split_giant: bool = True,
) -> Thinking:
    """Paragraphs inside the thinking blocks of a text.

    A block runs from `<think>` to the next `</think>`, or to the end if it is never closed (a trace cut by its
    length limit). A `</think>` before any `<think>` closes a block that the prompt opened; of a prompt that is known to
    have opened one, the first `</think>` does so, whatever tags the thought names. A paragraph ends at the
    delimiter (the library's one definition of a step) and loses the white space around it.

    Args:
      text: a model's output.
      opened: the prompt ended with `<think>`, so that a text without tags is an unclosed block. A text that begins
          with the tag opens its own.
      whole_text: take the whole text where there is no thinking, but for the tags of empty blocks (Qwen3 writes them
          where thinking is off); its status is still `none`.
      delimiter: what ends a paragraph.
      giant: characters above which a single paragraph counts as giant.
      split_giant: cut a giant paragraph at its line breaks; one without line breaks stays one step.

    Returns:
      Spans with text[start:end] == the step, for every text.

    Raises:
      UserError: an empty delimiter, giant < 1.
    """
    if giant < 1:
        raise UserError(f"giant={giant}: give at least 1 character")
    blocks, closed = _blocks(text, opened)
    blocks = [block for block in blocks if text[block.start : block.end].strip()]
    status: Status = "none" if not blocks else "closed" if closed else "unclosed"
    if not blocks and whole_text:
        blocks = _outside_tags(text)
    steps = [step for block in blocks for step in _paragraphs(text, block, delimiter)]
    is_giant = len(steps) == 1 and steps[0].end - steps[0].start > giant
    if is_giant and split_giant:
        steps = _paragraphs(text, steps[0], "\n")
    return Thinking(tuple(steps), tuple(blocks), status, is_giant)


def count_thinking(found: Iterable[Thinking]) -> ThinkingCounts:
    """The counts of a report: texts, and those without thinking, unclosed, or one giant paragraph; steps."""
    items = list(found)
    return ThinkingCounts(
        texts=len(items),
        no_thinking=sum(item.status == "none" for item in items),
        unclosed=sum(item.status == "unclosed" for item in items),
        giant=sum(item.giant for item in items),
        steps=sum(len(item.steps) for item in items),
    )


def _blocks(text: str, opened: bool) -> tuple[list[Span], bool]:
    """The blocks, and whether the last one is closed."""
    first_open, first_close = text.find(OPEN_THOUGHT), text.find(CLOSE_THOUGHT)
    blocks: list[Span] = []
    position = 0
    # Words before a `<think>` belong to the block that the prompt opened, and the tag with them.
    goes_on = opened and (first_open < 0 or bool(text[:first_open].strip()))
    if first_close >= 0 and (goes_on or first_open < 0 or first_close < first_open):
        blocks.append(Span(0, first_close))
        position = first_close + len(CLOSE_THOUGHT)
    elif goes_on:
        return [Span(0, len(text))], False
    while (start := text.find(OPEN_THOUGHT, position)) >= 0:
        start += len(OPEN_THOUGHT)
        end = text.find(CLOSE_THOUGHT, start)
        if end < 0:
            blocks.append(Span(start, len(text)))
            return blocks, False
        blocks.append(Span(start, end))
        position = end + len(CLOSE_THOUGHT)
    return blocks, True


def _outside_tags(text: str) -> list[Span]:
    """The text in front of, between and behind tags; all of it where there is none."""
    tags = [match.span() for match in _TAG.finditer(text)]
    starts = [0, *(end for _, end in tags)]
    ends = [*(start for start, _ in tags), len(text)]
    return [Span(start, end) for start, end in zip(starts, ends)]


def _paragraphs(text: str, block: Span, delimiter: str) -> list[Span]:
    found = []
    for step in segment_text(text[block.start : block.end], delimiter):
        stripped = step.text.strip()
        if stripped:
            start = block.start + step.start + len(step.text) - len(step.text.lstrip())
            found.append(Span(start, start + len(stripped)))
    return found
