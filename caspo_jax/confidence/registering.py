"""Names of registered functions: one may be given again, but only for the same function.

A notebook's cell that is run twice registers an equal function anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType, ModuleType
from typing import Any

from caspo_jax.errors import UserError


def is_registered(kind: str, name: str, function: Callable[..., Any], known: Mapping[str, Any]) -> bool:
    """Whether the name stands for this very function already.

    Compiled programs know a function by its name, so that another one under the same name would never be called.

    Raises:
      UserError: the name stands for another function.
    """
    if name not in known:
        return False
    if not _same(known[name], function):
        raise UserError(
            f"{kind} {name!r} exists already and is another function: choose another name, "
            "since what is compiled knows it by its name"
        )
    return True


def _same(first: Any, second: Any) -> bool:
    """Whether two functions are one object, or have the same code and read no value in which they could differ.

    Such a value is a default, a variable of an enclosing function, or a global that is not a function, class
    or module.
    """
    if first is second:
        return True
    if not all(isinstance(getattr(f, "__code__", None), CodeType) for f in (first, second)):
        return False
    return _without_lines(first.__code__) == _without_lines(second.__code__) and not any(
        f.__defaults__ or f.__kwdefaults__ or f.__closure__ or _reads_values(f) for f in (first, second)
    )


def _without_lines(code: CodeType) -> CodeType:
    """The code without its file name and line numbers."""
    inner = tuple(_without_lines(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_consts=inner, co_firstlineno=1, co_linetable=b"", co_filename="")


def _reads_values(function: Any) -> bool:
    """Whether a global that the function may read is something else than a module, a function or a class."""
    names = _names(function.__code__)
    seen = (function.__globals__[name] for name in names if name in function.__globals__)
    return any(not callable(value) and not isinstance(value, ModuleType) for value in seen)


def _names(code: CodeType) -> set[str]:
    """The names that a function reads, and those that functions inside it read."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)
