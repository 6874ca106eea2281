"""How often loops run, read from their text."""

import jax
import jax.numpy as jnp
import pytest

from caspo_jax.compile_check.hlo import parse
from caspo_jax.compile_check.loops import loop_length

# The dialect of the TPU compiler, which notes no trip count where it has unrolled a loop itself.
LOOP = """\
HloModule jit_f

{fused}
%body (state: (u32[], f32[8])) -> (u32[], f32[8]) {{
  %state = (u32[], f32[8]{{0}}) parameter(0)
  %i = u32[]{{:T(128)S(6)}} get-tuple-element(%state), index=0
  %x = f32[8]{{0}} get-tuple-element(%state), index=1
  %one = u32[] constant(1)
  %two = u32[] constant(2)
  {step}
  ROOT %next_state = (u32[], f32[8]{{0}}) tuple(%next, %x)
}}

%condition (state: (u32[], f32[8])) -> pred[] {{
  %state = (u32[], f32[8]{{0}}) parameter(0)
  %i = u32[] get-tuple-element(%state), index=0
  %limit = u32[] constant({limit})
  ROOT %go = pred[] compare(%i, %limit), direction=LT
}}

ENTRY %main (x: f32[8], n: u32[]) -> (u32[], f32[8]) {{
  %x = f32[8]{{0}} parameter(0)
  %n = u32[] parameter(1)
  %first = u32[] constant({first})
  %from = (u32[], f32[8]{{0}}) tuple(%{start}, %x)
  ROOT %while = (u32[], f32[8]{{0}}) while(%from), condition=%condition, body=%body
}}
"""
FUSED = """\
%add_three (i: u32[], by: u32[]) -> u32[] {
  %i = u32[] parameter(0)
  %by = u32[] parameter(1)
  %one = u32[] constant(1)
  %once = u32[] add(%one, %i)
  ROOT %twice = u32[] add(%once, %by)
}
"""


def length(step, *, limit=8, first=0, start="first"):
    module = parse(LOOP.format(step=step, limit=limit, first=first, start=start, fused=FUSED))
    entry = module.computations[module.entry]
    return loop_length(module, entry, entry.instructions["while"])


@pytest.mark.parametrize(
    "step, trips",
    [
        ("%next = u32[] add(%i, %one)", 8),
        ("%next = u32[] add(%two, %i)", 4),
        ("%once = u32[] add(%i, %one)\n  %next = u32[] add(%once, %two)", 3),
        ("%next = u32[] fusion(%i, %two), kind=kLoop, calls=%add_three", 3),
        ("%copied = u32[] copy(%i)\n  %next = u32[] add(%copied, %two)", 4),
        ("%next = u32[] multiply(%i, %two)", None),
        ("%next = u32[] add(%i, %i)", None),
        ("%next = u32[] copy(%i)", None),
    ],
)
def test_the_step_counts(step, trips):
    assert length(step) == trips


def test_the_start_counts():
    assert length("%next = u32[] add(%i, %two)", limit=9, first=2) == 4
    assert length("%next = u32[] add(%i, %one)", limit=2, first=3) == 0
    assert length("%next = u32[] add(%i, %one)", start="n") is None


def test_of_compiled_programs():
    def program(x, n):
        x = jax.lax.fori_loop(3, 20, lambda _, x: jnp.sin(x) @ x, x)
        return jax.lax.fori_loop(n, 20, lambda _, x: jnp.cos(x) @ x, x)

    shapes = (jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    module = parse(jax.jit(program).lower(*shapes).compile().as_text())
    lengths = [
        loop_length(module, computation, i)
        for computation in module.computations.values()
        for i in computation.instructions.values()
        if i.opcode == "while"
    ]
    assert sorted(lengths, key=str) == [17, None]
