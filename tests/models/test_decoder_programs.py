"""The decoder's programs: of one size at any depth, with products of the precision that was asked for."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from caspo_jax.models import Decoder
from tests.models.test_decoder import tiny


def lowered(layers, dtype=jnp.float32, decode=False) -> str:
    abstract = nnx.eval_shape(lambda: Decoder(tiny(layers), dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract)
    ids = jax.ShapeDtypeStruct((2, 6), jnp.int32)

    def run(params, ids):
        model = nnx.merge(graphdef, params)
        if not decode:
            return model(ids)
        _, cache = model.prefill(ids, jnp.ones(ids.shape, bool), 8)
        return model.decode_step(cache, ids[:, 0], ids[:, 0], jnp.int32(0))[0]

    return jax.jit(run).lower(params, ids).as_text()


@pytest.mark.parametrize("decode", [False, True])
def test_program_does_not_grow_with_depth(decode):
    assert lowered(2, decode=decode).count("\n") == lowered(24, decode=decode).count("\n")


def loop_size(layers) -> int:
    """Instructions of the compiled decode step."""
    model = Decoder(tiny(layers), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    _, cache = model.prefill(jnp.ones((2, 6), jnp.int32), jnp.ones((2, 6), bool), 8)
    ids = jnp.zeros(2, jnp.int32)
    step = jax.jit(lambda params, *args: nnx.merge(graphdef, params).decode_step(*args))
    return step.lower(params, cache, ids, ids, jnp.int32(0)).compile().as_text().count(" = ")


def test_compiled_decode_step_does_not_grow_with_depth():
    assert loop_size(2) == loop_size(8)


def test_float32_asks_for_full_precision_in_every_product():
    program = lowered(2, decode=True)
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 21  # 7 matrices, scores and mix (decoding: prompt and rows), and the head; twice
    assert all("[HIGHEST, HIGHEST]" in line for line in products)


def test_bfloat16_multiplies_bf16_into_float32_logits_and_scores():
    program = lowered(2, dtype=jnp.bfloat16, decode=True)
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert all("bf16" in line and "HIGHEST" not in line for line in products)
    into_float32 = [line for line in products if line.rstrip().endswith("xf32>")]
    assert (
        len(into_float32) == 7
    )  # scores and mix, of prefill and of decoding (prompt and rows), and the head
