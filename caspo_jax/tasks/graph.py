"""The main embedded task: quantities of a dependency graph, computed in any order that respects it.

A question such as `a = 41; k: a * 2; c: k - a; d: a + 18; e: c + d. e?` gives numbers and defines quantities. A
solution establishes one defined quantity a step and ends with `answer: N`. At most prefixes several quantities are
ready, and each can be written in several ways, from the direct (`c: k - a, so c = 41`: short, and hard to get right in
one go) to careful working (`find c: k - a, k = 82, a = 41, 82 - 41 = 40 + 1, so c = 41`). A writer who skips the
working makes more mistakes; that is the natural mistake of this task.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence

from caspo_jax.tasks.arithmetic import (
    LARGEST,
    NUMBER,
    VALUE,
    apply,
    evaluate,
    put_down,
    random_operation,
    write_sum,
)

NAMES = "abcdefghjkmnpqrstuvw"
_VERBS = {"direct": "", "brief": "get ", "shown": "put ", "careful": "find "}
PHRASINGS = tuple(_VERBS)
_WITH_VALUES = ("brief", "shown", "careful")  # phrasings that recall the operands' values

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


def write_step(
    definition: Definition, values: dict[str, int], phrasing: str, stated: int | None = None
) -> str:
    """One step that establishes the definition's name in the given phrasing: correct, or with another result."""
    value = apply(definition.operator, *definition.operands(values)) if stated is None else stated
    return f"{_write_start(definition, values, phrasing)}, so {definition.name} = {value}"


def _write_start(definition: Definition, values: dict[str, int], phrasing: str) -> str:
    """A step as far as its working goes."""
    parts = [f"{_VERBS[phrasing]}{definition.name}: {definition.symbols}"]
    if phrasing in _WITH_VALUES:
        parts += _recalled(definition, values)
    if phrasing in ("shown", "careful"):
        parts.append(write_sum(definition.operator, *definition.operands(values), phrasing))
    return ", ".join(parts)


def _recalled(definition: Definition, values: dict[str, int]) -> list[str]:
    """The operands that are names, each with its value."""
    return [f"{name} = {values[name]}" for name in definition.needs]


def write_solution(
    problem: GraphProblem,
    rng: random.Random,
    mix: Mapping[str, float],
    slips: Mapping[str, float] | None = None,
) -> list[str]:
    """A solution: an admissible order, mostly the question's; a phrasing a step; sometimes an idle quantity.

    Only what looks easy, an operation with a plain number, is done directly. A slip is not noticed: the steps after it
    go on from the value put down.

    Args:
      mix: share of each phrasing.
      slips: how often a step of a phrasing ends in a slip; None writes correct solutions.
    """
    while True:
        steps = _try_solution(problem, rng, mix, slips or {})
        if steps is not None:
            return steps


def _try_solution(
    problem: GraphProblem, rng: random.Random, mix: Mapping[str, float], slips: Mapping[str, float]
) -> list[str] | None:
    """A solution, or None where a slip took a later value out of range."""
    needed = problem.needed()
    todo = [d for d in problem.derived if d.name in needed or rng.random() < 0.5]
    values = dict(problem.given)
    steps = []
    while problem.query not in values:
        ready = [d for d in todo if d.name not in values and all(n in values for n in d.needs)]
        definition = ready[0] if rng.random() < 0.85 else rng.choice(ready)
        options = {p: share for p, share in mix.items() if p != "direct" or len(definition.needs) == 1}
        phrasing = rng.choices(list(options), list(options.values()))[0]
        true = apply(definition.operator, *definition.operands(values))
        value = put_down(rng, true, slips.get(phrasing, 0.0))
        if value is None:
            return None
        steps.append(write_step(definition, values, phrasing, value))
        values[definition.name] = value
    return [*steps, f"answer: {values[problem.query]}"]


def drill(rng: random.Random, phrasings: Sequence[str]) -> tuple[str | None, list[tuple[str, ...]]]:
    """An exercise in the given phrasings: single steps without a question, or a graph's quantities in any order.

    A graph's quantities go as far as their values are recalled; direct ones, where everything is given, to the result.
    """
    direct = "direct" in phrasings
    recalling = [phrasing for phrasing in phrasings if phrasing in _WITH_VALUES]
    if rng.random() < (0.3 if direct else 0.7):
        return None, [_sum_drill(rng, recalling) for _ in range(6)]
    problem = sample_problem(rng, depth=(3, 5))
    given = dict(problem.given)
    ready = [d for d in problem.derived if all(name in given for name in d.needs)]
    lines: list[tuple[str, ...]] = []
    for definition in rng.choices([*problem.derived, *ready, *ready], k=8):
        phrasing = rng.choice(phrasings if len(definition.needs) == 1 else recalling)
        lead = f"{_VERBS[phrasing]}{definition.name}: "
        if definition not in ready:
            lines.append((lead, definition.symbols))
        elif phrasing == "direct":
            start, separator, value = write_step(definition, given, phrasing).rpartition(" = ")
            lines.append((start + separator, value))
        else:
            lines.append((lead, _write_start(definition, given, phrasing).removeprefix(lead)))
    return problem.text.rpartition(". ")[0] + ". ", lines


def _sum_drill(rng: random.Random, phrasings: Sequence[str]) -> tuple[str, ...]:
    """One step with its values given; to be learned are the line of tens and ones and the result."""
    name, left, right = rng.sample(NAMES, 3)
    values = {left: rng.randint(2, LARGEST)}
    operation = random_operation(rng, values[left])
    if operation is None:
        return _sum_drill(rng, phrasings)
    constant = rng.random() < 0.5
    values[right] = operation[1]
    definition = Definition(name, left, operation[0], str(operation[1]) if constant else right)
    so, value = f", so {name} = ", str(apply(operation[0], values[left], operation[1]))
    phrasing = rng.choice(phrasings)
    if phrasing != "careful":
        return _write_start(definition, values, phrasing) + so, value
    start, equals, tens = _write_start(definition, values, "careful").rpartition(" = ")
    return start + equals, tens, so, value


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
    left, right = definition.operands(values)
    result = apply(definition.operator, left, right)
    if int(match["value"]) != result:
        return False
    if match["name"] is None:
        return True
    if match["name"] != definition.name or match["symbols"] != definition.symbols:
        return False
    if match["recalled"] and match["recalled"] != ", " + ", ".join(_recalled(definition, values)):
        return False
    if match["work"] is None:
        return True
    sides = match["work"].split(" = ")
    return sides[0] == f"{left} {definition.operator} {right}" and all(evaluate(s) == result for s in sides)


def claim(problem: GraphProblem, prefix: Sequence[str], step: str) -> tuple[str, int] | None:
    """Which name a step gives which value; the answer is a claim about the name asked for. None if it claims nothing."""
    answer = _ANSWER.fullmatch(step.strip())
    return (problem.query, int(answer[1])) if answer else stated_value(step)
