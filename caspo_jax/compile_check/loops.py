"""How often a loop of a compiled program runs, where its text says so."""

from __future__ import annotations

import re

from caspo_jax.compile_check.hlo import Computation, Instruction, Module


def loop_length(module: Module, within: Computation, loop: Instruction) -> int | None:
    """Trips of a `while`: as the compiler notes them, or by a counter from a constant, by a constant, below a constant.

    Args:
      module: the whole program.
      within: the computation that the loop stands in.
      loop: the `while`.

    Returns:
      None where the text does not say it.
    """
    if loop.trip_count is not None:
        return loop.trip_count
    test = _test(module, loop)
    if test is None:
        return None
    counter, limit = test
    start, step = _start(within, loop, counter), _step(module, loop, counter)
    if start is None or step is None or step <= 0:
        return None
    return max(0, -(-(limit - start) // step))


def _test(module: Module, loop: Instruction) -> tuple[int, int] | None:
    """(place of the counter in the loop's state, the constant that it stays below)."""
    condition = module.computations.get(loop.condition or "")
    if condition is None:
        return None
    test = condition.root
    if test.opcode == "fusion" and len(test.called) == 1:
        inner = module.computations[test.called[0]]
        outer = dict(zip((p.name for p in inner.parameters), test.operands))
        operands = [
            condition.instructions.get(outer.get(name, ""), inner.instructions[name])
            for name in inner.root.operands
        ]
        test = inner.root
    else:
        operands = [condition.instructions[name] for name in test.operands if name in condition.instructions]
    if test.opcode != "compare" or "direction=LT" not in test.attributes or len(operands) != 2:
        return None
    counter, limit = _place(operands[0]), _constant(operands[1])
    return None if counter is None or limit is None else (counter, limit)


def _start(within: Computation, loop: Instruction, counter: int) -> int | None:
    """The counter before the first trip."""
    state = within.instructions.get(loop.operands[0])
    if state is None or state.opcode != "tuple":
        return None
    value = within.instructions.get(state.operands[counter])
    while value is not None and value.opcode in ("copy", "bitcast"):
        value = within.instructions.get(value.operands[0])
    return _constant(value)


def _step(module: Module, loop: Instruction, counter: int) -> int | None:
    """What a trip adds to the counter: unrolled loops take several of the original's trips at once."""
    body = next((module.computations[name] for name in loop.called if name in module.computations), None)
    if body is None or body.root.opcode != "tuple":
        return None
    value, total = body.instructions[body.root.operands[counter]], 0
    within, outer = body, {}  # a fusion's parameters are looked up outside of it
    while _place(value) != counter:
        if value.opcode == "fusion" and len(value.called) == 1 and within is body:
            within = module.computations[value.called[0]]
            outer = dict(zip((p.name for p in within.parameters), value.operands))
            value = within.root
        elif value.opcode == "parameter" and value.name in outer:
            value, within, outer = body.instructions[outer[value.name]], body, {}
        elif value.opcode in ("copy", "bitcast"):
            value = within.instructions[value.operands[0]]
        elif value.opcode == "add":
            terms = [within.instructions[name] for name in value.operands]
            known = [_constant(body.instructions.get(outer.get(t.name, ""), t)) for t in terms]
            if known[0] is not None:
                terms, known = terms[::-1], known[::-1]
            if known[1] is None:
                return None
            value, total = terms[0], total + known[1]
        else:
            return None
    return total


def _place(instruction: Instruction) -> int | None:
    """Which part of a tuple it takes."""
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(found[1]) if found and instruction.opcode == "get-tuple-element" else None


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    text = instruction.operands[0]
    return int(text) if text.lstrip("-").isdecimal() else None
