"""Frozen config dataclasses as flags: `--train.learning_rate=1e-4 --train.loss.beta=0.2`.

`ml_collections.config_flags` sets fields in place and knows plain types alone, so each config gets a mutable mirror
whose values are carried over to the frozen one.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from typing import Any, Literal, TypeVar

from absl import flags

from experiments.missing import missing

Config = TypeVar("Config")

FLAGS = flags.FLAGS


def define_config(name: str, config: Any, help_text: str) -> None:
    """Define `--name.FIELD` for every field of a frozen dataclass, nested ones with more dots.

    Args:
      name: prefix of the flags.
      config: an instance whose values are shown as defaults.
      help_text: what `--help` says before it lists the fields.
    """
    config_flags = _library()
    mirror = _mirror(config)
    listed = "; ".join(f"--{name}.{field}={value}" for field, value in _values(config).items())
    try:
        config_flags.DEFINE_config_dataclass(
            name, mirror, f"{help_text} (meanings: docs/settings.md). Defaults: {listed}", flag_values=FLAGS
        )
        FLAGS[name].default_as_str = None  # the fields once more, as a Python expression
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        fields = ", ".join(_values(config))
        print(f"error: --{name}.FIELD: {error.args[0]}; fields are {fields}", file=sys.stderr)
        sys.exit(1)


def given_config(name: str, base: Config) -> Config:
    """`base` with the fields whose flags were given, checked by the dataclass itself (UserError)."""
    return _replaced(base, dict(_library().get_override_values(FLAGS[name])))


def _library() -> Any:
    """`ml_collections.config_flags`. Flags are defined before a program is guarded: without it the program ends here."""
    try:
        from ml_collections import config_flags
    except ModuleNotFoundError as error:
        print(f"error: {missing(error)}", file=sys.stderr)
        sys.exit(1)
    return config_flags


def _replaced(base: Any, overrides: dict[str, Any]) -> Any:
    own = {field: value for field, value in overrides.items() if "." not in field}
    for parent in {field.partition(".")[0] for field in overrides if "." in field}:
        inner = {f.partition(".")[2]: v for f, v in overrides.items() if f.startswith(f"{parent}.")}
        own[parent] = _replaced(getattr(base, parent), inner)
    return dataclasses.replace(base, **own)


def _values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field names and values."""
    values: dict[str, Any] = {}
    for field in _with_flags(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values |= _values(value, f"{prefix}{field.name}.")
        else:
            values[prefix + field.name] = value
    return values


def _mirror(config: Any) -> Any:
    """A mutable dataclass with the same fields and values and types that flags can parse."""
    hints = typing.get_type_hints(type(config))
    fields: list[tuple[str, Any, Any]] = []
    for field in _with_flags(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner = _mirror(value)
            fields.append((field.name, type(inner), dataclasses.field(default=inner)))
            # Hashable, or it could not be a default; it is shared by the instances, of which there is one.
            type.__setattr__(type(inner), "__hash__", object.__hash__)
        else:
            fields.append((field.name, _plain(hints[field.name]), dataclasses.field(default=value)))
    return dataclasses.make_dataclass(type(config).__name__, fields)()


def _with_flags(config: Any) -> list[dataclasses.Field]:
    """The fields that flags can give: not a config that may be absent, for which programs have flags of their own."""
    hints = typing.get_type_hints(type(config))
    return [
        field
        for field in dataclasses.fields(config)
        if not any(map(dataclasses.is_dataclass, typing.get_args(hints[field.name])))
    ]


def _plain(hint: Any) -> Any:
    """The type that a flag parses: a literal is a string, any tuple is one of strings."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return str
    if origin in (typing.Union, types.UnionType):
        (inner,) = (a for a in args if a is not type(None))
        return _optional(_plain(inner))
    if origin is tuple:
        return types.GenericAlias(tuple, (_plain(args[0]), ...))
    return hint


@functools.cache
def _optional(kind: type) -> type:
    """A type of its own for `kind | None`, of which the library parses values of `kind` alone."""
    parser = {int: flags.IntegerParser, float: flags.FloatParser, str: flags.ArgumentParser}[kind]()
    marker = type(f"{kind.__name__}_or_none", (), {})
    return _library().register_flag_parser_for_type(marker, _OrNone(parser))


class _OrNone(flags.ArgumentParser):
    """The parser of a type, but that `None`, as --help and errors write it, is None."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self._parser.parse(argument)
