"""Every explicit arithmetic equality in ordinary text, evaluated exactly with fractions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from fractions import Fraction

from caspo_jax.steps.arithmetic import MOST_DIGITS, Unknown, evaluate
from caspo_jax.steps.lexer import SCALES, Token, lex
from caspo_jax.steps.withdrawn import withdrawn
from caspo_jax.types import Verdict

# Between a unit and a smaller one: `60 + 60 = 2 hours`.
_CONVERSIONS = frozenset(
    {7, 12, 16, 24, 30, 36, 52, 60, 100, 365, 1000, 1440, 1760, 3600, 5280, 10_000, 86_400, 10**6}
)
_LONGEST_REMARK = 100  # tokens up to its first word
# Words after which a number starts an expression; after any other word a bare number may be a name ("Day 3").
_PROSE = frozenset(
    """
    add adds also and are as be because being by calculate compute computing costs do earns equals
    evaluate evaluating finally find finds first gave get gets give gives got had has have he hence i if
    is it leaves let made make makes means needs next now obtain obtains of or she simplifies simplify
    since so spend spends sum that the then therefore they thus to total us using was we when where
    which yields you
    """.split()  # noqa: SIM905
)


@dataclasses.dataclass(frozen=True)
class Equation:
    """One stated equality."""

    left: str
    right: str
    holds: bool


def stated_equations(text: str, *, rounding: bool = True) -> list[Equation]:
    r"""The arithmetic equalities that a text states, each with whether it holds.

    Found: chains `a = b = c` (each neighbouring pair), `+ - * / ^`, x, ×, ·, ÷ and their LaTeX forms, `\frac`,
    roots of perfect squares, brackets, decimals, thousands separators, `%` (also `percent`, `% of`), `2 million` and
    `3 dozen`, currency signs, units that are the same on both sides, mixed numbers, `5!`, and GSM8K's `<<16-3-4=9>>`.
    Left out: what a sentence supposes, asks or denies (`is 2 + 2 = 5?`); whatever holds an unknown symbol, compares units, is
    taken modulo something, or states no operation (`3 = 3`); and what would be false, but may be true of units: with one on
    the left alone (`2 hours - 30 = 90`), or on the right if sides differ by a conversion's factor (`60 + 60 = 2 hours`).

    Where notation has two readings (`50%` for 50, `2\frac{1}{2}` as a product, `1/2(3)`, millions throughout), an
    equality holds if it holds in one.

    Args:
      text: a step of ordinary text.
      rounding: accept a decimal that rounds a value with no finite decimal expansion (10/3 = 3.33).
    """
    found = []
    for part, tokens in enumerate(lex(text)):
        marks = [i for i, token in enumerate(tokens) if token.kind == "="]
        not_meant = withdrawn(tokens, marks, functools.partial(_usable, tokens))
        linked = False  # the left side was compared with the side before it
        for nth, at in enumerate(marks):
            before = marks[nth - 1] + 1 if nth else 0
            after = marks[nth + 1] if nth + 1 < len(marks) else len(tokens)
            left = _left_side(tokens[before:at], whole=nth > 0)
            right = _right_side(tokens[at + 1 : after], whole=nth + 1 < len(marks))
            equation = None
            if left is not None and right is not None and at not in not_meant:
                chained = linked and len(left.tokens) == at - before
                equation = _compare(left, right, rounding, trivial=part > 0 or chained)
            linked = equation is not None
            if equation is not None:
                found.append(equation)
    return found


def check_equations(text: str, *, rounding: bool = True) -> Verdict:
    """Wrong if a stated equality is false, correct if there is one and all hold, unknown if there is none."""
    found = stated_equations(text, rounding=rounding)
    if not found:
        return "unknown"
    return "correct" if all(equation.holds for equation in found) else "wrong"


@dataclasses.dataclass(frozen=True)
class _Side:
    tokens: list[Token]  # without units and scales
    labels: frozenset[str]  # units, singular
    scaled: list[Token] | None  # with `2 million` as 2000000; None where that is not clear
    scales: frozenset[int]

    @property
    def operates(self) -> bool:
        """Whether it states an operation, `3(4)` one too: a bare (signed) number does not."""
        return (
            any(t.kind in ("op", "frac", "sqrt", "%", "!") for t in self.tokens[1:])
            or any(t.kind in ("frac", "sqrt") for t in self.tokens[:1])
            or any(map(_multiplied, self.tokens, self.tokens[1:]))
        )

    def __str__(self) -> str:
        return " ".join(t.text for t in self.scaled or self.tokens)


def _multiplied(one: Token, other: Token) -> bool:
    """Whether a bracket right behind a number or another bracket makes a product of the two."""
    return other.text in ("(", "[") and (one.text in (")", "]") or (one.kind == "num" and not other.spaced))


def _is_label(tokens: list[Token], i: int) -> bool:
    """Whether token i is a unit: one word between a value and an operator, a bracket or the side's end."""
    if tokens[i].kind != "word" or tokens[i].text.lower() in _PROSE:
        return False
    follows_value = i > 0 and (
        tokens[i - 1].kind in ("num", "%", "unit", "scale") or tokens[i - 1].text in (")", "]", "}")
    )
    return follows_value and (
        i + 1 == len(tokens) or tokens[i + 1].kind == "op" or tokens[i + 1].text in (")", "]", "}")
    )


def _split(tokens: list[Token], start: int, stop: int) -> _Side:
    labels = {_singular(tokens[i].text) for i in range(start, stop) if tokens[i].kind in ("word", "unit")}
    here = [t for t in tokens[start:stop] if t.kind not in ("word", "unit")]
    scales = frozenset(SCALES[t.text.lower()] for t in here if t.kind == "scale")
    return _Side([t for t in here if t.kind != "scale"], frozenset(labels), _scaled(here), scales)


def _scaled(tokens: list[Token]) -> list[Token] | None:
    """With every number and the scale behind it as one number; None after `1/2 million`, which is half of one, and after
    a number that is too long to be evaluated.
    """
    found: list[Token] = []
    for token in tokens:
        if token.kind != "scale":
            found.append(token)
            continue
        if len(found) > 1 and (found[-2].kind == "num" or found[-2].text in ("/", "^")):
            return None
        whole, _, part = found[-1].text.replace(",", "").partition(".")
        if len(whole + part) > MOST_DIGITS:
            return None
        digits = str(int(whole + part) * SCALES[token.text.lower()]).rjust(len(part) + 1, "0")
        at = len(digits) - len(part)
        found[-1] = Token("num", f"{digits[:at]}.{digits[at:]}" if part else digits)
    return found


def _singular(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 2 and word.endswith("s") else word


def _usable(tokens: list[Token], i: int) -> bool:
    return tokens[i].kind in ("num", "op", "frac", "sqrt", "%", "!", "(", ")", "unit", "scale") or _is_label(
        tokens, i
    )


def _left_side(tokens: list[Token], whole: bool) -> _Side | None:
    """The longest arithmetic ending of what stands before `=`; None if it may belong to something unknown."""
    start = len(tokens)
    while start > 0 and _usable(tokens, start - 1):
        start -= 1
    start = _drop_open(tokens, start)
    if start == len(tokens):
        return None
    side = _split(tokens, start, len(tokens))
    if not side.tokens:
        return None
    first = side.tokens[0]
    if start == 0:
        return None if whole and first.text in tuple("+*/^") else side
    border = tokens[start - 1]
    if border.kind == "symbol" or first.text in tuple("+*/^") or first.kind in ("%", "!"):
        return None
    prose = border.kind == "stop" or border.kind == "(" or border.text.lower() in _PROSE
    if border.text == ":" and not side.operates:
        return None  # a ratio, or the name of what follows
    if not prose and (first.text == "-" or not side.operates or (side.labels and len(side.tokens) == 1)):
        return None
    return side


def _drop_open(tokens: list[Token], start: int) -> int:
    """Past brackets that open here and close only after the side, as in `(since 3 + 4 = 7)`."""
    if start == len(tokens) or tokens[start].kind != "(":
        return start
    opened: list[int] = []
    closed: set[int] = set()
    for i in range(start, len(tokens)):
        if tokens[i].kind == "(":
            opened.append(i)
        elif tokens[i].kind == ")" and opened:
            closed.add(opened.pop())
    while start < len(tokens) and tokens[start].kind == "(" and start not in closed:
        start += 1
    return start


def _right_side(tokens: list[Token], whole: bool) -> _Side | None:
    """The longest arithmetic beginning of what stands after `=`; None if it may go on with something unknown."""
    stop = 0
    depth = 0
    while stop < len(tokens) and _usable(tokens, stop):
        depth += {"(": 1, ")": -1}.get(tokens[stop].kind, 0)
        if depth < 0 or _is_remark(tokens, stop):
            break  # closes a bracket that opened before the equality
        stop += 1
    if stop and stop < len(tokens) and depth > 0 and tokens[stop - 1].kind == "(":
        if tokens[stop].kind == "symbol":
            return None  # a factor with an unknown, or (mod 5)
        stop -= 1  # a remark in brackets
    if stop == 0:
        return None
    side = _split(tokens, 0, stop)
    if not side.tokens or side.tokens[-1].kind == "op":
        return None
    if stop == len(tokens):
        return side
    border = tokens[stop]
    if border.kind == "symbol" or (depth < 0 and _continues(tokens, stop)):
        return None
    words = itertools.takewhile(lambda token: token.kind == "word", tokens[stop:])
    if any(word.text.lower() == "remainder" for word in words):
        return None  # a quotient alone
    if border.kind == "word":
        label = side.labels or frozenset({_singular(border.text)})
        return dataclasses.replace(side, labels=label)
    return side


def _is_remark(tokens: list[Token], at: int) -> bool:
    """Whether token `at` opens a bracket with words after a value: `= 4 (15 minutes)`."""
    if at == 0 or tokens[at].text != "(" or not tokens[at].spaced or tokens[at - 1].kind == "op":
        return False
    inside = itertools.takewhile(lambda token: token.kind != ")", tokens[at + 1 : at + 1 + _LONGEST_REMARK])
    return any(token.kind in ("word", "unit") for token in inside)


def _continues(tokens: list[Token], closing: int) -> bool:
    return closing + 1 < len(tokens) and tokens[closing + 1].kind in ("op", "(", "num")


def _compare(left: _Side, right: _Side, rounding: bool, trivial: bool) -> Equation | None:
    if not (trivial or left.operates or right.operates):
        return None  # an annotation or a chain states an equality even so
    if left.labels and right.labels and left.labels != right.labels:
        return None
    if len(left.labels) > 1 or len(right.labels) > 1:
        return None
    scales = left.scales | right.scales
    if left.scaled is None or right.scaled is None:
        return None
    readings = [(left, right)] if len(scales) <= 1 else []  # millions throughout, say
    if scales:
        readings.append(
            (dataclasses.replace(left, tokens=left.scaled), dataclasses.replace(right, tokens=right.scaled))
        )
    pairs: list[tuple[Fraction, Fraction]] = []
    for one, other in readings:
        try:
            a, b = evaluate(one.tokens), evaluate(other.tokens)
        except Unknown:
            return None
        if any(x == y for x in a for y in b) or (
            rounding and (any(_rounds(x, other) for x in a) or any(_rounds(y, one) for y in b))
        ):
            return Equation(str(left), str(right), holds=True)
        pairs.extend(itertools.product(a, b))
    if rounding and left.scales != right.scales and any(100 * abs(x - y) <= abs(y) for x, y in pairs):
        return None  # millions are mostly rounded
    converted = right.labels and any(y and x / y in _CONVERSIONS for x, y in pairs)
    if left.labels != right.labels and (left.labels or converted):
        return None
    return Equation(str(left), str(right), holds=False)


def _rounds(value: Fraction, side: _Side) -> bool:
    """Whether the side is one decimal that rounds a value without finite decimal expansion."""
    negative = side.tokens[0].text == "-"
    tokens = side.tokens[1:] if negative else side.tokens
    kinds = [t.kind for t in tokens]
    if kinds not in (["num"], ["num", "%"]) or _terminates(value) or (value < 0) != negative:
        return False
    number = tokens[0].text.replace(",", "")
    digits = len(number.partition(".")[2])
    percent = len(kinds) == 2
    scales = (1, 100) if percent else (1,)
    return (digits > 0 or percent) and any(
        _rounded(abs(value) * scale, Fraction(number), digits) for scale in scales
    )


def _rounded(value: Fraction, number: Fraction, digits: int) -> bool:
    """Rounded to the nearest, or cut off."""
    unit = Fraction(1, 10**digits)
    return 2 * abs(value - number) <= unit or 0 <= value - number < unit


def _terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
