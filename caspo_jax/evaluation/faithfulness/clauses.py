"""Which part of a sentence speaks for it: the last contrasted clause, outside conditions; and what it asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from caspo_jax.evaluation.faithfulness.wording import vocabulary

Question = Literal["yes_no", "wh", "tag"]

_CONTRAST = vocabulary("but however although though yet nevertheless nonetheless")
_CONCESSIVE = vocabulary("although though while whereas despite")
# `nothing but the constant` sets nothing against anything.
_NO_CONTRAST_AFTER = {
    "but": vocabulary("nothing everything all anything anyone none nobody anybody everyone last"),
    "though": vocabulary("as"),
    "yet": vocabulary("not"),
}
_LEAD_INS = vocabulary("and but so or even well now also still")
_CONDITIONS = vocabulary("if unless provided whenever")
# `as if`, `even if`, `check if`: what follows is no condition of the sentence.
_NO_CONDITION_AFTER = vocabulary(
    "as see check wonder wondering sure know certain clear tell ask unsure uncertain verify determine decide"
)
_INVERTED = vocabulary("should were had")
_WH = vocabulary("what which who whom whose where when why how")
_TAGS = vocabulary("right correct ok okay no yes yeah true huh")
_AUXILIARIES = vocabulary("is are was were do does did can could will would should has have must")
_MARKS = frozenset((",", ";", ":", "(", ")", "[", "]", "—", "–"))


def governing(tokens: Sequence[str]) -> tuple[int, int]:
    """The tokens [start, end) of the clause that governs: the last one of those set against each other.

    `A, but B` -> B; `A, although B` -> B (what comes last is what the writer leaves standing); `Although A, B` -> B.
    A clause without a word (`It is 5, though.`) governs nothing.
    """
    start, end = 0, len(tokens)
    first = 2 if end > 2 and tokens[1] == "," else 0  # `Clearly, although A, B`
    while first < end and tokens[first] in _LEAD_INS:
        first += 1
    if first < end and tokens[first] in _CONCESSIVE and "," in tokens[first:]:
        comma = tokens.index(",", first)
        if has_word(tokens[comma:end]):
            start = comma + 1
    for i in range(end - 1, start, -1):
        if _contrasts(tokens, i) and has_word(tokens[i + 1 : i + 6]) and has_word(tokens[start:i]):
            return i + 1, end
    return start, end


def _contrasts(tokens: Sequence[str], i: int) -> bool:
    token = tokens[i]
    if token not in _CONTRAST:
        return False
    if token == "yet" and tokens[i - 1] not in _MARKS:
        return False  # `has not arrived yet`
    return tokens[i - 1] not in _NO_CONTRAST_AFTER.get(token, frozenset())


def has_word(tokens: Sequence[str]) -> bool:
    """Is there a word, a number or a formula, and not marks alone?"""
    return any(token[0].isalnum() or token[0] > "\u2fff" for token in tokens)


def conditions(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """The antecedents [start, end): from `if` (or an inverted `should`, `were`, `had`) to the comma or `then`.

    What is possible inside a condition (`if x could be 0`) says nothing about how sure the writer is.
    """
    found = []
    i = 0
    while i < len(tokens):
        opens = tokens[i] in _CONDITIONS and (i == 0 or tokens[i - 1] not in _NO_CONDITION_AFTER)
        if opens or (i == 0 and tokens[0] in _INVERTED and tokens[-1] != "?" and "," in tokens):
            end = i + 1
            while end < len(tokens) and tokens[end] not in (",", "then", ";", ":"):
                end += 1
            found.append((i, end))
            i = end
        else:
            i += 1
    return found


def question(tokens: Sequence[str]) -> Question | None:
    """Which kind of question the sentence is, if it ends with a question mark."""
    last = len(tokens) - 1
    while last >= 0 and tokens[last] in _MARKS:
        last -= 1
    if last < 0 or "?" not in tokens[last]:
        return None
    body = tokens[:last]
    # A tag follows the last comma: `, right?` or `, isn't it?`
    comma = max((i for i, token in enumerate(body) if token == ","), default=-1)
    tail = body[comma + 1 :]
    if comma > 0 and tail and len(tail) <= 4 and _opening(body) not in _AUXILIARIES:
        if len(tail) == 1 and tail[0] in _TAGS:
            return "tag"
        if tail[0] in _AUXILIARIES and len(tail) >= 2 and _opening(body) not in _WH:
            return "tag"
    return "wh" if _WH & set(body[:6]) else "yes_no"


def _opening(tokens: Sequence[str]) -> str:
    """The first word that is no interjection."""
    for token in tokens:
        if (
            token not in _MARKS
            and token not in _LEAD_INS
            and token not in ("hmm", "wait", "ok", "okay", "then")
        ):
            return token
    return ""
