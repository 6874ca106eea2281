"""What the compiler says when a program does not fit."""

import jax
import pytest

from caspo_jax.compile_check import model_shape
from caspo_jax.compile_check.chips import CHIPS
from caspo_jax.compile_check.programs import Program, _whole_cache
from caspo_jax.compile_check.report import GIB, _exhausted, _too_large

V5E = CHIPS["v5e"]


@pytest.mark.parametrize(
    "message, needed, there",
    [
        ("RESOURCE_EXHAUSTED: ... Used 20.50G of 15.75G hbm. Exceeded ...", 20.5, 15.75),
        ("... Used 512.0M of 15.75G hbm", 0.5, 15.75),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (15.95G) exceeds "
            "available HBM (15.75G).",
            3 + 15.95,  # beside the arguments
            15.75,
        ),
        ("RESOURCE_EXHAUSTED: in words that are new", 16, 16),
    ],
)
def test_sizes_are_read_from_the_compilers_message(message, needed, there):
    assert _exhausted(message, 3 * GIB, V5E) == pytest.approx((needed * GIB, there * GIB))


WHOLE = "tensor:16 does not divide the 8 KV heads"


@pytest.mark.parametrize(
    "what, arguments, whole_cache, needed, advice",
    [
        ("train", {"parameters": 6, "Adam state": 12, "batch": 0}, "", 18, "about 32 with fsdp"),
        # A half of the whole would fit; but the 9 of 16 stay.
        ("train", {"parameters": 3, "Adam state": 6, "batch": 0}, "", 24, "1/4 of them"),
        # Llama 70B, ten branches of 4,096 tokens for eight questions: on tensor:16, then two that follow from the advice.
        ("cat", {"parameters": 10.56, "KV cache": 100.63, "logits": 0.04, "tree": 0.02}, WHOLE, 161.6, WHOLE),
        (
            "cat",
            {"parameters": 16.43, "KV cache": 6.29, "logits": 0.02, "tree": 0.02},
            "",
            25.9,
            "larger fsdp",
        ),
        (
            "cat",
            {"parameters": 8.21, "KV cache": 6.29, "logits": 0.02, "tree": 0.02},
            "",
            17.68,
            "1/2 of them",
        ),
        (
            "cat",
            {"parameters": 8.21, "KV cache": 12.6, "logits": 0.04, "tree": 0.04},
            "",
            27.2,
            "1/4 of them",
        ),
    ],
)
def test_advice_for_what_does_not_fit_would_make_it_fit(what, arguments, whole_cache, needed, advice):
    sizes = {name: int(size * GIB) for name, size in arguments.items()}
    program = Program(what, None, sizes, {}, (), tokens=1, per="run", whole_cache=whole_cache)
    assert advice in _too_large(program, V5E, 16, needed * GIB, V5E.hbm_bytes)


SMALL, LARGE = {"parameters": 3, "Adam state": 6}, {"parameters": 6, "Adam state": 12}
REMAT, ADAPTERS, SPLIT = "--train.remat=full", "--lora_rank=16", "with fsdp"


@pytest.mark.parametrize(
    "held, options, needed, ways",
    [
        (SMALL, {"recomputable": True, "whole_weights": True}, 24, [REMAT, "1/4 of them"]),
        (SMALL, {"whole_weights": True}, 24, ["1/4 of them"]),
        (SMALL, {"recomputable": True, "divisible": False}, 24, [REMAT, SPLIT]),
        # The arguments alone are too much: nothing that is computed again makes them smaller.
        (LARGE, {"recomputable": True, "whole_weights": True}, 24, [SPLIT, ADAPTERS]),
        (LARGE, {"recomputable": True}, 24, [SPLIT]),
    ],
)
def test_advice_names_what_would_help_and_is_not_done_yet(held, options, needed, ways):
    sizes = {name: int(size * GIB) for name, size in held.items()}
    program = Program("train", None, sizes, {}, (), tokens=1, per="run", **options)
    said = _too_large(program, V5E, 16, needed * GIB, V5E.hbm_bytes)
    assert [way for way in (REMAT, SPLIT, ADAPTERS, "1/4 of them") if way in said] == ways


@pytest.mark.parametrize("mesh, whole", [((2, 8), ""), ((1, 16), WHOLE), ((16, 1), "")])
def test_a_tensor_axis_that_leaves_the_cache_whole_is_named(mesh, whole):
    assert _whole_cache(model_shape("qwen3-8b"), jax.sharding.AbstractMesh(mesh, ("fsdp", "tensor"))) == whole
