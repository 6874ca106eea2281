"""What one run of a compiled program costs a chip: products, HBM traffic, collectives; loops counted as often as they run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from caspo_jax.compile_check.collectives import (
    asynchronous_channels,
    channel_of,
    kind_of,
    received_bytes,
    starts,
)
from caspo_jax.compile_check.hlo import Computation, Instruction, Module, Shape
from caspo_jax.compile_check.loops import loop_length
from caspo_jax.compile_check.products import flops
from caspo_jax.compile_check.traffic import fusion_bytes, hbm_bytes, plain_bytes

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "iota", "opt-barrier", "while", "conditional", "call", "domain", "add-dependency",
}  # fmt: skip
# Parts of an op_name that say nothing of what the operation is for.
_PLUMBING = re.compile(
    r"while|body|cond|closed_call|eval_jaxpr|shard_map|branch_\d+_fun|checkpoint|rematted_computation|\w+\(.*\)|"
)


@dataclasses.dataclass
class Traffic:
    """What the collectives of one kind move in one run."""

    count: float = 0.0  # how often it runs
    bytes: float = 0.0  # that a chip receives


@dataclasses.dataclass
class Cost:
    """What one run of a program costs one chip."""

    flops: float = 0.0  # of matrix products, in bf16 passes (a full-precision float32 product takes six)
    hbm_bytes: float = 0.0  # read and written
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    # Bytes of the largest array that a loop makes anew, if only on a condition; updates in place are left out.
    largest_loop_array: int = 0
    kernels: float = 0.0  # operations that are started one by one, on a GPU
    host_waits: float = 0.0  # on a GPU: which branch is taken, and whether a loop of unknown length goes on
    assumed: dict[str, float] = dataclasses.field(default_factory=dict)  # trips the compiler does not know
    # What comes on top where a condition holds, or for one trip of a loop that is taken not to run; by what it is for.
    when_taken: dict[str, Cost] = dataclasses.field(default_factory=dict)

    @property
    def ici_bytes(self) -> float:
        """Bytes that all collectives together receive over the links."""
        return sum(kind.bytes for kind in self.collectives.values())

    def add(self, other: Cost, times: float) -> None:
        """Add another cost, `times` over."""
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        self.kernels += times * other.kernels
        self.host_waits += times * other.host_waits
        for name, kind in other.collectives.items():
            mine = self.collectives.setdefault(name, Traffic())
            mine.count += times * kind.count
            mine.bytes += times * kind.bytes
        self.largest_loop_array = max(self.largest_loop_array, other.largest_loop_array)
        self.assumed |= other.assumed
        for name, cost in other.when_taken.items():
            self.when_taken.setdefault(name, Cost()).add(cost, times)

    def made(self, sizes: Iterable[int]) -> None:
        """Note arrays of so many bytes that a loop makes anew."""
        self.largest_loop_array = max(self.largest_loop_array, *sizes, 0)

    def extra(self, purpose: str, other: Cost) -> None:
        """Add, under the name of its purpose, what comes on top in some runs only."""
        self.when_taken.setdefault(purpose, Cost()).add(other, 1.0)
        self.largest_loop_array = max(self.largest_loop_array, other.largest_loop_array)

    def beyond(self, least: Cost) -> Cost:
        """How much more this costs than `least`, which may run in its place."""
        more = Cost(max(0.0, self.flops - least.flops), max(0.0, self.hbm_bytes - least.hbm_bytes))
        for name, kind in self.collectives.items():
            other = least.collectives.get(name, Traffic())
            if kind.bytes > other.bytes:
                more.collectives[name] = Traffic(max(0.0, kind.count - other.count), kind.bytes - other.bytes)
        more.largest_loop_array = self.largest_loop_array
        return more


def program_cost(module: Module, chips: int, trips: Mapping[str, float], taken: Iterable[str] = ()) -> Cost:
    """The cost of the entry computation.

    A conditional counts as the cheapest of its branches, and what the dearest costs more stands in `when_taken`.

    Args:
      module: parsed, optimised, already partitioned.
      chips: how many run it together.
      trips: how often loops run whose length the compiler does not know, by a scope in their `op_name`.
        A loop of neither kind is counted once, and named in `assumed`. One that is taken not to run is in `when_taken`.
      taken: scopes in the `op_name` of conditionals that count as their dearest branch.
    """
    return _Walk(module, chips, trips, tuple(taken)).computation(module.entry, in_loop=False)


class _Walk:
    def __init__(self, module: Module, chips: int, trips: Mapping[str, float], taken: tuple[str, ...]):
        self._module, self._chips, self._trips, self._taken = module, chips, trips, taken
        self._asynchronous = asynchronous_channels(module)
        self._known: dict[tuple[str, bool], Cost] = {}

    def computation(self, name: str, in_loop: bool) -> Cost:
        """The cost of all instructions of a computation."""
        if (name, in_loop) not in self._known:
            cost = Cost()
            computation = self._module.computations[name]
            for instruction in computation.instructions.values():
                self._instruction(cost, computation, instruction, in_loop)
            self._known[name, in_loop] = cost
        return self._known[name, in_loop]

    def _instruction(self, cost: Cost, computation: Computation, i: Instruction, in_loop: bool) -> None:
        if i.opcode == "fusion-start":  # (operands, result, flags): on a stream of its own
            i = dataclasses.replace(i, opcode="fusion", shapes=i.shapes[len(i.operands) :])
        if i.opcode == "while":
            self._loop(cost, computation, i)
        elif i.opcode == "conditional":
            self._conditional(cost, i, in_loop)
        elif i.opcode in ("call", "async-start"):
            for name in i.called:
                cost.add(self.computation(name, in_loop), 1.0)
        elif i.opcode == "fusion":
            self._fusion(cost, computation, i, in_loop)
        elif kind_of(i) is not None:
            cost.kernels += 1
            self._collective(cost, computation, i, i.opcode)
            if in_loop:
                cost.made(_off_chip(i.shapes))
        else:
            cost.flops += flops(computation, i)
            if i.opcode in _FREE or i.opcode.endswith("-done"):
                return
            cost.kernels += 1
            cost.hbm_bytes += plain_bytes(computation, i)
            if in_loop and i.opcode not in ("dynamic-update-slice", "scatter"):
                cost.made(_off_chip(i.shapes))

    def _loop(self, cost: Cost, computation: Computation, i: Instruction) -> None:
        (name,) = [name for name in i.called if name in self._module.computations]
        body, trips = self.computation(name, in_loop=True), self._trips_of(cost, computation, i)
        if trips:
            cost.add(body, trips)
        else:
            cost.extra(_purpose(i), body)

    def _conditional(self, cost: Cost, i: Instruction, in_loop: bool) -> None:
        cost.host_waits += 1
        branches = [self.computation(name, in_loop) for name in i.called]
        branches.sort(key=lambda branch: branch.flops + branch.hbm_bytes)
        if any(scope in self._name_of(i) for scope in self._taken):
            cost.add(branches[-1], 1.0)
            return
        cost.add(branches[0], 1.0)
        more = branches[-1].beyond(branches[0])
        if more.flops or more.hbm_bytes or more.collectives:
            cost.extra(_purpose(i), more)

    def _fusion(self, cost: Cost, computation: Computation, i: Instruction, in_loop: bool) -> None:
        cost.kernels += 1
        moved: set[Shape] = set()
        for name in i.called:
            self._inside(cost, name, i, moved)
        read, written = fusion_bytes(self._module, computation, i, moved)
        cost.hbm_bytes += read + sum(written)
        if in_loop:
            cost.made([*written, *_off_chip(moved)])

    def _inside(self, cost: Cost, name: str, fusion: Instruction, moved: set[Shape]) -> None:
        """Products and collectives within a fusion; what its collectives read and write is added to `moved`."""
        computation = self._module.computations[name]
        scatters = "scatter" in fusion.name or "scatter" in name
        for i in computation.instructions.values():
            cost.flops += flops(computation, i)
            if kind_of(i) is not None:
                if starts(fusion) or channel_of(i) not in self._asynchronous:
                    opcode = "reduce-scatter" if scatters and i.opcode == "all-reduce" else i.opcode
                    self._collective(cost, computation, i, opcode)
                moved.update(i.shapes, *(computation.shapes_of(operand) for operand in i.operands))
            if i.opcode in ("fusion", "call"):
                for called in i.called:
                    self._inside(cost, called, fusion, moved)

    def _collective(self, cost: Cost, computation: Computation, i: Instruction, opcode: str) -> None:
        kind = opcode.removesuffix("-start")
        traffic = cost.collectives.setdefault(kind, Traffic())
        traffic.count += 1
        traffic.bytes += received_bytes(computation, i, kind, self._chips)
        shapes = [shape for name in i.operands for shape in computation.shapes_of(name)]
        if kind != "reduce-scatter" or opcode == i.opcode:  # else the fusion writes the part that it keeps
            results = [shape for shape in i.shapes if shape.dims]  # without flags
            # The start of an asynchronous one may give its operands back before the results.
            shapes += results[len(i.operands) :] or results
        cost.hbm_bytes += hbm_bytes(shapes)

    def _name_of(self, i: Instruction) -> str:
        """Its `op_name`, or that of something in it: the compiler drops some, and calls what it moves `conditional.1`."""
        inside = (x for name in i.called for x in self._module.computations[name].instructions.values())
        return next((x.op_name for x in (i, *inside) if "/" in x.op_name), i.op_name)

    def _trips_of(self, cost: Cost, within: Computation, i: Instruction) -> float:
        known = loop_length(self._module, within, i)
        if known is not None:
            return known
        scopes = (
            (scope, trips)
            for part in reversed(i.op_name.split("/"))  # the innermost that is known
            for scope, trips in self._trips.items()
            if scope in part
        )
        name, trips = next(scopes, (i.op_name or i.name, 1.0))
        cost.assumed[name] = trips
        cost.host_waits += max(trips, 1.0)  # asked once though it does not run
        return trips


def _off_chip(shapes: Iterable[Shape]) -> list[int]:
    """Bytes of each array that lies in HBM."""
    return [shape.bytes for shape in shapes if not shape.on_chip]


def _purpose(i: Instruction) -> str:
    """The innermost scope of an operation that has a name of its own."""
    parts = [part for part in i.op_name.split("/") if not _PLUMBING.fullmatch(part)]
    return parts[-1] if parts else i.name
