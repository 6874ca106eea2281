"""The arithmetic that both embedded tasks share: operations, ways to write one, and exact checking.

No operation absorbs an error (there is no modulus and no multiplication by zero): a wrong intermediate value
reaches the answer unless a second mistake cancels it.
"""

from __future__ import annotations

import random
import re

LARGEST = 99  # values stay in [1, LARGEST]: two digits are as much as a tiny policy learns in minutes

NUMBER = r"\d{1,6}"  # as questions give it
VALUE = rf"-?{NUMBER}"  # as a step states it: after a wrong value the right result may lie below zero
_SUM = re.compile(rf"({VALUE}) ([+*-]) ({VALUE})")


def apply(operator: str, left: int, right: int) -> int:
    """left (operator) right, over the integers."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    raise ValueError(f"unknown operator {operator!r}")


def evaluate(text: str) -> int | None:
    """The value of `N` or `N op N`, each N with a sign or without, or None when the text is neither."""
    if re.fullmatch(VALUE, text):
        return int(text)
    match = _SUM.fullmatch(text)
    if match is None:
        return None
    return apply(match[2], int(match[1]), int(match[3]))


def split_by_tens(operator: str, left: int, right: int) -> str:
    """The intermediate line of careful working: `58 + 67` is `110 + 15`, `83 - 47` is `40 - 4`."""
    left_tens, left_ones = left - left % 10, left % 10
    if operator == "*":
        return f"{left_tens * right} + {left_ones * right}"
    right_tens, right_ones = right - right % 10, right % 10
    tens = apply(operator, left_tens, right_tens)
    ones = apply(operator, left_ones, right_ones)
    return f"{tens} + {ones}" if ones >= 0 else f"{tens} - {-ones}"


def write_sum(operator: str, left: int, right: int, working: str) -> str:
    """`left op right`, and where careful the line of tens and ones: `58 + 27 = 70 + 15`."""
    middle = f" = {split_by_tens(operator, left, right)}" if working == "careful" else ""
    return f"{left} {operator} {right}{middle}"


def write_working(operator: str, left: int, right: int, working: str, result: int) -> str:
    """`left op right = ... = result`, with or without the line of tens and ones."""
    return f"{write_sum(operator, left, right, working)} = {result}"


def random_operation(rng: random.Random, left: int) -> tuple[str, int] | None:
    """An operation with a constant whose result stays in range, or None if the draw fell outside."""
    operator = rng.choice("++--*")
    right = rng.randint(2, 4) if operator == "*" else rng.randint(2, 59)
    value = apply(operator, left, right)
    return (operator, right) if 1 <= value <= LARGEST else None


def slip(rng: random.Random, value: int) -> int:
    """A result as a hurried writer might put it down: off by one or by ten, in range."""
    return rng.choice([v for v in (value - 10, value - 1, value + 1, value + 10) if 1 <= v <= LARGEST])


def put_down(rng: random.Random, value: int, slip_rate: float) -> int | None:
    """What a writer states for a result: the value, or a slip; None where an earlier slip took it out of range."""
    if not 1 <= value <= LARGEST:
        return None
    return slip(rng, value) if rng.random() < slip_rate else value


def sums(rng: random.Random, count: int) -> list[tuple[str, ...]]:
    """Bare sums with and without the line of tens and ones: training text for arithmetic alone.

    Returns:
      Each line in parts that are by turns given and following from what is given.
    """
    lines: list[tuple[str, ...]] = []
    while len(lines) < count:
        left = rng.randint(2, LARGEST)
        operation = random_operation(rng, left)
        if operation is None:
            continue
        value = str(apply(operation[0], left, operation[1]))
        start = f"{left} {operation[0]} {operation[1]} = "
        if rng.random() < 0.5:
            lines.append((start, value))
        else:
            lines.append((start, f"{split_by_tens(operation[0], left, operation[1])} = {value}"))
    return lines
