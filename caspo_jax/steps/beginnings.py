"""Fields that hold the beginning of a trace: it is cut out when it is asked for.

A trace of n steps has n prefixes. Kept as they are, those of one thought of 16,000 tokens take 25 MB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


@dataclasses.dataclass(frozen=True, slots=True)
class Beginning:
    """`whole[:end]`, for a field that `cut_when_read` names."""

    whole: Sequence[Any]  # a text, or a tuple of token ids
    end: int


def cut_when_read(*names: str) -> Callable[[C], C]:
    """Lets these fields of a dataclass also take a `Beginning`, which is read as what it stands for."""

    def decorate(cls: C) -> C:
        for name in names:
            setattr(cls, name, _Field(name))
        return cls

    return decorate


class _Field:
    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self.name]
        return value.whole[: value.end] if isinstance(value, Beginning) else value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value
