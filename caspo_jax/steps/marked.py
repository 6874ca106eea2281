"""Where a text says its answer: the last box, else what stands behind `Answer:`, `####` or a heading."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator

from caspo_jax.types import CLOSE_THOUGHT

_MARKER = re.compile(  # nothing is given back: a run of blanks or hashes is read once
    r"(?:^[ \t]*+(?:#++|\*\*)[ \t]*+(?:final[ \t]++)?answer[ \t]*+(?:\*\*[ \t]*+)?\n|#{4,}+"
    r"|(?:final\s++)?answer(?:\s+is)?\s*+(?:\*\*\s*+)?:|(?:final\s++)?answer\s++is)\s*+(?:\*\*\s*+)?",
    re.IGNORECASE | re.MULTILINE,
)
_DISPLAYS = ((r"\[", r"\]"), ("$$", "$$"))
_BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)\s*\{")
_SEPARATOR = r",|;|\band\b|\bor\b"
_BRACE = re.compile(r"(?<!\\)[{}]")
# On one line anything that is no word or number; over a line's end a separator too.
_BETWEEN_BOXES = re.compile(
    rf"(?=[^\n]*$|.*(?:{_SEPARATOR}))"
    rf"(?:{_SEPARATOR}|[ \t$&]|\n(?!\n)|\\[()]|\\q?quad|\\[,;!]|\\text\s*\{{|\}})*",
    re.DOTALL,
)


def after_thought(text: str) -> str:
    """What a thinking model says after its last `</think>`; the whole text where it says nothing there."""
    said = text.rpartition(CLOSE_THOUGHT)[2]
    return said if said.strip() else text


def boxed_or_marked(text: str) -> str | None:
    """What `last_boxed` gives, else what `marked_answer` gives; None without either."""
    boxed = last_boxed(text)
    return marked_answer(text) if boxed is None else boxed


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` (`\fbox`, `\framebox`) that is not empty and whose braces balance, or None.

    Boxes that follow each other with nothing but a comma or an "and" between them are one answer: `\boxed{2} and
    \boxed{3}` gives `2, 3`.
    """
    found: list[str] = []
    start_of_last = len(text)
    for start, end, content in reversed(_boxes(text)):
        if found and not _BETWEEN_BOXES.fullmatch(text[end:start_of_last]):
            break
        if not content:
            continue  # the instruction said once more
        if content not in found:
            found.insert(0, content)
        start_of_last = start
    if found:
        return ", ".join(found)
    bare = re.findall(r"\\boxed\s+([^\s{}$]+)", text)
    return bare[-1] if bare else None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every box whose braces balance; one inside another is part of its content."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            closing[opened.pop()] = brace.start()
    found: list[tuple[int, list[tuple[int, int]]]] = []  # end, and what is no content
    for match in _BOX.finditer(text):
        stop = closing.get(match.end() - 1)
        if stop is not None:
            if not found or match.start() >= found[-1][0]:
                found.append((stop + 1, []))
            found[-1][1].extend([match.span(), (stop, stop + 1)])
    return [(cuts[0][0], end, _between(text, sorted(cuts)).strip()) for end, cuts in found]


def _between(text: str, cuts: list[tuple[int, int]]) -> str:
    return "".join(text[a:b] for (_, a), (b, _) in itertools.pairwise(cuts))


def marked_answer(text: str) -> str | None:
    """What follows the last `Answer:`, `the answer is`, `####` or heading that says so, a line or a display block, or None."""
    found = [cleaned for said in _after_markers(text) if (cleaned := _trim(_innermost(said)))]
    return found[-1] if found else None


def _after_markers(text: str) -> Iterator[str]:
    """What follows each marker (`_said_end`). Markers in there are not looked for."""
    places = _Places(text)
    end = 0
    while marker := _MARKER.search(text, end):
        end = _said_end(text, marker.end(), len(text), places)
        yield text[marker.end() : end]


def _said_end(text: str, start: int, stop: int, places: _Places) -> int:
    """Where that ends which a marker before `start` says: with its line, after a display block if one opens there, which may
    run over several.
    """
    end = start
    for opening, closing in _DISPLAYS:
        if text.startswith(opening, start, stop):
            closed = places.next(closing, start + len(opening)) + len(closing)
            end = closed if closed <= stop else start
    return min(places.next("\n", end), stop)


class _Places:
    """Where line ends and closings of displays stand: looked up, for displays that hold markers may be nested by the thousand."""

    def __init__(self, text: str) -> None:
        self._found = {
            piece: [match.start() for match in re.finditer(f"(?={re.escape(piece)})", text)]
            for piece in ("\n", *(closing for _, closing in _DISPLAYS))
        }
        self._none = len(text)

    def next(self, piece: str, start: int) -> int:
        """The first place at `start` or after; the text's length if there is none."""
        places = self._found[piece]
        at = bisect.bisect_left(places, start)
        return places[at] if at < len(places) else self._none


def _innermost(text: str) -> str:
    """After the last marker of a line, without a closing phrase: `The final answer is 5. I hope it is correct.`"""
    places = _Places(text)
    start, stop = 0, len(text)
    while places.next("\n", start) < stop and (marker := _MARKER.search(text, start, stop)):
        start = marker.end()
        stop = _said_end(text, start, stop, places)
    if places.next("\n", start) >= stop:  # at one go: a line may hold nothing but markers
        start = max((marker.end() for marker in _MARKER.finditer(text, start, stop)), default=start)
    return text[start:stop].split("I hope it is correct")[0]


def _trim(text: str) -> str:
    text = re.sub(r"^\*+|(?<!\*)\*+\.?$", "", text.strip()).strip()
    text = re.sub(r"(?s)^\\\((.*)\\\)[.\s]*$|^\\\[(.*)\\\][.\s]*$", lambda m: m.group(1) or m.group(2), text)
    text = re.sub(r"^(?:\$++([^$]++)\$++|\$\$++)[.\s]*$", r"\1", text).strip()
    if text in (r"\(", r"\[", r"\boxed{}"):
        return ""  # cut off after its opening, or nothing boxed
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text
