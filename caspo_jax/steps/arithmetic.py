"""Exact values of arithmetic token lists: a recursive-descent parser over fractions."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from caspo_jax.steps.lexer import Token

MOST_DIGITS = 400  # of a number
_MOST_READINGS = 16
_MOST_BITS = 4096
_MOST_DEPTH = 40
Values = frozenset[Fraction]


class Unknown(Exception):
    """The tokens are no arithmetic expression, or one that is not evaluated."""


def evaluate(tokens: Sequence[Token]) -> Values:
    r"""The value of an expression under each of its readings.

    Grammar: `sum = term (('+'|'-') term)*`, `term = factor (('*'|'/') factor | bracket)*`,
    `factor = ('-'|'+')* power`, `power = postfix ['^' factor]`, `postfix = primary ('%' | '!')*`. A percentage is a
    hundredth or, loosely written, the number itself; added to a value it may also be a share of that value.

    Raises:
      Unknown: not an expression, a division by zero, a root of no square, numbers beyond 4,096 bits.
    """
    parser = _Parser(tokens)
    values = parser.sum()
    rest = parser.peek()
    if rest is not None:
        raise Unknown(f"{rest.text!r} does not continue an expression")
    return values


class _Parser:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens: list[Token] = list(tokens)
        self.position = self.depth = 0

    def peek(self, ahead: int = 0) -> Token | None:
        at = self.position + ahead
        return self.tokens[at] if at < len(self.tokens) else None

    def take(self) -> Token:
        token = self.peek()
        if token is None:
            raise Unknown("ends too early")
        self.position += 1
        return token

    def accept(self, *texts: str) -> str | None:
        token = self.peek()
        if token is not None and token.kind == "op" and token.text in texts:
            self.position += 1
            return token.text
        return None

    def enter(self) -> None:
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise Unknown("nested too deep")

    def sum(self) -> Values:
        values, _ = self.term()
        while sign := self.accept("+", "-"):
            other, percent = self.term()
            if sign == "-":
                other = _negated(other)
                percent = None if percent is None else _negated(percent)
            combined = set(_combine(operator.add, values, other))
            if percent is not None:  # 100 + 10% = 110
                combined |= set(_combine(lambda a, b: a * (1 + b), values, percent))
            values = _limited(combined)
        return values

    def term(self) -> tuple[Values, Values | None]:
        start = self.position
        values = self.factor()
        percent = None
        if self.position == start + 2 and self.tokens[start + 1].kind == "%":
            percent = _limited(Fraction(v, 100) for v in _number(self.tokens[start]))
        divided: Values | None = None  # the dividend, while `a / b` may still be read as `a / (b c)`
        divisor: Values | None = None
        while True:
            token = self.peek()
            if sign := self.accept("*", "/"):
                other = self.factor()
                divided, divisor = (values, other) if sign == "/" else (None, None)
                values = _combine(_divide if sign == "/" else operator.mul, values, other)
            elif token is not None and token.kind in ("(", "frac", "sqrt") and token.text != "{":
                other = self.power()
                product = _combine(operator.mul, values, other)
                if divided is not None and divisor is not None:
                    loose = _combine(operator.mul, divisor, other)
                    product = _limited(product | _combine(_divide, divided, loose))
                values, divided, divisor = product, None, None
            else:
                return values, percent
            percent = None

    def factor(self) -> Values:
        negative = False
        while sign := self.accept("-", "+"):
            negative ^= sign == "-"
        values = self.power()
        return _negated(values) if negative else values

    def power(self) -> Values:
        base = self.postfix()
        if not self.accept("^"):
            return base
        self.enter()
        values = _combine(_power, base, self.factor())
        self.depth -= 1
        return values

    def postfix(self) -> Values:
        values = self.primary()
        while (token := self.peek()) is not None and token.kind in ("%", "!"):
            self.position += 1
            if token.kind == "%":
                values = _limited(values | {v / 100 for v in values})
            else:
                exclaimed = values if self.peek() is None else frozenset()
                values = _limited(exclaimed | {_factorial(v) for v in values})
        return values

    def primary(self) -> Values:
        token = self.take()
        if token.kind == "num":
            return self.mixed(_number(token))
        if token.kind == "(":
            self.enter()
            values = self.sum()
            closing = self.take()
            if closing.kind != ")" or closing.text != {"(": ")", "[": "]", "{": "}"}[token.text]:
                raise Unknown("brackets do not match")
            self.depth -= 1
            return values
        if token.kind == "frac":
            return _combine(_divide, self.argument(), self.argument())
        if token.kind == "sqrt":
            return frozenset(_square_root(v) for v in self.argument())
        raise Unknown(f"{token.text!r} starts no value")

    def argument(self) -> Values:
        r"""A LaTeX argument: a group in braces, or one digit (`\frac12`)."""
        token = self.peek()
        if token is None:
            raise Unknown("an argument is missing")
        if token.kind == "(" and token.text == "{":
            return self.primary()
        if token.kind == "num" and token.text.isdigit():
            if len(token.text) > 1:  # the other digits are the next argument or a factor
                rest = Token("num", token.text[1:], False)
                first = Token("num", token.text[0], token.spaced)
                self.tokens[self.position : self.position + 1] = [first, rest]
            return _number(self.take())
        if token.kind == "(":
            return self.primary()
        raise Unknown("an argument is missing")

    def mixed(self, whole: Values) -> Values:
        r"""`2\frac{1}{2}` and `2 1/2`: a mixed number; the first may also be a product."""
        token = self.peek()
        if token is not None and token.kind == "frac":
            self.position += 1
            share = _combine(_divide, self.argument(), self.argument())
            mixed = _combine(operator.add, whole, share)
            return _limited(mixed | _combine(operator.mul, whole, share))
        numbers = [self.peek(0), self.peek(1), self.peek(2)]
        if all(numbers) and [t.text if t.kind == "op" else t.kind for t in numbers if t] == [
            "num",
            "/",
            "num",
        ]:
            top, _, bottom = (t for t in numbers if t)
            if top.spaced and not bottom.spaced and top.text.isdigit() and bottom.text.isdigit():
                self.position += 3
                share = _combine(_divide, _number(top), _number(bottom))
                return _combine(operator.add, whole, share)
        return whole


def _number(token: Token) -> Values:
    if token.kind != "num" or len(token.text) > MOST_DIGITS:
        raise Unknown(f"{token.text[:20]!r} is no number")
    return frozenset({Fraction(token.text.replace(",", ""))})


def _limited(values: Iterable[Fraction]) -> Values:
    result = frozenset(values)
    if len(result) > _MOST_READINGS:
        raise Unknown("too many readings")
    if any(max(abs(v.numerator), v.denominator).bit_length() > _MOST_BITS for v in result):
        raise Unknown("numbers too large")
    return result


def _combine(operation: Callable[[Fraction, Fraction], Fraction], a: Values, b: Values) -> Values:
    return _limited(operation(x, y) for x, y in itertools.product(a, b))


def _negated(values: Values) -> Values:
    return frozenset(-v for v in values)


def _divide(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise Unknown("division by zero")
    return a / b


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 2:
        base, exponent = _square_root(base), exponent * 2
    bits = max(abs(base.numerator), base.denominator).bit_length() * abs(exponent.numerator)
    if exponent.denominator != 1 or bits > _MOST_BITS or (base == 0 and exponent < 0):
        raise Unknown("not an integer power of moderate size")
    return base ** int(exponent)


def _square_root(value: Fraction) -> Fraction:
    if value < 0:
        raise Unknown("root of a negative number")
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if top * top != value.numerator or bottom * bottom != value.denominator:
        raise Unknown("root of no square")
    return Fraction(top, bottom)


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= 100:
        raise Unknown("no factorial")
    return Fraction(math.factorial(int(value)))
