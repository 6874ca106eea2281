"""Functions of a model that are called outside of a trace: one compiled program a shape, kept for the next call."""

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
    """A module whose calls change nothing in it: a program may be handed its arrays and keep the rest."""


def compiled_when_eager(*settings: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function of a model: where no argument is traced, it runs as one program.

    JAX knows a loop again by the function that it runs, and every pass through a model makes new ones: left to itself,
    each call outside of a trace compiles its loops anew, and keeps them. In a trace, and with a model that is not
    `Pure`, the function is called as it stands.

    Args:
      settings: the names of the arguments that are no arrays, nor records of arrays; they must be hashable. The first
        argument is the model.
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
