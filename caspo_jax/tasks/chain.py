"""The second embedded task: a chain of operations on a running number.

`start 37; add 25; times 3; minus 48. end?` is solved one operation a step, in the phrasings of the graph task without
names: `now 62`, `37 + 25 = 62`, or with a line of tens and ones, and ends with `answer: N`.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence

from caspo_jax.tasks.arithmetic import (
    NUMBER,
    VALUE,
    apply,
    evaluate,
    put_down,
    random_operation,
    sums,
    write_working,
)

_WORDS = {"+": "add", "-": "minus", "*": "times"}
_OPERATORS = {word: operator for operator, word in _WORDS.items()}
_QUESTION = re.compile(rf"start ({NUMBER})((?:; (?:add|minus|times) {NUMBER})+)\. end\?")
_OPERATION = re.compile(rf"; (add|minus|times) ({NUMBER})")
_ANSWER = re.compile(rf"answer: ({VALUE})")


@dataclasses.dataclass(frozen=True)
class ChainProblem:
    """A start and the operations to apply to it in turn."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The question as the policy reads it."""
        return f"start {self.start}" + "".join(f"; {_WORDS[o]} {n}" for o, n in self.operations) + ". end?"

    @property
    def answer(self) -> int:
        """The number at the end."""
        value = self.start
        for operator, number in self.operations:
            value = apply(operator, value, number)
        return value


def parse_problem(text: str) -> ChainProblem | None:
    """The problem behind a question's text, or None when it is not one of this task."""
    match = _QUESTION.fullmatch(text.strip())
    if match is None:
        return None
    operations = tuple((_OPERATORS[m[1]], int(m[2])) for m in _OPERATION.finditer(match[2]))
    return ChainProblem(int(match[1]), operations)


def sample_problem(rng: random.Random, *, length: tuple[int, int] = (3, 5)) -> ChainProblem:
    """Draw a chain of length[0] to length[1] operations whose values stay in range and above zero."""
    size = rng.randint(*length)
    start = value = rng.randint(2, 59)
    operations: list[tuple[str, int]] = []
    while len(operations) < size:
        operation = random_operation(rng, value)
        if operation is not None and apply(operation[0], value, operation[1]) > 0:
            operations.append(operation)
            value = apply(operation[0], value, operation[1])
    return ChainProblem(start, tuple(operations))


def try_solution(
    problem: ChainProblem, rng: random.Random, mix: Mapping[str, float], slips: Mapping[str, float]
) -> list[str] | None:
    """A solution, a phrasing drawn for each step, now and then a slip that the steps after it go on from.

    Arguments as of `Task.solve`. None where a slip took a later value out of range.
    """
    value, steps = problem.start, []
    for operator, number in problem.operations:
        phrasing = rng.choices(list(mix), list(mix.values()))[0]
        result = put_down(rng, apply(operator, value, number), slips.get(phrasing, 0.0))
        if result is None:
            return None
        steps.append(
            f"now {result}"
            if phrasing == "direct"
            else write_working(operator, value, number, phrasing, result)
        )
        value = result
    return [*steps, f"answer: {value}"]


def drill(rng: random.Random, phrasings: Sequence[str]) -> tuple[str | None, list[tuple[str, ...]]]:
    """An exercise: bare sums, whatever the phrasings."""
    return None, sums(rng, 8)


def stated_value(step: str) -> int | None:
    """The number that a step arrives at, right or wrong; None if it states none."""
    match = re.fullmatch(rf"(?:now |.* = )({VALUE})", step.strip())
    return int(match[1]) if match else None


def check_step(problem: ChainProblem, prefix: Sequence[str], step: str) -> bool:
    """Does the step apply the next operation to the number that the prefix has arrived at, all of it right?"""
    value, done = problem.start, 0
    for earlier in prefix:
        stated = stated_value(earlier)
        if stated is not None:
            value, done = stated, done + 1
    step = step.strip()
    answer = _ANSWER.fullmatch(step)
    if answer:
        return done == len(problem.operations) and int(answer[1]) == value
    if done >= len(problem.operations):
        return False
    operator, number = problem.operations[done]
    result = apply(operator, value, number)
    if step.startswith("now "):
        return step == f"now {result}"
    sides = step.split(" = ")
    if len(sides) == 1 or sides[0] != f"{value} {operator} {number}":
        return False
    return sides[-1] == str(result) and all(evaluate(side) == result for side in sides)


def claim(problem: ChainProblem, prefix: Sequence[str], step: str) -> tuple[str, int] | None:
    """Which place in the chain a step gives which number; the answer is a claim about the newest one."""
    done = sum(stated_value(earlier) is not None for earlier in prefix)
    answer = _ANSWER.fullmatch(step.strip())
    if answer:
        return str(done), int(answer[1])
    value = stated_value(step)
    return None if value is None else (str(done + 1), value)
