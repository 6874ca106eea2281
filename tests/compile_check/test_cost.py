"""Costs counted in compiled programs against what is known of the programs."""

import re

import jax
import jax.numpy as jnp

from caspo_jax.compile_check.cost import program_cost
from caspo_jax.compile_check.hlo import parse


def compiled(function, *shapes):
    return (
        jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile().as_text()
    )


def flops(text, trips=None):
    return program_cost(parse(text), 1, trips or {}).flops


def test_products_in_loops_are_counted_as_often_as_they_run():
    def chain(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    assert flops(compiled(chain, (16, 32), (7, 32, 32))) == 7 * 2 * 16 * 32 * 32


def test_loops_of_unknown_length_take_the_given_one():
    def power(x, w, n):
        with jax.named_scope("repeated_product"):
            return jax.lax.fori_loop(0, n.astype(jnp.int32), lambda _, x: jnp.tanh(x @ w), x)

    text = compiled(power, (16, 32), (32, 32), ())
    once = 2 * 16 * 32 * 32
    assert flops(text, {"repeated_product": 5.0}) == 5 * once
    cost = program_cost(parse(text), 1, {})
    assert cost.flops == once
    assert list(cost.assumed.values()) == [1.0]


def test_a_conditional_counts_as_its_cheapest_branch_and_the_rest_is_named():
    def branches(x, small, large, which):
        with jax.named_scope("choice"):
            return jax.lax.cond(which > 0, lambda: x @ small @ small.T, lambda: x @ large @ large.T)

    text = compiled(branches, (8, 16), (16, 4), (16, 64), ())
    small, large = (2 * 2 * 8 * 16 * width for width in (4, 64))
    cost = program_cost(parse(text), 1, {})
    assert cost.flops == small
    assert cost.when_taken["choice"].flops == large - small
    assert cost.when_taken["choice"].hbm_bytes > 0
    dear = program_cost(parse(text), 1, {}, taken=["choice"])
    assert dear.flops == large
    assert not dear.when_taken
    assert dear.hbm_bytes == cost.hbm_bytes + cost.when_taken["choice"].hbm_bytes
    # The TPU's compiler gives a conditional that it rewrites a name of its own; what is in it keeps the scope.
    renamed = re.sub(r'(conditional\(.*op_name=")[^"]*', r"\1conditional.1", text)
    assert renamed != text
    assert program_cost(parse(renamed), 1, {}, taken=["choice"]) == dear


def test_what_is_conditional_in_a_loop_counts_once_a_trip():
    def maybe(x, weights, which):
        def step(x, w):
            return jax.lax.cond(jnp.sum(x) > which, lambda: jnp.tanh(x @ w), lambda: x), None

        with jax.named_scope("maybe"):
            return jax.lax.scan(step, x, weights)[0]

    cost = program_cost(parse(compiled(maybe, (8, 16), (5, 16, 16), ())), 1, {})
    assert cost.flops == 0
    assert cost.when_taken["maybe"].flops == 5 * 2 * 8 * 16 * 16
    assert cost.largest_loop_array >= 8 * 16 * 4  # of the product, though it may never be made


def test_a_loop_taken_not_to_run_is_named_with_the_cost_of_a_trip():
    def power(x, w, n):
        with jax.named_scope("repeated_product"):
            return jax.lax.fori_loop(0, n.astype(jnp.int32), lambda _, x: jnp.tanh(x @ w), x)

    cost = program_cost(parse(compiled(power, (16, 32), (32, 32), ())), 1, {"repeated_product": 0.0})
    assert cost.flops == 0
    assert cost.when_taken["repeated_product"].flops == 2 * 16 * 32 * 32


def test_loops_of_known_length_do_not_ask_the_host_and_conditionals_do():
    def chain(x, weights, which):
        def step(x, w):
            return jax.lax.cond(which > 0, lambda: jnp.tanh(x @ w), lambda: x), None

        return jax.lax.scan(step, x, weights)[0]

    cost = program_cost(parse(compiled(chain, (16, 32), (7, 32, 32), ())), 1, {})
    assert cost.host_waits == 7
