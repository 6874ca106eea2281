"""The main embedded task: quantities of a dependency graph, computed in any order that respects it.

A question such as `a = 41; k = a * 2; c = k - a; d = a + 18; e = c + d. e?` defines given numbers and derived
quantities. A solution establishes one derived quantity a step and ends with `answer: N`. At most prefixes
several quantities are ready, and each can be written in several ways, from the brief (`c = k - a = 35`: short, and
hard to get right in one go) to careful working (`c: k - a = 82 - 47 = 40 - 5 = 35`). A writer who skips the working
makes more mistakes; that is the natural mistake of this task.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

from caspo_jax.tasks.arithmetic import (
    LARGEST,
    NUMBER,
    apply,
    evaluate,
    random_operation,
    sums,
    write_working,
)

NAMES = "abcdefghjkmnpqrstuvw"
PHRASINGS = ("brief", "shown", "careful", "first")

_TERM = rf"(?:[a-z]|{NUMBER})"
_DEFINITION = re.compile(rf"([a-z]) = ({NUMBER})|([a-z]) = ({_TERM}) ([+*-]) ({_TERM})")
_NAMED = re.compile(rf"([a-z]) = ({NUMBER})")
_WORKED = re.compile(rf"([a-z])(?: = | is |: )({_TERM}) ([+*-]) ({_TERM})((?: = [^=]+)+)")
_FIRST = re.compile(
    rf"({_TERM} [+*-] {_TERM}) = ({NUMBER} [+*-] {NUMBER}) = ({NUMBER}), so ([a-z]) = ({NUMBER})"
)
_ANSWER = re.compile(rf"answer: ({NUMBER})")


@dataclasses.dataclass(frozen=True)
class Definition:
    """`name = left operator right`; a term is a name or a number."""

    name: str
    left: str
    operator: str
    right: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The names on the right-hand side."""
        return tuple(term for term in (self.left, self.right) if not term.isdigit())

    def operands(self, values: dict[str, int]) -> tuple[int, int]:
        """The two numbers, given the values of the names."""
        left, right = (int(t) if t.isdigit() else values[t] for t in (self.left, self.right))
        return left, right


@dataclasses.dataclass(frozen=True)
class GraphProblem:
    """A question: given numbers, derived quantities in an order that respects the graph, and the one asked for."""

    given: tuple[tuple[str, int], ...]
    derived: tuple[Definition, ...]
    query: str

    @property
    def text(self) -> str:
        """The question as the policy reads it."""
        parts = [f"{name} = {value}" for name, value in self.given]
        parts += [f"{d.name} = {d.left} {d.operator} {d.right}" for d in self.derived]
        return "; ".join(parts) + f". {self.query}?"

    def values(self) -> dict[str, int]:
        """The true value of every name."""
        values = dict(self.given)
        for definition in self.derived:
            values[definition.name] = apply(definition.operator, *definition.operands(values))
        return values

    @property
    def answer(self) -> int:
        """The true value of the name asked for."""
        return self.values()[self.query]

    def needed(self) -> set[str]:
        """The derived names that the answer depends on."""
        definitions = {d.name: d for d in self.derived}
        needed: set[str] = set()
        stack = [self.query]
        while stack:
            name = stack.pop()
            if name in definitions and name not in needed:
                needed.add(name)
                stack.extend(definitions[name].needs)
        return needed


def parse_problem(text: str) -> GraphProblem | None:
    """The problem behind a question's text, or None when it is not one of this task."""
    head, separator, tail = text.strip().rpartition(". ")
    if not separator or not re.fullmatch(r"[a-z]\?", tail):
        return None
    given: list[tuple[str, int]] = []
    derived: list[Definition] = []
    for part in head.split("; "):
        match = _DEFINITION.fullmatch(part)
        if match is None:
            return None
        if match[1]:
            given.append((match[1], int(match[2])))
        else:
            derived.append(Definition(match[3], match[4], match[5], match[6]))
    return GraphProblem(tuple(given), tuple(derived), tail[0])


def sample_problem(rng: random.Random, *, depth: tuple[int, int] = (2, 4)) -> GraphProblem:
    """Draw a problem whose answer needs between depth[0] and depth[1] derived quantities; up to one more is idle."""
    while True:
        size = rng.randint(*depth)
        names = rng.sample(NAMES, size + 4)
        given = [(names.pop(), rng.randint(2, 59)) for _ in range(rng.choice((2, 2, 3)))]
        values = dict(given)
        derived: list[Definition] = []
        for _ in range(size + (rng.random() < 0.3)):
            definition = _sample_definition(rng, names.pop(), values)
            if definition is None:
                break
            derived.append(definition)
            values[definition.name] = apply(definition.operator, *definition.operands(values))
        if len(derived) < size:
            continue
        problem = GraphProblem(tuple(given), tuple(derived), rng.choice(derived[-2:]).name)
        if depth[0] <= len(problem.needed()) <= depth[1]:
            return problem


def _sample_definition(rng: random.Random, name: str, values: dict[str, int]) -> Definition | None:
    for _ in range(20):
        left = rng.choice(list(values))
        if rng.random() < 0.55:
            right = rng.choice(list(values))
            operator = rng.choice("+-")
            if left != right and 0 < apply(operator, values[left], values[right]) <= LARGEST:
                return Definition(name, left, operator, right)
        else:
            operation = random_operation(rng, values[left])
            if operation is not None and apply(operation[0], values[left], operation[1]) > 0:
                return Definition(name, left, operation[0], str(operation[1]))
    return None


def write_step(definition: Definition, values: dict[str, int], phrasing: str) -> str:
    """One correct step that establishes the definition's name, in the given phrasing."""
    left, right = definition.operands(values)
    value = apply(definition.operator, left, right)
    name = definition.name
    symbols = f"{definition.left} {definition.operator} {definition.right}"
    if phrasing == "brief":
        return f"{name} = {symbols} = {value}"
    if phrasing == "first":
        return f"{symbols} = {left} {definition.operator} {right} = {value}, so {name} = {value}"
    lead = {"shown": " is ", "careful": ": "}[phrasing]
    return f"{name}{lead}{symbols} = {write_working(definition.operator, left, right, phrasing)}"


def write_solution(problem: GraphProblem, rng: random.Random, mix: dict[str, float]) -> list[str]:
    """A correct solution: a random admissible order, a phrasing drawn for each step, sometimes an idle quantity."""
    needed = problem.needed()
    todo = [d for d in problem.derived if d.name in needed or rng.random() < 0.25]
    values = dict(problem.given)
    steps = []
    while problem.query not in values:
        ready = [d for d in todo if d.name not in values and all(n in values for n in d.needs)]
        definition = rng.choice(ready)
        phrasing = rng.choices(list(mix), list(mix.values()))[0]
        steps.append(write_step(definition, values, phrasing))
        values[definition.name] = apply(definition.operator, *definition.operands(values))
    return [*steps, f"answer: {values[problem.query]}"]


def drill(rng: random.Random) -> tuple[str | None, list[str]]:
    """An exercise: bare sums, or a list of given numbers and lines that look them up, alone or side by side.

    Looking up is what a small decoder learns last from solutions alone; these lines are dense in it.
    """
    if rng.random() < 0.55:
        return None, sums(rng, 8)
    values = {name: rng.randint(1, LARGEST) for name in rng.sample(NAMES, 8)}
    lines = []
    for _ in range(8):
        left, right = rng.sample(list(values), 2)
        pair = f"{left} + {right} = {values[left]} + {values[right]}"
        lines.append(f"{left} = {values[left]}" if rng.random() < 0.4 else pair)
    return "; ".join(f"{name} = {value}" for name, value in values.items()) + ". ", lines


def stated_value(step: str) -> tuple[str, int] | None:
    """The name a step establishes and the value it states, right or wrong; None if it states none."""
    step = step.strip()
    first = _FIRST.fullmatch(step)
    if first:
        return first[4], int(first[5])
    match = re.fullmatch(rf"([a-z])(?: = | is |: )(?:.* = )?({NUMBER})", step)
    return (match[1], int(match[2])) if match else None


def check_step(problem: GraphProblem, prefix: Sequence[str], step: str) -> bool:
    """Does the step follow from the question and the values that the prefix states?

    Everything written must be right: the definition, the numbers put in, each equality, the result. A step that
    establishes a quantity twice, a given one, or one whose operands are not established yet is wrong.
    """
    values = dict(problem.given)
    for earlier in prefix:
        stated = stated_value(earlier)
        if stated is not None and stated[0] not in values:
            values[stated[0]] = stated[1]
    step = step.strip()
    answer = _ANSWER.fullmatch(step)
    if answer:
        return values.get(problem.query) == int(answer[1])
    stated = stated_value(step)
    definitions = {d.name: d for d in problem.derived}
    if stated is None or stated[0] in values or stated[0] not in definitions:
        return False
    definition = definitions[stated[0]]
    if any(name not in values for name in definition.needs):
        return False
    left, right = definition.operands(values)
    if stated[1] != apply(definition.operator, left, right):
        return False
    if _NAMED.fullmatch(step):
        return True
    symbols = f"{definition.left} {definition.operator} {definition.right}"
    numbers = f"{left} {definition.operator} {right}"
    first = _FIRST.fullmatch(step)
    if first:
        return first.group(1, 2) == (symbols, numbers) and int(first[3]) == stated[1]
    worked = _WORKED.fullmatch(step)
    if worked is None or " ".join(worked.group(2, 3, 4)) != symbols:
        return False
    sides = worked[5].removeprefix(" = ").split(" = ")
    return sides[0] in (numbers, str(stated[1])) and all(evaluate(side) == stated[1] for side in sides)
