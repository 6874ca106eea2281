"""Collectives of a compiled program: which there are, who takes part, and what a chip receives."""

from __future__ import annotations

import re

import numpy as np

from caspo_jax.compile_check.hlo import Computation, Instruction, Module

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# The compiler's name of the fusion that starts a collective which then runs beside other work.
_START = "async-collective-start"


def kind_of(i: Instruction) -> str | None:
    """Which collective it is, if it is one and not the end of one."""
    kind = i.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def channel_of(i: Instruction) -> str | None:
    """The channel that a collective talks on: the instructions that are parts of one collective share it."""
    found = re.search(r"\bchannel_id=(\d+)", i.attributes)
    return found[1] if found else None


def starts(fusion: Instruction) -> bool:
    """Whether a fusion starts an asynchronous collective."""
    return fusion.name.startswith(_START)


def asynchronous_channels(module: Module) -> frozenset[str]:
    """Channels of collectives that a fusion starts, others carry on beside their own work, and one more ends.

    All of those fusions name the collective, also those inside of a loop that it merely runs beside; it runs once for each
    time that it is started.
    """
    return frozenset(
        channel
        for computation in module.computations.values()
        for fusion in computation.instructions.values()
        if fusion.opcode == "fusion" and starts(fusion)
        for name in fusion.called
        for i in module.computations[name].instructions.values()
        if kind_of(i) is not None and (channel := channel_of(i)) is not None
    )


def received_bytes(computation: Computation, i: Instruction, kind: str, chips: int) -> float:
    """What a chip receives in one run; an all-reduce is a scatter and a gather."""
    size = group_size(i, chips)
    operands = sum(shape.bytes for name in i.operands for shape in computation.shapes_of(name))
    others = (size - 1) / size
    return {
        "all-gather": operands * (size - 1.0),
        "all-reduce": 2 * operands * others,
        "collective-permute": float(operands),
        "collective-broadcast": float(operands),
    }.get(kind, operands * others)


def group_size(i: Instruction, chips: int) -> int:
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
