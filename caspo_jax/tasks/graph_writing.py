"""Training text of the graph task: steps in several phrasings, whole solutions, exercises.

A phrasing is direct (`c: k - a, so c = 41`: short, and hard to get right in one go) or shows more or less of the working
(`find c: k - a, k = 82, a = 41, 82 - 41 = 40 + 1, so c = 41`). A writer who skips the working makes more mistakes; that
is the natural mistake of this task.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from caspo_jax.tasks.arithmetic import LARGEST, apply, put_down, random_operation, write_sum
from caspo_jax.tasks.graph import NAMES, Definition, GraphProblem, sample_problem

_VERBS = {"direct": "", "brief": "get ", "shown": "put ", "careful": "find "}  # of each phrasing
_WITH_VALUES = ("brief", "shown", "careful")  # phrasings that recall the operands' values


def write_step(
    definition: Definition, values: dict[str, int], phrasing: str, stated: int | None = None
) -> str:
    """One step that establishes the definition's name in the given phrasing: correct, or with another result."""
    value = definition.result(values) if stated is None else stated
    return f"{_write_start(definition, values, phrasing)}, so {definition.name} = {value}"


def _write_start(definition: Definition, values: dict[str, int], phrasing: str) -> str:
    """A step as far as its working goes."""
    parts = [f"{_VERBS[phrasing]}{definition.name}: {definition.symbols}"]
    if phrasing in _WITH_VALUES:
        parts += definition.recalled(values)
    if phrasing in ("shown", "careful"):
        parts.append(write_sum(definition.operator, *definition.operands(values), phrasing))
    return ", ".join(parts)


def try_solution(
    problem: GraphProblem, rng: random.Random, mix: Mapping[str, float], slips: Mapping[str, float]
) -> list[str] | None:
    """A solution: an admissible order, mostly the question's; a phrasing a step; sometimes an idle quantity.

    Only what looks easy, an operation with a plain number, is done directly. A slip is not noticed: the steps after it
    go on from the value put down.

    Arguments as of `Task.solve`. None where a slip took a later value out of range.
    """
    needed = problem.needed()
    todo = [d for d in problem.derived if d.name in needed or rng.random() < 0.5]
    values = dict(problem.given)
    steps = []
    while problem.query not in values:
        ready = [d for d in todo if d.name not in values and all(n in values for n in d.needs)]
        definition = ready[0] if rng.random() < 0.85 else rng.choice(ready)
        options = {p: share for p, share in mix.items() if p != "direct" or len(definition.needs) == 1}
        phrasing = rng.choices(list(options), list(options.values()))[0]
        value = put_down(rng, definition.result(values), slips.get(phrasing, 0.0))
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
