r"""Equations that are answers themselves: `2x + y = 5` is a line, and no way to write 5, as `x = 5` and `f(1) = 5` are."""

from __future__ import annotations

import re

_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|\\[,;:! ]|[\s$]")
_OTHER_RELATION = re.compile(r"[<>!:]=|\\(?:neq?|leq?|geq?|equiv|approx|implies)(?![a-zA-Z])")
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi"
    r"|chi|psi|omega)(?![a-zA-Z])"
)
_OPERATION = re.compile(r"\\(?:cdot|times|div|[dtc]?frac|sqrt|pm)(?![a-zA-Z])")
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\w)")
_DERIVATIVE = re.compile(r"\\[dt]?frac\{d[^{}]*\}\{d[^{}]*\}|d\^?\d?[a-z]/d[a-z]")
# `f(x)`, `f'(x)`, `f^{-1}(x)`, `P(X > 2)`
_APPLICATION = re.compile(r"[A-Za-z]'*(?:\^\{?-?\d\}?)?\(.*\)")
# Words, and functions that are written as letters; `xyz` is a product.
_WORD = re.compile(
    r"[A-Za-z]{4,}|(?<![A-Za-z])(?:sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd|lcm|det|deg|dim|arg|sup|inf|sum|ans)"
    r"(?![A-Za-z])"
)
_WORKED = re.compile(r"[-+*/^]|[a-z\d)}][a-zA-Z(]|[A-Z)][a-z]")  # an operation, or a product without a sign


def relates_unknowns(text: str) -> bool:
    r"""Whether it is one equation whose left side works with unknowns, small or Greek letters: it states more than its
    right side.

    Not where the left side names what is asked for: a letter, capitals (`AB`), a word, a function of something, a tuple of
    letters, whatever another command of LaTeX makes (`\angle ABC`); nor where it is arithmetic (`2 + 3 = 5`).

    >>> relates_unknowns("2x + y = 5"), relates_unknowns("xy = 12"), relates_unknowns("x_1 = 5")
    (True, True, False)
    """
    if text.count("=") != 1 or _OTHER_RELATION.search(text):
        return False
    left = text.partition("=")[0]
    if _WORD.search(re.sub(r"\\[a-zA-Z]+", " ", left)):
        return False
    if _DERIVATIVE.fullmatch(_SPACING.sub("", left)):
        return False
    left = _SPACING.sub("", _OPERATION.sub("*", _GREEK.sub("g", left)))
    left = _SUBSCRIPT.sub("", left).replace("−", "-")
    if "\\" in left or _APPLICATION.fullmatch(left):
        return False
    return bool(re.search("[a-z]", left)) and bool(_WORKED.search(left))
