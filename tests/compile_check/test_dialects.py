"""Costs counted in programs of the TPU's and the GPU's compilers, written out by hand."""

import pytest

from caspo_jax.compile_check.cost import program_cost
from caspo_jax.compile_check.hlo import parse

# Hand-written, in the dialect of the TPU compiler.
LAYERS = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

%fused (param_0: bf16[3,64,32], param_1: s32[]) -> bf16[64,32] {
  %param_0 = bf16[3,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,64,32]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %bitcast = bf16[64,32]{1,0:T(8,128)(2,1)} bitcast(%slice)
}

%fused.1 (param_0: bf16[16,64], param_1: bf16[64,32]) -> f32[16,32] {
  %param_0 = bf16[16,64]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution = f32[16,32]{1,0:T(8,128)} convolution(%param_0, %param_1), dim_labels=bf_io->bf
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], bf16[16,64], bf16[3,64,32], f32[16,32])) -> (s32[], bf16[16,64], bf16[3,64,32], f32[16,32]) {
  %state = (s32[], bf16[16,64]{1,0}, bf16[3,64,32]{2,1,0}, /*index=3*/f32[16,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[16,64]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %w = bf16[3,64,32]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %fusion = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %i), kind=kLoop, calls=%fused
  %gathered = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%fusion), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}, use_global_device_ids=true
  %product = f32[16,32]{1,0:T(8,128)} fusion(%x, %gathered), kind=kOutput, calls=%fused.1
  %reduced = f32[16,32]{1,0:T(8,128)} all-reduce(%product), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %next = (s32[], bf16[16,64]{1,0}, bf16[3,64,32]{2,1,0}, f32[16,32]{1,0}) tuple(%i, %x, %w, %reduced)
}

%condition (state: (s32[], bf16[16,64], bf16[3,64,32], f32[16,32])) -> pred[] {
  %state = (s32[], bf16[16,64]{1,0}, bf16[3,64,32]{2,1,0}, f32[16,32]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (p: (s32[], bf16[16,64], bf16[3,64,32], f32[16,32])) -> (s32[], bf16[16,64], bf16[3,64,32], f32[16,32]) {
  %p = (s32[], bf16[16,64]{1,0}, bf16[3,64,32]{2,1,0}, f32[16,32]{1,0}) parameter(0)
  ROOT %while = (s32[], bf16[16,64]{1,0}, bf16[3,64,32]{2,1,0}, f32[16,32]{1,0}) while(%p), condition=%condition, body=%body, metadata={op_name="jit(f)/while" stack_frame_id=3}, backend_config={"known_trip_count":{"n":"3"},"flag":"x"}
}
"""


def test_a_program_of_the_tpu_dialect():
    cost = program_cost(parse(LAYERS), 4, {})
    assert cost.flops == 3 * 2 * 16 * 64 * 32
    gather, reduce = cost.collectives["all-gather"], cost.collectives["all-reduce"]
    assert gather.count == reduce.count == 3
    assert gather.bytes == 3 * 3 * (64 * 32 * 2)  # from three others
    assert reduce.bytes == 3 * 2 * (16 * 32 * 4) / 2  # groups of two
    # A slice of the stack is read and goes to VMEM; the stack itself is not read, nor the slice again.
    weights, state, product = 64 * 32 * 2, 16 * 64 * 2, 16 * 32 * 4
    sliced = weights + 4  # and the index
    gathering = 64 * 32 * 2  # written
    multiplied = state + weights + product
    reducing = 2 * product
    assert cost.hbm_bytes == 3 * (sliced + gathering + multiplied + reducing)
    assert cost.largest_loop_array == weights
    assert not cost.assumed


ASYNCHRONOUS = """\
HloModule jit_f, num_partitions=8

%start (a: bf16[2,32], out: bf16[8,32], flag: u32[]) -> (bf16[8,32], u32[]) {
  %a = bf16[2,32]{1,0} parameter(0)
  %out = bf16[8,32]{1,0} parameter(1)
  %flag = u32[] parameter(2)
  %all-gather.1 = bf16[8,32]{1,0} all-gather(%a), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
  ROOT %both = (bf16[8,32]{1,0}, u32[]) tuple(%all-gather.1, %flag)
}

%beside (a: bf16[2,32], out: bf16[8,32], flag: u32[], x: f32[16,16]) -> (bf16[8,32], f32[16,16]) {
  %a = bf16[2,32]{1,0} parameter(0)
  %out = bf16[8,32]{1,0} parameter(1)
  %flag = u32[] parameter(2)
  %x = f32[16,16]{1,0} parameter(3)
  %all-gather.2 = bf16[8,32]{1,0} all-gather(%a), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
  %product = f32[16,16]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,highest}
  ROOT %both = (bf16[8,32]{1,0}, f32[16,16]{1,0}) tuple(%all-gather.2, %product)
}

ENTRY %main (a: bf16[2,32], out: bf16[8,32], flag: u32[], x: f32[16,16]) -> (bf16[8,32], f32[16,16]) {
  %a = bf16[2,32]{1,0} parameter(0)
  %out = bf16[8,32]{1,0} parameter(1)
  %flag = u32[] parameter(2)
  %x = f32[16,16]{1,0} parameter(3)
  %async-collective-start = (bf16[8,32]{1,0}, u32[]) fusion(%a, %out, %flag), kind=kCustom, calls=%start
  %dest = bf16[8,32]{1,0} get-tuple-element(%async-collective-start), index=0
  %ready = u32[] get-tuple-element(%async-collective-start), index=1
  ROOT %second = (bf16[8,32]{1,0}, f32[16,16]{1,0}) fusion(%a, %dest, %ready, %x), kind=kCustom, calls=%beside
}
"""


def test_an_asynchronous_collective_counts_once():
    cost = program_cost(parse(ASYNCHRONOUS), 8, {})
    gather = cost.collectives["all-gather"]
    assert (gather.count, gather.bytes) == (1, 3 * 2 * 32 * 2)  # four of the eight chips take part
    assert cost.flops == 6 * 2 * 16**3  # full precision: six passes
    moved, flags, product = 2 * 32 * 2 + 8 * 32 * 2, 2 * 4, 2 * 16 * 16 * 4
    assert cost.hbm_bytes == moved + flags + product


@pytest.mark.parametrize(
    "groups, size",
    [
        ("[2,4]<=[8]", 4),
        ("{{0,1,2},{3,4,5}}", 3),
        ("mesh['x'=2,'y'=8] {'x', 'y'}", 16),
        ("mesh['x'=2,'y'=8] {'x', 'y':(2)4}", 8),  # a part of an axis
        ("{}", 64),  # all
    ],
)
def test_groups_are_read_in_every_spelling(groups, size):
    gather = f"%g = bf16[8]{{0}} all-gather(%a), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    text = f"HloModule m\n\nENTRY %main (a: bf16[1]) -> bf16[8] {{\n  %a = bf16[1]{{0}} parameter(0)\n  ROOT {gather}\n}}\n"
    assert program_cost(parse(text), 64, {}).collectives["all-gather"].bytes == 2 * (size - 1)


def test_a_module_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule x\n")


# A gather that is started, carried on beside the products of an inner loop, and ended.
ACROSS_A_LOOP = """\
HloModule jit_f, num_partitions=8

%start (a: bf16[2,32]) -> (bf16[2,32], bf16[16,32], u32[]) {
  %a = bf16[2,32]{1,0} parameter(0)
  %all-gather.1 = bf16[16,32]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  %flag = u32[]{:S(2)} constant(0)
  ROOT %both = (bf16[2,32]{1,0}, bf16[16,32]{1,0}, u32[]{:S(2)}) tuple(%a, %all-gather.1, %flag)
}

%beside (a: bf16[2,32], out: bf16[16,32], x: bf16[16,16]) -> (bf16[16,16], bf16[2,32], bf16[16,32]) {
  %a = bf16[2,32]{1,0} parameter(0)
  %out = bf16[16,32]{1,0} parameter(1)
  %x = bf16[16,16]{1,0} parameter(2)
  %all-gather.2 = bf16[16,32]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
  %product = bf16[16,16]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %all = (bf16[16,16]{1,0}, bf16[2,32]{1,0}, bf16[16,32]{1,0}) tuple(%product, %a, %all-gather.2)
}

%end (a: bf16[2,32], out: bf16[16,32]) -> bf16[16,32] {
  %a = bf16[2,32]{1,0} parameter(0)
  %out = bf16[16,32]{1,0} parameter(1)
  ROOT %all-gather.3 = bf16[16,32]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}

%body (state: (bf16[16,16], bf16[2,32], bf16[16,32])) -> (bf16[16,16], bf16[2,32], bf16[16,32]) {
  %state = (bf16[16,16]{1,0}, bf16[2,32]{1,0}, bf16[16,32]{1,0}) parameter(0)
  %x = bf16[16,16]{1,0} get-tuple-element(%state), index=0
  %a = bf16[2,32]{1,0} get-tuple-element(%state), index=1
  %out = bf16[16,32]{1,0} get-tuple-element(%state), index=2
  ROOT %fusion.4 = (bf16[16,16]{1,0}, bf16[2,32]{1,0}, bf16[16,32]{1,0}) fusion(%a, %out, %x), kind=kCustom, calls=%beside
}

%condition (state: (bf16[16,16], bf16[2,32], bf16[16,32])) -> pred[] {
  %state = (bf16[16,16]{1,0}, bf16[2,32]{1,0}, bf16[16,32]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (a: bf16[2,32], x: bf16[16,16]) -> bf16[16,32] {
  %a = bf16[2,32]{1,0} parameter(0)
  %x = bf16[16,16]{1,0} parameter(1)
  %async-collective-start.1 = (bf16[2,32]{1,0}, bf16[16,32]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start
  %source = bf16[2,32]{1,0} get-tuple-element(%async-collective-start.1), index=0
  %dest = bf16[16,32]{1,0} get-tuple-element(%async-collective-start.1), index=1
  %state = (bf16[16,16]{1,0}, bf16[2,32]{1,0}, bf16[16,32]{1,0}) tuple(%x, %source, %dest)
  %while = (bf16[16,16]{1,0}, bf16[2,32]{1,0}, bf16[16,32]{1,0}) while(%state), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"36"}}
  %last = bf16[2,32]{1,0} get-tuple-element(%while), index=1
  %gathered = bf16[16,32]{1,0} get-tuple-element(%while), index=2
  ROOT %async-collective-done.1 = bf16[16,32]{1,0} fusion(%last, %gathered), kind=kCustom, calls=%end
}
"""


def test_a_collective_that_runs_beside_a_loop_counts_once():
    cost = program_cost(parse(ACROSS_A_LOOP), 8, {})
    gather = cost.collectives["all-gather"]
    assert (gather.count, gather.bytes) == (1, 7 * 2 * 32 * 2)
    assert cost.flops == 36 * 2 * 16**3
    assert cost.hbm_bytes == (2 * 32 + 16 * 32) * 2 + 36 * 2 * (16 * 16 * 2)


GPU = """\
HloModule jit_f

%cut (stack: bf16[6,8,32], at: s32[]) -> bf16[1,8,32] {
  %stack = bf16[6,8,32]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,8,32]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero), dynamic_slice_sizes={1,8,32}
}

%body (state: (bf16[6,8,32], s32[], pred[])) -> (bf16[6,8,32], s32[], pred[]) {
  %state = (bf16[6,8,32]{2,1,0}, s32[], pred[]) parameter(0)
  %stack = bf16[6,8,32]{2,1,0} get-tuple-element(%state), index=0
  %at = s32[] get-tuple-element(%state), index=1
  %on = pred[] get-tuple-element(%state), index=2
  %fusion-start = ((bf16[6,8,32]{2,1,0}, s32[]), bf16[1,8,32]{2,1,0}, u32[]) fusion-start(%stack, %at), kind=kLoop, calls=%cut
  %fusion-done = bf16[1,8,32]{2,1,0} fusion-done(%fusion-start)
  ROOT %tuple = (bf16[6,8,32]{2,1,0}, s32[], pred[]) tuple(%stack, %at, %on)
}

%on (state: (bf16[6,8,32], s32[], pred[])) -> pred[] {
  %state = (bf16[6,8,32]{2,1,0}, s32[], pred[]) parameter(0)
  ROOT %goes = pred[] get-tuple-element(%state), index=2
}

ENTRY %main (stack: bf16[6,8,32], at: s32[], goes: pred[]) -> (bf16[6,8,32], s32[], pred[]) {
  %stack = bf16[6,8,32]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %goes = pred[] parameter(2)
  %tuple = (bf16[6,8,32]{2,1,0}, s32[], pred[]) tuple(%stack, %at, %goes)
  ROOT %while = (bf16[6,8,32]{2,1,0}, s32[], pred[]) while(%tuple), condition=%on, body=%body, metadata={op_name="jit(f)/search/while"}
}
"""


def test_on_a_gpu_copies_of_slices_and_waits_for_the_host_are_counted():
    """A fusion on a stream of its own copies one layer; the loop's end is a value that only the device knows."""
    cost = program_cost(parse(GPU), 1, {"search": 3.0})
    layer = 8 * 32 * 2
    assert cost.hbm_bytes == 3 * (2 * layer + 4)  # and the index
    assert (cost.kernels, cost.host_waits) == (3, 3)
    assert cost.largest_loop_array == layer
