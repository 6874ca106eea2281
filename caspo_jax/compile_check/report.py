"""Compiles a program ahead of time and says what it needs of the chip: memory, work, collectives, the roofline's time."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import jax

from caspo_jax.compilation import compiled_anew
from caspo_jax.compile_check.chips import Chip
from caspo_jax.compile_check.cost import Cost, program_cost
from caspo_jax.compile_check.hlo import parse
from caspo_jax.compile_check.programs import Program
from caspo_jax.errors import UserError

GIB = 2**30
_SCHEMA = {"name": "compile_check", "version": 1}
# Arguments of a search that fewer questions or branches make smaller.
_BY_ROWS = ("KV cache", "logits", "tree")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of HBM that a program takes on one chip."""

    arguments: int  # with those that the program does not read
    temporaries: int
    output: int
    aliased: int  # of the output: written into the arguments' buffers
    code: int

    @property
    def peak(self) -> int:
        """Bytes that must fit at once."""
        return self.arguments + self.temporaries + self.output - self.aliased + self.code


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds that a run takes at the chip's published rates, by what takes them."""

    compute: float
    hbm: float
    ici: float

    @classmethod
    def of(cls, cost: Cost, chip: Chip) -> Roofline:
        """The times of a cost at a chip's peak rates."""
        return cls(
            compute=cost.flops / chip.flops,
            hbm=cost.hbm_bytes / chip.hbm_bandwidth,
            ici=cost.ici_bytes / chip.ici_bandwidth,
        )

    @property
    def overlapped(self) -> float:
        """Seconds if the three overlap perfectly: nothing can be faster."""
        return max(self.compute, self.hbm, self.ici)

    @property
    def serial(self) -> float:
        """Seconds if the three run one after another, each at its peak rate."""
        return self.compute + self.hbm + self.ici

    @property
    def bound(self) -> str:
        """The name of the longest of the three."""
        return max(("compute", "hbm", "ici"), key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Check:
    """A compiled program on a topology."""

    program: Program
    chip: Chip
    chips: int
    memory: Memory
    cost: Cost
    roofline: Roofline
    compile_seconds: float
    text: str  # the compiled program

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        roofline = {name: getattr(self.roofline, name) for name in ("compute", "hbm", "ici")}
        per = self.program.per.replace("-", "_")
        return {
            "schema": _SCHEMA,
            "what": self.program.what,
            "chip": self.chip.name,
            "chips": self.chips,
            "hbm_bytes_a_chip": dataclasses.asdict(self.memory) | {"peak": self.memory.peak},
            "hbm_capacity": self.chip.hbm_bytes,
            "arguments": dict(self.program.arguments),
            "while_growing": self.memory.arguments + self.program.growing,
            f"flops_a_chip_{per}": self.cost.flops,
            f"hbm_traffic_a_chip_{per}": self.cost.hbm_bytes,
            "collectives": {k: dataclasses.asdict(v) for k, v in sorted(self.cost.collectives.items())},
            **(
                {"kernels": self.cost.kernels, "host_waits": self.cost.host_waits}
                if self.chip.platform == "gpu"
                else {}
            ),
            "largest_loop_array": self.cost.largest_loop_array,
            "assumed_trips": self.cost.assumed,
            "when_taken": {
                name: {"flops": more.flops, "hbm_bytes": more.hbm_bytes, "ici_bytes": more.ici_bytes}
                for name, more in sorted(self.cost.when_taken.items())
            },
            "roofline_seconds": roofline
            | {"overlapped": self.roofline.overlapped, "serial": self.roofline.serial},
            "bound": self.roofline.bound,
            "tokens_a_second": self.program.tokens / self.roofline.overlapped,
            "compile_seconds": self.compile_seconds,
        }


def check(program: Program, chip: Chip, chips: int) -> Check:
    """Compile a program for chips that are not there.

    Raises:
      UserError: the arguments alone, or what the compiler needs in all, do not fit the chip.
    """
    needed = sum(program.arguments.values()) + program.growing
    if needed > chip.hbm_bytes:
        raise UserError(_too_large(program, chip, chips, needed, chip.hbm_bytes))
    started = time.perf_counter()
    try:
        with compiled_anew():
            compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(_too_large(program, chip, chips, *_exhausted(str(error), needed, chip))) from error
    seconds = time.perf_counter() - started
    analysis = compiled.memory_analysis()
    memory = Memory(
        arguments=analysis.argument_size_in_bytes + program.unread,
        temporaries=analysis.temp_size_in_bytes,
        output=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )
    if memory.peak > chip.hbm_bytes:
        raise UserError(_too_large(program, chip, chips, memory.peak, chip.hbm_bytes))
    text = compiled.as_text()
    cost = program_cost(parse(text), chips, program.trips, program.taken)
    return Check(program, chip, chips, memory, cost, Roofline.of(cost, chip), seconds, text)


def _exhausted(message: str, arguments: float, chip: Chip) -> tuple[float, float]:
    """(bytes needed, bytes there are) in the words of the compiler, which has several; of others, what is known."""
    size = r"([\d.]+)([KMG])"
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    for pattern, beside in (
        (rf"Used {size} of {size} hbm", 0.0),
        (rf"temporaries \({size}\) exceeds available HBM \({size}\)", arguments),
    ):
        found = re.search(pattern, message)
        if found:
            wanted, limit = (float(found[i]) * units[found[i + 1]] for i in (1, 3))
            return wanted + beside, limit
    return max(arguments, chip.hbm_bytes), chip.hbm_bytes


def _too_large(program: Program, chip: Chip, chips: int, needed: float, limit: float) -> str:
    rest = needed - sum(program.arguments.values())
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in program.arguments.items())
    if rest > 0:
        parts += f", all else {rest / GIB:.2f}"
    return (
        f"{program.what}: too large for {chips} {chip.name}: it needs {needed / GIB:.2f} GiB a chip of "
        f"{limit / GIB:.2f} ({parts}). {_suggestion(program, chip, chips, needed)}"
    )


def _suggestion(program: Program, chip: Chip, chips: int, needed: float) -> str:
    """A sentence that says what to change so that the program fits."""
    train = program.what == "train"
    held = sum(size for name, size in program.arguments.items() if train or name not in _BY_ROWS)
    recompute = (
        "let the backward pass compute layers again (--train.remat=full)" if program.recomputable else ""
    )
    crowded = held > 0.8 * chip.hbm_bytes
    if train and (crowded or not program.divisible):
        first = "" if crowded else recompute  # no less is held by it
        more = _power(needed / (0.9 * chip.hbm_bytes)) * chips
        ways = [first, f"split the parameters over more chips: about {more} with fsdp would hold them"]
        if program.whole_weights:
            ways.append("train adapters alone (--lora_rank=16)")
        return _sentence(ways)
    if crowded:
        return "Split the parameters further: a larger fsdp axis, or tensor as far as it divides the KV heads"
    if program.whole_cache:
        return (
            f"{program.whole_cache}, so each chip of this axis holds the whole KV cache: choose a tensor axis that does, and "
            "a larger fsdp axis beside it"
        )
    # What is held stays, whatever is done at once.
    factor = _power((needed - held) / (0.9 * chip.hbm_bytes - held))
    if train:
        rows = f"take fewer rows a batch (--rows, 1/{factor} of them in each of more micro-batches)"
        return _sentence([recompute, rows, "take more chips"])
    return f"Take fewer questions or branches at once (1/{factor} of them), a lower --max_new_tokens, or more chips"


def _sentence(ways: list[str]) -> str:
    """The ways that there are, joined by commas and a last `or`."""
    *others, last = filter(None, ways)
    said = f"{', '.join(others)}, or {last}" if others else last
    return said[0].upper() + said[1:]


def _power(ratio: float) -> int:
    """The least power of two, 2 or more, that is no smaller than the ratio."""
    return max(2, 2 ** math.ceil(math.log2(ratio)))


def table(result: Check) -> str:
    """The check as text for people, a line a figure."""
    memory, cost, roofline = result.memory, result.cost, result.roofline
    per = f"{'an' if result.program.per[0] in 'aiu' else 'a'} {result.program.per}"
    rows: list[tuple[str, str]] = [
        ("compiled in", f"{result.compile_seconds:.0f} s for {result.chips} {result.chip.name} chips"),
        *((f"argument: {name}", _gib(size)) for name, size in result.program.arguments.items()),
        ("arguments", _gib(memory.arguments)),
        ("temporaries", _gib(memory.temporaries)),
        ("output", f"{_gib(memory.output)}, {_gib(memory.aliased)} of it in the arguments' buffers"),
        ("program", _gib(memory.code)),
        (
            "HBM a chip",
            f"{_gib(memory.peak)} of {result.chip.hbm_bytes / GIB:.0f} GiB: fits",
        ),
        *(
            [("while buffers double", _gib(memory.arguments + result.program.growing))]
            if result.program.growing
            else []
        ),
        (f"products {per}", f"{cost.flops / 1e12:.3g} TFLOP a chip"),
        (f"HBM traffic {per}", f"{cost.hbm_bytes / 1e9:.4g} GB a chip"),
    ]
    for name, kind in sorted(cost.collectives.items()):
        rows.append((name, f"{kind.count:,.0f} times, {kind.bytes / 1e9:.4g} GB into a chip"))
    if result.chip.platform == "gpu":
        rows.append((f"kernels {per}", f"{cost.kernels:,.0f}, and {cost.host_waits:,.0f} waits for the host"))
    rows += [
        ("largest array made in a loop", _gib(cost.largest_loop_array)),
        (
            f"least time {per}",
            f"{_ms(roofline.overlapped)} ({roofline.bound} bound; products {_ms(roofline.compute)}, HBM "
            f"{_ms(roofline.hbm)}, links {_ms(roofline.ici)}; one after another {_ms(roofline.serial)})",
        ),
        ("at most", f"{result.program.tokens / roofline.overlapped:,.0f} tokens a second"),
    ]
    for name, more in sorted(cost.when_taken.items()):
        least = Roofline.of(more, result.chip)
        rows.append(
            (
                f"when taken: {name}",
                f"{_ms(least.overlapped)} more ({least.bound}): {more.flops / 1e12:.3g} TFLOP, "
                f"{more.hbm_bytes / 1e9:.3g} GB of HBM, {more.ici_bytes / 1e9:.3g} GB over the links",
            )
        )
    if cost.assumed:
        listed = ", ".join(f"{name} {trips:g}" for name, trips in sorted(cost.assumed.items()))
        rows.append(("loops taken to run", f"{listed} times"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.005 * GIB else f"{size / 2**20:.2f} MiB"


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"
