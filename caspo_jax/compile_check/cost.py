"""What one run of a compiled program costs a chip: products, HBM traffic, collectives; loops counted as often as they run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from caspo_jax.compile_check.hlo import Computation, Instruction, Module, Shape, loop_length

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "iota", "opt-barrier", "while", "conditional", "call", "domain", "add-dependency",
}  # fmt: skip


@dataclasses.dataclass
class Traffic:
    """A kind of collective."""

    count: float = 0.0  # how often it runs
    bytes: float = 0.0  # that a chip receives


@dataclasses.dataclass
class Cost:
    """One run, one chip."""

    flops: float = 0.0  # of matrix products, in bf16 passes (a full-precision float32 product takes six)
    hbm_bytes: float = 0.0  # read and written
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    largest_loop_array: int = (
        0  # bytes of the largest array that a loop makes anew, in-place updates left out
    )
    assumed: dict[str, float] = dataclasses.field(default_factory=dict)  # trips the compiler does not know

    @property
    def ici_bytes(self) -> float:
        """Received over the links, all collectives together."""
        return sum(kind.bytes for kind in self.collectives.values())

    def add(self, other: Cost, times: float) -> None:
        """Add another cost, `times` over."""
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        for name, kind in other.collectives.items():
            mine = self.collectives.setdefault(name, Traffic())
            mine.count += times * kind.count
            mine.bytes += times * kind.bytes
        self.largest_loop_array = max(self.largest_loop_array, other.largest_loop_array)
        self.assumed |= other.assumed


def program_cost(module: Module, chips: int, trips: Mapping[str, float]) -> Cost:
    """The cost of the entry computation.

    Args:
      module: parsed, optimised, already partitioned.
      chips: how many run it together.
      trips: how often loops run whose length the compiler does not know, by a scope in their `op_name`.
        A loop of neither kind is counted once, and named in `assumed`.
    """
    return _Walk(module, chips, trips).computation(module.entry, in_loop=False)


class _Walk:
    def __init__(self, module: Module, chips: int, trips: Mapping[str, float]):
        self._module, self._chips, self._trips = module, chips, trips
        self._known: dict[tuple[str, bool], Cost] = {}

    def computation(self, name: str, in_loop: bool) -> Cost:
        """Of all its instructions."""
        if (name, in_loop) not in self._known:
            cost = Cost()
            computation = self._module.computations[name]
            seen: set[str] = set()  # an asynchronous collective stands in every fusion that it runs beside
            for instruction in computation.instructions.values():
                self._instruction(cost, computation, instruction, in_loop, seen)
            self._known[name, in_loop] = cost
        return self._known[name, in_loop]

    def _instruction(
        self, cost: Cost, computation: Computation, i: Instruction, in_loop: bool, seen: set[str]
    ) -> None:
        if i.opcode == "while":
            (body,) = [name for name in i.called if name in self._module.computations]
            cost.add(self.computation(body, in_loop=True), self._trips_of(cost, computation, i))
        elif i.opcode == "conditional":
            # The dearest branch: a switch over buffer sizes at its last, a skipped block as not skipped.
            branches = [self.computation(name, in_loop) for name in i.called]
            cost.add(max(branches, key=lambda c: c.flops + c.hbm_bytes), 1.0)
        elif i.opcode in ("call", "async-start"):
            for name in i.called:
                cost.add(self.computation(name, in_loop), 1.0)
        elif i.opcode == "fusion":
            moved: set[Shape] = set()
            for name in i.called:
                self._inside(cost, name, i, seen, moved)
            read, written = self._fusion_bytes(computation, i, moved)
            cost.hbm_bytes += read + sum(written)
            if in_loop:
                made = [*written, *(shape.bytes for shape in moved if not shape.on_chip)]
                cost.largest_loop_array = max(cost.largest_loop_array, *made, 0)
        elif _kind(i) is not None:
            self._collective(cost, computation, i, i.opcode, seen)
            if in_loop:
                made = [shape.bytes for shape in i.shapes if not shape.on_chip]
                cost.largest_loop_array = max(cost.largest_loop_array, *made, 0)
        else:
            cost.flops += _flops(computation, i)
            if i.opcode in _FREE or i.opcode.endswith("-done"):
                return
            cost.hbm_bytes += _plain_bytes(computation, i)
            if in_loop and i.opcode != "dynamic-update-slice":
                made = [shape.bytes for shape in i.shapes if not shape.on_chip]
                cost.largest_loop_array = max(cost.largest_loop_array, *made, 0)

    def _inside(self, cost: Cost, name: str, fusion: Instruction, seen: set[str], moved: set[Shape]) -> None:
        """Products and collectives within a fusion; what its collectives read and write is added to `moved`."""
        computation = self._module.computations[name]
        scatters = "scatter" in fusion.name or "scatter" in name
        for i in computation.instructions.values():
            cost.flops += _flops(computation, i)
            if _kind(i) is not None:
                opcode = "reduce-scatter" if scatters and i.opcode == "all-reduce" else i.opcode
                self._collective(cost, computation, i, opcode, seen)
                moved.update(i.shapes, *(_shapes_of(computation, operand) for operand in i.operands))
            if i.opcode in ("fusion", "call"):
                for called in i.called:
                    self._inside(cost, called, fusion, seen, moved)

    def _collective(
        self, cost: Cost, computation: Computation, i: Instruction, opcode: str, seen: set[str]
    ) -> None:
        channel = re.search(r"channel_id=(\d+)", i.attributes)
        key = f"{channel[1] if channel else i.name} {[shape.dims for shape in i.shapes]}"
        if key in seen:
            return
        seen.add(key)
        size = _group_size(i, self._chips)
        shapes = [shape for name in i.operands for shape in _shapes_of(computation, name)]
        operands = sum(shape.bytes for shape in shapes)
        others = (size - 1) / size
        kind = opcode.removesuffix("-start")
        received = {
            "all-gather": operands * (size - 1),
            "all-reduce": 2 * operands * others,  # scattered, then gathered
            "collective-permute": operands,
            "collective-broadcast": operands,
        }.get(kind, operands * others)
        traffic = cost.collectives.setdefault(kind, Traffic())
        traffic.count += 1
        traffic.bytes += received
        results = i.shapes[-1:] if opcode.endswith("-start") else i.shapes
        if kind != "reduce-scatter" or opcode == i.opcode:
            shapes += results
        cost.hbm_bytes += sum(shape.bytes for shape in shapes if not shape.on_chip)

    def _trips_of(self, cost: Cost, within: Computation, i: Instruction) -> float:
        known = loop_length(self._module, within, i)
        if known is not None:
            return known
        # The innermost scope that is known.
        for part in reversed(i.op_name.split("/")):
            for scope, trips in self._trips.items():
                if scope in part:
                    cost.assumed[scope] = trips
                    return trips
        cost.assumed[i.op_name or i.name] = 1.0
        return 1.0

    def _fusion_bytes(
        self, computation: Computation, fusion: Instruction, moved: set[Shape]
    ) -> tuple[int, list[int]]:
        """Bytes read, and bytes of each array written; of a large array that it slices or updates, the slice alone.

        What the fusion's collectives read and write (`moved`) is counted with them, once.
        """
        (name, *_) = fusion.called
        inner = self._module.computations[name]
        read, written = 0, []
        for parameter, operand in zip(inner.parameters, fusion.operands):
            shapes = _shapes_of(computation, operand)
            if not any(shape.on_chip or shape in moved for shape in shapes):
                read += min(sum(s.bytes for s in shapes), _bytes_touched(inner, parameter))
        roots = [inner.root]
        if inner.root.opcode == "tuple":
            roots = [inner.instructions[operand] for operand in inner.root.operands]
        for shape, root in zip(fusion.shapes, roots):
            if shape.on_chip or shape in moved:
                continue
            while root.opcode in ("bitcast", "copy") and root.operands[0] in inner.instructions:
                root = inner.instructions[root.operands[0]]
            update = root.opcode == "dynamic-update-slice"
            written.append(_shapes_of(inner, root.operands[1])[0].bytes if update else shape.bytes)
        return read, written


def _shapes_of(computation: Computation, name: str) -> tuple[Shape, ...]:
    found = computation.instructions.get(name)
    return found.shapes if found else ()


def _bytes_touched(inner: Computation, value: Instruction) -> int:
    """Bytes of a fusion's parameter that its users read."""
    total = 0
    for user in inner.users.get(value.name, []):
        if user.opcode == "bitcast":
            total += _bytes_touched(inner, user)
        elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == value.name:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue  # only the slice is written, and that is counted with the result
        else:
            return sum(shape.bytes for shape in value.shapes)
    return total


def _plain_bytes(computation: Computation, i: Instruction) -> float:
    """HBM bytes of an instruction that is no fusion."""
    written = sum(shape.bytes for shape in i.shapes if not shape.on_chip)
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if i.opcode == "dynamic-update-slice":
        return 2 * sum(shape.bytes for shape in _shapes_of(computation, i.operands[1]))
    if i.opcode.endswith("-start"):  # results repeat the operands
        return sum(s.bytes for name in i.operands for s in _shapes_of(computation, name))
    read = sum(s.bytes for name in i.operands for s in _shapes_of(computation, name) if not s.on_chip)
    return read + written


def _kind(i: Instruction) -> str | None:
    """Which collective it is, if it is one and not its end."""
    kind = i.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def _group_size(i: Instruction, chips: int) -> int:
    """Chips that take part together: [groups,size]<=[...], {{0,1},{2,3}} or mesh['x'=2,'y'=4] {'y'}."""
    groups = i.attribute("replica_groups") or ""
    if groups.startswith("mesh["):
        mesh, _, used = groups.partition("]")
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
        found = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", used.partition("}")[0])
        return int(np.prod([int(part or sizes[axis]) for axis, part in found], dtype=int))
    iota = re.match(r"\[(\d+),(\d+)\]", groups)
    if iota:
        return int(iota[2])
    listed = re.search(r"\{([\d,]+)\}", groups)
    return len(listed[1].split(",")) if listed else chips


def _flops(computation: Computation, i: Instruction) -> float:
    """Of a matrix product, in bf16 passes; 0 for anything else."""
    if i.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (_shapes_of(computation, name)[0] for name in i.operands[:2])
    if i.opcode == "dot":
        inner = np.prod([left.dims[d] for d in i.dims_attribute("lhs_contracting_dims")], dtype=float)
        products = i.shapes[0].elements * inner
    else:
        products = _convolution_products(i, left, right)
    return 2.0 * products * _passes(i, left, right)


def _passes(i: Instruction, left: Shape, right: Shape) -> int:
    """bf16 passes of a product."""
    if "f32" not in (left.dtype, right.dtype):
        return 1
    precision = i.attribute("operand_precision") or ""
    return 6 if "highest" in precision else 3 if "high" in precision else 1


def _convolution_products(i: Instruction, left: Shape, right: Shape) -> float:
    """Multiplications of a convolution, those with padding left out: the compiler writes products as convolutions."""
    labels = i.attribute("dim_labels") or ""
    _, kernel, output = re.split(r"_|->", labels)
    lhs = labels.split("_")[0]
    products = float(right.dims[kernel.index("i")])  # input features a group
    for label, size in zip(output, i.shapes[0].dims):
        if not label.isdigit():
            products *= size
    window = _window(i)
    for label in sorted(set(kernel) & set("0123456789")):
        options = window.get(int(label), {})
        products *= _valid_pairs(
            left.dims[lhs.index(label)],
            right.dims[kernel.index(label)],
            i.shapes[0].dims[output.index(label)],
            options,
        )
    return products


def _window(i: Instruction) -> dict[int, dict[str, int]]:
    """window={size=2x3 pad=0_1x0_0 stride=... lhs_dilate=... rhs_dilate=...} by spatial dimension."""
    found: dict[int, dict[str, int]] = {}
    for key, text in re.findall(r"(\w+)=([\w\-]+)", i.attribute("window") or ""):
        for dimension, part in enumerate(text.split("x")):
            found.setdefault(dimension, {})[key] = int(part.split("_")[0])
    return found


def _valid_pairs(size: int, kernel: int, output: int, options: Mapping[str, int]) -> int:
    """Pairs (output position, kernel position) that meet an input element."""
    dilate = options.get("lhs_dilate", 1)
    position = (
        np.arange(output)[:, None] * options.get("stride", 1)
        - options.get("pad", 0)
        + np.arange(kernel) * options.get("rhs_dilate", 1)
    )
    inside = (position >= 0) & (position < (size - 1) * dilate + 1) & (position % dilate == 0)
    return int(inside.sum())
