"""The integer that a text gives as its answer, and none where its numbers belong to a formula or a list."""

from __future__ import annotations

import re

from caspo_jax.steps.numerals import DEGREES, plain_number

_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!])\s*(?=\d{3}(?!\d))")
_DEGREES_OR_POWER = re.compile(rf"{DEGREES}|(?<=[A-Za-z}}])\s*\^\s*\{{?\d\}}?")  # `90^\circ`, `cm^2`
# What begins as a number; it is none without its group. Then none of its digits begins one, and they are not read again.
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d++(?:,\d++)*+(?:\.\d++)?+((?!\w|[.,]\d))?+")
_STYLE = re.compile(
    r"\*\*|__|`|\$|\\[()\[\],;:! ]|~|\\q?quad(?![a-zA-Z])|\\(?:left|right|displaystyle)(?![a-zA-Z])"
)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|boldsymbol)\s*\{([^{}]*)\}")
_BETWEEN = re.compile(r"(?:[\s,;&{}]|\\text|and|or)+")  # two numbers of a list
# Commands that set what follows apart, as `=` does.
_LEADS_TO = r"approx|implies|therefore|Rightarrow|to(?![a-zA-Z])"
_LED_TO = re.compile(rf"\\(?:{_LEADS_TO})\s*$")
# What stands before a number that is part of a formula: an operation, a relation, a command, a letter, a number.
_FORMULA_BEFORE = re.compile(
    r"[+*/^×·÷<>≤≥_!]\s*$|(?<![A-Za-z])mod\s*$|(?:^|[^A-Za-z\s]|(?<![A-Za-z])[A-Za-z])\s*[-−–]\s*$|\d:$|[\])}]\s*$"
    rf"|\\(?!{_LEADS_TO})[A-Za-z]+\s*$"
    r"|(?<![A-Za-z\\'’])(?![aI]\s)[A-Za-z]\s*$|\d\s*$"
)
_FORMULA_AFTER = re.compile(
    r"\s*(?:[+*/^×·÷_]|[-−–](?!\s*[A-Za-z]{2})|\\[A-Za-z]+)|[(\[{]|\s+[(\[{](?![A-Za-z]{2})"
)
_MOST_BRACKETS = 50  # around a number: each is looked for in the whole text before it
_WORD_BEFORE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}:?\s*$")


def read_integer(text: str) -> str | None:
    r"""The whole text as a number, else the last number in it; None where that is no integer or part of something else.

    Part of something else: beside an operation, a `!`, a bracket or a letter, or the last of a list. `=` and words before a
    number set it apart from what precedes.

    >>> read_integer("2 + 3 = 5"), read_integer("18 dollars"), read_integer("n + 1"), read_integer("1, 2, 3")
    ('5', '18', None, None)
    """
    text = _DEGREES_OR_POWER.sub(" ", _THOUSANDS.sub(",", text.replace("\\$", "")))
    value = plain_number(text)
    if value is None:
        text = _TEXT.sub(r" \1 ", _STYLE.sub(" ", text))
        found = [number for number in _NUMBER.finditer(text) if number[1] is not None]
        if not found or _is_part(text, found[-1]) or _ends_list(text, found):
            return None
        value = plain_number(found[-1].group())
    return str(value) if value is not None and value.denominator == 1 else None


def _is_part(text: str, number: re.Match[str]) -> bool:
    before, after = text[: number.start()], text[number.end() :]
    for _ in range(_MOST_BRACKETS):
        pair = re.search(r"(.?)\s?([(\[{]|\\\{)\s*$", before)
        if pair is None:
            break
        closing = re.match(r"\s*(?:[)\]]|\\?\})", after)
        applied = re.match(r"[\w)}\]]", pair[1]) and not _WORD_BEFORE.search(before[: pair.start(2)])
        if closing is None or applied:
            return True  # `(7 + x)`, `f(7)`, `\binom{10}{3}`
        before, after = before[: pair.start(2)], after[closing.end() :]
    else:
        return True
    negated = _WORD_BEFORE.search(before) or _LED_TO.search(before)
    if number.group()[0] in "-−" and re.search(r"[\w)}\]!]\s*$", before) and not negated:
        return True  # `n -1`
    if after.startswith("!") and not _WORD_BEFORE.search(before):
        return True
    return bool(_FORMULA_BEFORE.search(before) or _FORMULA_AFTER.match(after))


def _ends_list(text: str, found: list[re.Match[str]]) -> bool:
    return len(found) > 1 and bool(_BETWEEN.fullmatch(text[found[-2].end() : found[-1].start()]))
