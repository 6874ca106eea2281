"""HBM traffic of one instruction of a compiled program: of a large array that it slices or updates, the slice alone."""

from __future__ import annotations

from collections.abc import Iterable

from caspo_jax.compile_check.hlo import Computation, Instruction, Module, Shape

# They read of an array what is read of them.
_PASSING = {"bitcast", "bitcast-convert", "convert", "copy", "reshape", "transpose"}
_SLICING = {"dynamic-slice", "slice", "gather"}


def hbm_bytes(shapes: Iterable[Shape]) -> int:
    """Bytes of the arrays that lie in HBM."""
    return sum(shape.bytes for shape in shapes if not shape.on_chip)


def fusion_bytes(
    module: Module, computation: Computation, fusion: Instruction, moved: set[Shape]
) -> tuple[int, list[int]]:
    """Bytes that a fusion reads, and bytes of each array that it writes.

    Args:
      module: the whole program.
      computation: where the fusion stands.
      fusion: the instruction.
      moved: shapes that the fusion's collectives read and write; they are counted with these.
    """
    (name, *_) = fusion.called
    inner = module.computations[name]
    read = 0
    for parameter, operand in zip(inner.parameters, fusion.operands):
        shapes = computation.shapes_of(operand)
        if not any(shape.on_chip or shape in moved for shape in shapes):
            read += min(sum(s.bytes for s in shapes), _touched(module, inner, parameter))
    roots = [inner.root]
    if inner.root.opcode == "tuple":
        roots = [inner.instructions[operand] for operand in inner.root.operands]
    written = [
        0 if shape.on_chip or shape in moved else _written(module, inner, root)
        for shape, root in zip(fusion.shapes, roots)
    ]
    return read, written


def plain_bytes(computation: Computation, i: Instruction) -> float:
    """HBM bytes of an instruction that is no fusion."""
    if i.opcode in ("dynamic-update-slice", "scatter"):
        update = computation.shapes_of(i.operands[-1 if i.opcode == "scatter" else 1])
        return hbm_bytes(update) + (0 if i.shapes[0].on_chip else sum(shape.bytes for shape in update))
    if i.opcode.endswith("-start"):  # (operands, result, flags); of a copy (result, operand, flags)
        source, result = i.shapes[:2] if i.opcode != "copy-start" else i.shapes[1::-1]
        size = min(source.bytes, result.bytes)
        return size * (float(not source.on_chip) + float(not result.on_chip))
    if i.opcode in _SLICING:
        taken = sum(shape.bytes for shape in i.shapes)
        return (taken if hbm_bytes(computation.shapes_of(i.operands[0])) else 0) + hbm_bytes(i.shapes)
    return sum(hbm_bytes(computation.shapes_of(name)) for name in i.operands) + hbm_bytes(i.shapes)


def _touched(module: Module, inner: Computation, value: Instruction) -> int:
    """Bytes of a fusion's value that its users read."""
    whole = sum(shape.bytes for shape in value.shapes)
    total = 0
    for user in inner.users.get(value.name, []):
        if user.opcode in _PASSING:
            share = _touched(module, inner, user) / max(1, user.shapes[0].bytes)
            total += int(whole * min(1.0, share))
        elif user.opcode == "fusion":
            called = module.computations[user.called[0]]
            for parameter, operand in zip(called.parameters, user.operands):
                if operand == value.name:
                    total += _touched(module, called, parameter)
        elif user.opcode in _SLICING and user.operands[0] == value.name:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == value.name:
            continue  # only the slice is written, and that is counted with the result
        else:
            return whole
    return min(whole, total)


def _written(module: Module, inner: Computation, root: Instruction) -> int:
    """Bytes that one result of a fusion writes."""
    while root.opcode in ("bitcast", "copy") and root.operands[0] in inner.instructions:
        root = inner.instructions[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
        return inner.shapes_of(root.operands[1])[0].bytes
    if root.opcode == "scatter":
        return inner.shapes_of(root.operands[-1])[0].bytes
    if root.opcode == "fusion" and len(root.shapes) == 1:
        called = module.computations[root.called[0]]
        return _written(module, called, called.root)
    return sum(shape.bytes for shape in root.shapes)
