r"""Answers: read out of a text, and compared with the gold."""

from __future__ import annotations

import enum
import re

from caspo_jax.errors import UserError
from caspo_jax.steps.integers import read_integer
from caspo_jax.steps.marked import boxed_or_marked
from caspo_jax.steps.numerals import (
    in_base,
    numbers_with_base,
    plain_number,
    surely_differ,
    without_unit,
)
from caspo_jax.steps.relations import relates_unknowns
from caspo_jax.steps.spelling import as_text, bare, lacks_letter, one_spelling
from caspo_jax.types import CLOSE_THOUGHT, Equal, Extract


class AnswerKind(enum.StrEnum):
    """What an answer is, and so how it is read and compared."""

    MATH = "math"  # a mathematical object, compared by math-verify
    INTEGER = "integer"
    LETTER = "letter"  # of a choice, A to J
    YES_NO = "yes_no"  # true/false counts as yes/no
    STRING = "string"  # compared without case, outer punctuation and runs of white space


_STYLED = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
# Nothing is given back: a run of marks is read once.
_LEADING_LETTER = re.compile(r"\W*+(?:(?:option|choice)\s\W*+)?([A-J])[\\*$\s]*+[.):](?!\w)", re.IGNORECASE)
_ARGUED_LETTER = re.compile(  # `C, not A`: what follows is about the letter, and is no second one
    r"\W*+(?:(?:[Oo]ption|[Cc]hoice)\s\W*+)?([A-J])[\\*$\s)]*+(?:[,;]\s++|(?<=\s))(?:and\s++)?"
    r"(?:not|because|since|as|rather|which)\b"
)
_ARTICLE = re.compile(r"\W*A\s+(?!(?:is|because|since|as)\b)[a-z]")  # `A pear floats.`
_LEADING_YES_NO = re.compile(r"\W*(yes|no|true|false)\b(?!\s*(?:or\b|/))", re.IGNORECASE)
_YES = frozenset({"yes", "true"})
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d{1,3})(?![\w.])")  # `4.5e33`


def extract_answer(text: str, kind: AnswerKind | str = AnswerKind.MATH) -> str | None:
    r"""The final answer that a text gives.

    The last balanced `\boxed{}`, else what follows the last `Answer: X` or `#### X`. Letters, yes/no and
    integers are then read out of that, or, where nothing marks an answer, out of the last line. Of a thinking model
    what follows `</think>` is read, and what the thought marks only where that gives none.

    Returns:
      The answer (a letter in upper case, `yes`/`no`, an integer's digits), or None.

    >>> extract_answer(r"So it is \boxed{\frac{1}{2}}."), extract_answer("The answer is (b).", "letter")
    ('\\frac{1}{2}', 'B')
    """
    kind = answer_kind(kind)
    thought, _, said = text.rpartition(CLOSE_THOUGHT)
    found = boxed_or_marked(said)
    if kind in (AnswerKind.MATH, AnswerKind.STRING):
        return found or boxed_or_marked(thought)
    lines = said.strip().splitlines()
    answer = _read(found or (lines[-1] if lines else ""), kind, marked=bool(found))
    return answer or _read(boxed_or_marked(thought) or "", kind, marked=True)


def _read(text: str, kind: AnswerKind, marked: bool) -> str | None:
    """A letter, yes/no or an integer, out of what is marked as the answer or out of a line."""
    if kind is AnswerKind.INTEGER:
        return read_integer(text)
    return (_letter if kind is AnswerKind.LETTER else _yes_no)(text, marked=marked)


def answer_kind(kind: AnswerKind | str) -> AnswerKind:
    """The kind by its name. Raises UserError for another name."""
    try:
        return AnswerKind(kind)
    except ValueError:
        raise UserError(f"unknown answer kind {kind!r}: choose from {', '.join(AnswerKind)}") from None


def _letter(text: str, marked: bool = True) -> str | None:
    """The letter that opens what is marked as the answer (`E. Vitamin C`), else the last one that stands alone."""
    text = _STYLED.sub(r"\1", text)
    leading = re.fullmatch(r"\W*([A-Ja-j])\W*", text)
    if leading is None and marked:
        leading = _LEADING_LETTER.match(text) or _ARGUED_LETTER.match(text)
    if leading:
        return leading.group(1).upper()
    found = re.findall(r"\(([A-J])\)", text) or re.findall(r"(?<![\w'’])([A-J])(?![\w'’])(?!\s+[a-z])", text)
    found = found or re.findall(r"\b(?:[Oo]ption|[Cc]hoice)\s+([A-J])\b", text)  # `so option B is right`
    if found:
        return found[-1]
    first = re.match(r"\W*(?!I\s+(?!is\b)[a-z])([A-J])\b(?!['’])", text)  # not `I think so`, `I'm done`
    if first is None or (not marked and _ARTICLE.match(text)):
        return None
    return first.group(1)


def _yes_no(text: str, marked: bool = True) -> str | None:
    """The word that opens what is marked as the answer (`No, that is not true`), else the last one."""
    text = _STYLED.sub(r"\1", text)
    leading = _LEADING_YES_NO.match(text) if marked else None
    if leading:
        return "yes" if leading.group(1).lower() in _YES else "no"
    found = re.findall(r"(\bnot\s+|n['’]t\s+)?\b(yes|no|true|false)\b", text, re.IGNORECASE)
    return None if not found else ("yes" if (found[-1][1].lower() in _YES) != bool(found[-1][0]) else "no")


def equivalent(gold: str, answer: str, kind: AnswerKind | str = AnswerKind.MATH) -> bool:
    r"""Whether an answer is the gold one.

    The order of the two matters where one is an equation: `2 + 3 = 5` answers `5`, and `5` does not answer `2x + y = 5`,
    nor `3` `x + y = 3`; it does answer what names a quantity: `x = 5`, `f(1) = 5`, `AB = 5`.

    Equal strings and equal plain numbers are decided here; other mathematics by math-verify in a process of its
    own, so that its time limit holds in any thread. What meets the limit counts as different.

    >>> equivalent("0.5", r"\frac{1}{2}"), equivalent("1,000", "1000", "integer"), equivalent("2", "3")
    (True, True, False)
    """
    kind = answer_kind(kind)
    if kind is AnswerKind.LETTER:
        return _letter(gold) is not None and _letter(gold) == _letter(answer)
    if kind is AnswerKind.YES_NO:
        return _yes_no(gold) is not None and _yes_no(gold) == _yes_no(answer)
    if _plain(gold) == _plain(answer):
        return True
    if kind is AnswerKind.STRING:
        return bare(gold) == bare(answer)
    gold, answer = without_unit(gold), without_unit(answer)
    a, b = plain_number(gold), plain_number(answer)
    if a is not None and a == b:
        return True
    if kind is AnswerKind.INTEGER or surely_differ(gold, a, answer, b):
        return False
    if "=" not in answer and relates_unknowns(gold):
        return False  # math-verify takes the left side of `x + y = 3` for a name
    based = in_base(gold), in_base(answer)
    if None not in based:
        return based[0] == based[1]  # math-verify ignores the base
    one, other = numbers_with_base(gold), numbers_with_base(answer)
    if not (one <= other or other <= one):
        return False
    from caspo_jax.steps.grading import MOST_CHARACTERS, math_equivalent

    if max(len(gold), len(answer)) > MOST_CHARACTERS:
        return False
    gold, answer = one_spelling(gold), one_spelling(answer)
    if gold == answer or as_text(gold) == as_text(answer):
        return True
    if lacks_letter(gold, answer):
        return False
    return math_equivalent(*(_SCIENTIFIC.sub(r"\1 \\times 10^{\2}", side) for side in (gold, answer)))


def is_right(
    gold: str, text: str, kind: AnswerKind | str, extract: Extract | None = None, equal: Equal | None = None
) -> bool | None:
    """Whether the answer that a text gives is the gold one; None where it gives none.

    Args:
      gold: the right answer.
      text: a solution.
      kind: how answers are read and compared, by `extract_answer` and `equivalent`.
      extract: reads them in another way.
      equal: compares them in another way.
    """
    answer = extract(text) if extract else extract_answer(text, kind)
    if answer is None:
        return None
    return equal(gold, answer) if equal else equivalent(gold, answer, kind)


def _plain(text: str) -> str:
    # A point before a digit is a decimal's.
    text = re.sub(r"^(?:\$|\.(?!\d))+", "", text.strip().rstrip("$."))
    return " ".join(text.split()).casefold()
