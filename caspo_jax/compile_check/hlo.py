"""Reads the text of an optimised HLO module: computations, instructions, shapes, loops."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "bf16": 2, "f16": 2}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|branch_computations|true_computation|false_computation|called_computations)"
    r"=(\{[^}]*\}|%[\w.\-]+)"
)
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False  # in a memory of the chip's own (vector, scalar, flags), not in HBM

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without tiling's padding."""
        digits = re.search(r"\d+", self.dtype)
        size = _BYTES.get(self.dtype) or (max(1, int(digits[0]) // 8) if digits else 0)
        return self.elements * size


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = type opcode(%operand, ...), attributes`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it runs: a fusion's, a loop's body, a conditional's branches."""
        return tuple(name for found in _CALLED.findall(self.attributes) for name in _NAME.findall(found))

    @property
    def op_name(self) -> str:
        """Path of the operation in the traced program."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    @property
    def trip_count(self) -> int | None:
        """How often a loop runs, if the compiler knows it."""
        found = re.search(r'known_trip_count\\*":\s*\{\\*"n\\*":\\*"(\d+)', self.attributes)
        return int(found[1]) if found else None

    @property
    def condition(self) -> str | None:
        """The computation that says whether a loop goes on."""
        found = re.search(r"\bcondition=%([\w.\-]+)", self.attributes)
        return found[1] if found else None

    def attribute(self, name: str) -> str | None:
        """The text of `name=...`, up to the comma that ends it."""
        found = re.search(rf"\b{name}=", self.attributes)
        return _balanced(self.attributes[found.end() :], ",") if found else None

    def dims_attribute(self, name: str) -> tuple[int, ...]:
        """The numbers of `name={1,2}`."""
        text = self.attribute(name) or ""
        return tuple(map(int, re.findall(r"\d+", text)))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: its instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value it returns."""
        found = [i for i in self.instructions.values() if i.is_root]
        return found[0] if found else list(self.instructions.values())[-1]

    def shapes_of(self, name: str) -> tuple[Shape, ...]:
        """The shapes of one of its instructions; none if it has no such instruction."""
        found = self.instructions.get(name)
        return found.shapes if found else ()

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instruction -> those that read it."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in set(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters, in order."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.operands[0]))


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations by name, and the name of the one that runs."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _lines(text):
        header = _HEADER.match(line)
        if header and " = " not in line.split("(")[0]:
            current = Computation(header[2], {})
            computations[header[2]] = current
            entry = header[2] if header[1] else entry
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation in the module's text")
    return Module(computations, entry)


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line and not line.startswith(("HloModule", "FileNames", "FunctionNames", "FileLocations")):
            # /*index=5*/ marks in long tuples
            yield re.sub(r"/\*.*?\*/", "", line)


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    kind = _balanced(right, " ")
    rest = right[len(kind) :].lstrip()
    opcode, _, rest = rest.partition("(")
    inside = _balanced(rest, ")")
    literal = opcode in ("parameter", "constant")  # a number
    operands = (inside.strip(),) if literal else tuple(_NAME.findall(inside))
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode.strip(),
        shapes=tuple(_shapes(kind)),
        operands=operands,
        attributes=rest[len(inside) + 1 :],
        is_root=left.startswith("ROOT "),
    )


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
        space = re.search(r"S\((\d+)\)", layout)  # none: HBM
        yield Shape(dtype, sizes, space is not None)


def _balanced(text: str, end: str) -> str:
    """The text up to the first `end` outside brackets."""
    depth = 0
    for i, c in enumerate(text):
        if depth == 0 and c == end:
            return text[:i]
        if c in "([{":
            depth += 1
        elif c in ")]}":
            if depth == 0:
                return text[:i]
            depth -= 1
    return text
