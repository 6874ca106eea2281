"""Calls of a model outside of `jax.jit`: one compiled program for each shape, kept for the next call."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

P = ParamSpec("P")
R = TypeVar("R")


class Pure(nnx.Module):
    """A module whose calls change nothing in it: a compiled program may take its arrays as arguments."""


def compiled_when_eager(*settings: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function of a model (its first argument): outside of a trace, it runs as one program.

    Outside of `jit`, JAX finds the compiled program of a `lax.scan` again by the function that is its body,
    and every pass through a model makes new functions: without this, each call would compile its loops anew
    and keep the programs. In a trace, and with a model that is not `Pure`, the function is called as it
    stands.

    Args:
      settings: the names of arguments that are neither arrays nor records of arrays; they must be hashable.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.partial(jax.jit, static_argnames=("graphdef", "static"))
        def program(graphdef: Any, state: Any, arrays: dict[str, Any], static: tuple[Any, ...]) -> R:
            return function(nnx.merge(graphdef, state), **arrays, **dict(static))  # type: ignore[call-arg]

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            (_, model), *given = signature.bind(*args, **kwargs).arguments.items()
            if not isinstance(model, Pure):
                return function(*args, **kwargs)
            graphdef, state = nnx.split(model)
            arrays = {name: value for name, value in given if name not in settings and value is not None}
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, arrays))):
                return function(*args, **kwargs)
            static = tuple(item for item in given if item[0] in settings)
            whole = {n: x if dataclasses.is_dataclass(x) else jnp.asarray(x) for n, x in arrays.items()}
            return program(graphdef, state, whole, static)

        return call

    return decorate
