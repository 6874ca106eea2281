"""Equalities that a text does not stand by: it supposes them, asks for them, or denies them in the same sentence."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from caspo_jax.steps.lexer import Token

_SUPPOSING = frozenset(("assume", "assuming", "if", "suppose", "supposing", "unless", "whether"))
_ASKING = frozenset(("are", "can", "could", "did", "do", "does", "is", "was", "would"))
_SURE = frozenset(("correct", "no", "ok", "okay", "right", "true", "yes"))  # `= 4 right?` states it
_NOT_SO = r"true|correct|right|possible|valid|equal|the case"
# After the equality, perhaps behind a unit and a comma.
_DENIED = re.compile(
    rf"""
    [^a-z]* (?:[a-z'’-]+[ ])?? (?:,[ ])? (?:(?:but|and)[ ])? (?:(?:which|that|this|it)[ ])?
    (?:
      (?:is|was|are|would[ ]be|must[ ]be) [ ] (?:clearly[ ]|obviously[ ]|certainly[ ])?
        (?:not[ ](?:{_NOT_SO}) | false | untrue | wrong | incorrect | impossible | absurd | (?:a[ ])?contradict)
    | (?:isn['’]t|wasn['’]t) [ ] (?:{_NOT_SO})
    | (?:does[ ]not|doesn['’]t|cannot|can[ ]not|can['’]t|could[ ]not) [ ] (?:hold|be|work|happen)
    | (?:a[ ])? (?:contradict|impossible|false\b|not[ ](?:{_NOT_SO}))
    )
    """,
    re.VERBOSE,
)


def withdrawn(tokens: Sequence[Token], marks: Sequence[int], in_side: Callable[[int], bool]) -> set[int]:
    """Those `=` whose chain of equalities the text does not stand by.

    Args:
      tokens: of a text.
      marks: where its `=` stand, in order.
      in_side: whether the token at an index may be part of a side.
    """
    found: set[int] = set()
    chain: list[int] = []
    for at, following in zip(marks, [*marks[1:], len(tokens)]):
        chain.append(at)
        if following < len(tokens) and all(map(in_side, range(at + 1, following))):
            continue  # `a = b = c`
        # A word there may be a unit, and may be a denial.
        ends = (i for i in range(at + 1, following) if tokens[i].kind == "word" or not in_side(i))
        end = next(ends, following)
        start = chain[0]
        while start > 0 and in_side(start - 1):
            start -= 1
        if _is_withdrawn(tokens[:start], tokens[end:following]):
            found.update(chain)
        chain = []
    return found


def _is_withdrawn(before: Sequence[Token], after: Sequence[Token]) -> bool:
    """By what stands before the first side of a chain and behind its last."""
    word = before[-1].text.lower() if before else ""
    if word in _SUPPOSING:
        return True
    sentence = list(itertools.takewhile(lambda token: token.text not in (".", ";", "\n", "?"), after))
    asked = len(sentence) < len(after) and after[len(sentence)].text == "?"
    unit = len(sentence) == 1 and sentence[0].kind == "word" and sentence[0].text.lower() not in _SURE
    if asked and (word in _ASKING or unit or not sentence):
        return True
    return _DENIED.match(" ".join(token.text.lower() for token in sentence)) is not None
