"""The main embedded task: quantities of a dependency graph, computed in any order that respects it.

A question such as `a = 41; k: a * 2; c: k - a; d: a + 18; e: c + d. e?` gives numbers and defines quantities. A
solution establishes one defined quantity a step and ends with `answer: N`. At most prefixes several quantities are
ready, and each can be written in several ways (`graph_writing`). Here: the problems, and whether a step is right.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

from caspo_jax.tasks.arithmetic import LARGEST, NUMBER, VALUE, apply, evaluate, random_operation

NAMES = "abcdefghjkmnpqrstuvw"

_TERM = rf"(?:[a-z]|{NUMBER})"
_DEFINITION = re.compile(rf"([a-z]) = ({NUMBER})|([a-z]): ({_TERM}) ([+*-]) ({_TERM})")
_STEP = re.compile(
    rf"(?:(?:get |put |find )?(?P<name>[a-z]): (?P<symbols>{_TERM} [+*-] {_TERM})"
    rf"(?P<recalled>(?:, [a-z] = {VALUE})*)(?:, (?P<work>[^,]+))?, so )?"
    rf"(?P<stated>[a-z]) = (?P<value>{VALUE})"
)
_ANSWER = re.compile(rf"answer: ({VALUE})")


@dataclasses.dataclass(frozen=True)
class Definition:
    """`name = left operator right`; a term is a name or a number."""

    name: str
    left: str
    operator: str
    right: str

    @property
    def symbols(self) -> str:
        """The right-hand side as written."""
        return f"{self.left} {self.operator} {self.right}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The names on the right-hand side."""
        return tuple(term for term in (self.left, self.right) if not term.isdigit())

    def operands(self, values: dict[str, int]) -> tuple[int, int]:
        """The two numbers, given the values of the names."""
        left, right = (int(t) if t.isdigit() else values[t] for t in (self.left, self.right))
        return left, right

    def result(self, values: dict[str, int]) -> int:
        """The value of the right-hand side, given the values of the names."""
        return apply(self.operator, *self.operands(values))

    def recalled(self, values: dict[str, int]) -> list[str]:
        """The operands that are names, each written with its value."""
        return [f"{name} = {values[name]}" for name in self.needs]


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
        parts += [f"{d.name}: {d.symbols}" for d in self.derived]
        return "; ".join(parts) + f". {self.query}?"

    def values(self) -> dict[str, int]:
        """The true value of every name."""
        values = dict(self.given)
        for definition in self.derived:
            values[definition.name] = definition.result(values)
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
            values[definition.name] = definition.result(values)
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


def stated_value(step: str) -> tuple[str, int] | None:
    """The name a step establishes and the value it states, right or wrong; None if it states none."""
    match = _STEP.fullmatch(step.strip())
    return (match["stated"], int(match["value"])) if match else None


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
    match = _STEP.fullmatch(step)
    definitions = {d.name: d for d in problem.derived}
    if match is None or match["stated"] in values or match["stated"] not in definitions:
        return False
    definition = definitions[match["stated"]]
    if any(name not in values for name in definition.needs):
        return False
    result = definition.result(values)
    if int(match["value"]) != result:
        return False
    if match["name"] is None:
        return True
    if match["name"] != definition.name or match["symbols"] != definition.symbols:
        return False
    if match["recalled"] and match["recalled"] != ", " + ", ".join(definition.recalled(values)):
        return False
    if match["work"] is None:
        return True
    sides = match["work"].split(" = ")
    left, right = definition.operands(values)
    return sides[0] == f"{left} {definition.operator} {right}" and all(evaluate(s) == result for s in sides)


def claim(problem: GraphProblem, prefix: Sequence[str], step: str) -> tuple[str, int] | None:
    """Which name a step gives which value; the answer is a claim about the name asked for. None if it claims nothing."""
    answer = _ANSWER.fullmatch(step.strip())
    return (problem.query, int(answer[1])) if answer else stated_value(step)
