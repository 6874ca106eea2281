"""Bytes that instructions move: of what they slice or update in place, the slice alone."""

from caspo_jax.compile_check.cost import program_cost
from caspo_jax.compile_check.hlo import parse

# A layer's part of a stacked cache is sliced inside of the fusion of a product, as the TPU compiler nests it.
NESTED = """\
HloModule jit_f

%layer_of (stack: bf16[6,8,32,16], at: s32[]) -> bf16[8,32,16] {
  %stack = bf16[6,8,32,16]{3,2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,8,32,16]{3,2,1,0} dynamic-slice(%stack, %at, %zero, %zero, %zero), dynamic_slice_sizes={1,8,32,16}
  ROOT %bitcast = bf16[8,32,16]{2,1,0} bitcast(%slice)
}

%widened (stack: bf16[6,8,32,16], at: s32[]) -> f32[8,32,16] {
  %stack = bf16[6,8,32,16]{3,2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %wide = f32[6,8,32,16]{3,2,1,0} convert(%stack)
  %slice = f32[1,8,32,16]{3,2,1,0} dynamic-slice(%wide, %at, %zero, %zero, %zero), dynamic_slice_sizes={1,8,32,16}
  ROOT %bitcast = f32[8,32,16]{2,1,0} bitcast(%slice)
}

%scores (stack: bf16[6,8,32,16], at: s32[], q: bf16[8,4,16]) -> f32[8,4,32] {
  %stack = bf16[6,8,32,16]{3,2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %q = bf16[8,4,16]{2,1,0} parameter(2)
  %keys = bf16[8,32,16]{2,1,0} fusion(%stack, %at), kind=kLoop, calls=%layer_of
  ROOT %dot = f32[8,4,32]{2,1,0} dot(%q, %keys), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={2}
}

%put (stack: bf16[6,8,32,16], new: bf16[1,8,1,16], at: s32[]) -> bf16[6,8,32,16] {
  %stack = bf16[6,8,32,16]{3,2,1,0} parameter(0)
  %new = bf16[1,8,1,16]{3,2,1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %update = bf16[6,8,32,16]{3,2,1,0} dynamic-update-slice(%stack, %new, %at, %zero, %at, %zero)
}

%put_deep (stack: bf16[6,8,32,16], new: bf16[1,8,1,16], at: s32[]) -> bf16[6,8,32,16] {
  %stack = bf16[6,8,32,16]{3,2,1,0} parameter(0)
  %new = bf16[1,8,1,16]{3,2,1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %inner = bf16[6,8,32,16]{3,2,1,0} fusion(%stack, %new, %at), kind=kLoop, calls=%put
}

ENTRY %main (stack: bf16[6,8,32,16], at: s32[], q: bf16[8,4,16], new: bf16[1,8,1,16]) -> f32[] {
  %stack = bf16[6,8,32,16]{3,2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %q = bf16[8,4,16]{2,1,0} parameter(2)
  %new = bf16[1,8,1,16]{3,2,1,0} parameter(3)
  ROOT %INSTRUCTION
}
"""
STACK, LAYER, COLUMN = 2 * 6 * 8 * 32 * 16, 2 * 8 * 32 * 16, 2 * 8 * 16
QUERIES, SCORES, INDEX = 2 * 8 * 4 * 16, 4 * 8 * 4 * 32, 4


def moved(instruction):
    return program_cost(parse(NESTED.replace("%INSTRUCTION", instruction)), 1, {}).hbm_bytes


def test_a_slice_deep_in_a_fusion_is_all_that_is_read():
    whole = moved("%f = f32[8,4,32]{2,1,0} fusion(%stack, %at, %q), kind=kOutput, calls=%scores")
    assert whole == LAYER + INDEX + QUERIES + SCORES
    # Read as it is stored, widened on the way, written as it comes out.
    wide = moved("%f = f32[8,32,16]{2,1,0} fusion(%stack, %at), kind=kLoop, calls=%widened")
    assert wide == LAYER + INDEX + 2 * LAYER


def test_an_update_deep_in_a_fusion_is_all_that_is_written():
    fusion = "%f = bf16[6,8,32,16]{3,2,1,0} fusion(%stack, %new, %at), kind=kLoop, calls=%"
    assert moved(fusion + "put") == moved(fusion + "put_deep") == COLUMN + INDEX + COLUMN


def test_instructions_outside_of_fusions():
    assert moved("%c = bf16[6,8,32,16]{3,2,1,0} copy(%stack)") == 2 * STACK
    assert moved("%s = bf16[1,8,32,16]{3,2,1,0} dynamic-slice(%stack, %at, %at, %at, %at)") == 2 * LAYER
    assert moved("%s = bf16[1,8,32,16]{3,2,1,0:S(1)} dynamic-slice(%stack, %at, %at, %at, %at)") == LAYER
    assert (
        moved("%u = bf16[6,8,32,16]{3,2,1,0} dynamic-update-slice(%stack, %new, %at, %at, %at, %at)")
        == 2 * COLUMN
    )
    assert moved("%u = bf16[6,8,32,16]{3,2,1,0} scatter(%stack, %at, %new), to_apply=%put") == 2 * COLUMN


def test_copies_between_memories_cost_their_side_in_hbm():
    array, chip = "bf16[6,8,32,16]{3,2,1,0}", "bf16[6,8,32,16]{3,2,1,0:S(1)}"
    assert moved(f"%c = ({chip}, {array}, u32[]) copy-start(%stack)") == STACK
    assert moved(f"%c = ({array}, {array}, u32[]) copy-start(%stack)") == 2 * STACK
    part = "bf16[1,8,32,16]{3,2,1,0:S(1)}"
    assert (
        moved(f"%c = ({array}, {part}, s32[]) slice-start(%stack), slice={{[0:1], [0:8], [0:32], [0:16]}}")
        == LAYER
    )
