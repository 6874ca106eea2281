r"""One spelling of what mathematics is written in many: before math-verify reads it, which takes `9 i` for another i than `9i`."""

from __future__ import annotations

import re

from caspo_jax.steps.numerals import DEGREES

_BLANK = r"(?:\s|~|\\[,;:! ])"
_DEGREES = re.compile(rf"(?:(?<![\s~]){_BLANK}++)?(?:{DEGREES})")
_BEFORE_I = re.compile(rf"(?<=[\d)}}])(?:{_BLANK}|\\(?:cdot|times)(?![a-zA-Z])|[*·])+(?=i(?![a-zA-Z]))")
_SIGN = re.compile(r"(?<=[\w)}])\s*([-+])\s*(?=[A-Za-z](?![A-Za-z]))")  # math-verify takes `+ m` for a unit
_STOP = re.compile(r"(?<=[\w)}\]!$%])\.\s*$")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_ALL_TEXT = re.compile(rf"(?:{_TEXT.pattern}|[\s,;.])*")
_SEPARATOR = re.compile(r"(?:(?<!\s)\s++)?([,;])\s*+")
_OUTER = " \t\r\n\"'“”‘’«»()[]{}!?,;:$*`_."
_UNIT_LIKE = re.compile(r"(?<=[\d)}])(?<!\\circ)(?<!\\circ\})([a-zA-Z])\s*$")
_MACRO_OR_WORD = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]{2,}")


def one_spelling(text: str) -> str:
    r"""The text with `^\circ` for a degree sign, i joined to its factor, tight signs before letters, and no full stop.

    >>> one_spelling(r"\frac{7}{5} + \frac{1}{5} i."), one_spelling("60°"), one_spelling("x - c")
    ('\\frac{7}{5} + \\frac{1}{5}i', '60^\\circ', 'x-c')
    """
    text = _BEFORE_I.sub("", _DEGREES.sub(r"^\\circ", text))
    return _STOP.sub("", _SIGN.sub(r"\1", text))


def as_text(text: str) -> str:
    r"""The text without the `\text{}` that it is written in, for comparing as a text: `October 30` of `\text{October 30}`.

    Its letters stay words: math-verify would read `east` and `seat` as one product.

    >>> as_text(r"\text{A, C}, \text{F}.") == as_text("A,C, F")
    True
    """
    text = _TEXT.sub(r"\1", text) if _ALL_TEXT.fullmatch(text) else text
    return " ".join(_SEPARATOR.sub(r"\1 ", text).split()).casefold().removesuffix(".")


def bare(text: str) -> str:
    r"""A text without case, runs of white space, `\text{}` and outer punctuation; a point before a digit is a decimal's.

    >>> bare(r"\text{Proved!}"), bare('"proved"'), bare("(.5)")
    ('proved', 'proved', '.5')
    """
    text = _TEXT.sub(r"\1", text).rstrip(_OUTER) or text  # what is nothing but punctuation stays
    inner = text.lstrip(_OUTER)
    if inner[:1].isdigit() and text.removesuffix(inner).endswith("."):
        inner = f".{inner}"
    return " ".join((inner or text).split()).casefold()


def lacks_letter(one: str, other: str) -> bool:
    """Whether one ends in a letter right behind its factor (`2s`) that the other has not: math-verify takes it for a unit.

    >>> lacks_letter("2s", "2"), lacks_letter("6m", "6 m"), lacks_letter("5 m", "5")
    (True, False, False)
    """
    for side, against in ((one, other), (other, one)):
        ending = _UNIT_LIKE.search(side)
        if ending and ending[1] not in _MACRO_OR_WORD.sub(" ", against):
            return True
    return False
