"""What of a file cannot be used: it is left out, and said in the same words whatever the file holds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError


class NoContrastError(UserError):
    """A pair that says nothing: its texts are equal, or one is empty."""


class NoContrastWarning(UserWarning):
    """Pairs of a file say nothing and were left out."""


class TooLongError(UserError):
    """A pair or a solution that does not fit into the model's context."""


class TooLongWarning(UserWarning):
    """Pairs or solutions of a file do not fit into the model's context and were left out: none is truncated."""


LEFT_OUT = {NoContrastError: NoContrastWarning, TooLongError: TooLongWarning}


def check_fits(tokens: int, config: Any) -> None:
    """Refuses more tokens than the context of a model with this `ModelConfig` holds. Raises TooLongError."""
    if tokens > config.context:
        raise TooLongError(
            f"{tokens} tokens exceed the model's context of {config.context} (config.json: {config.context_key})"
        )


def say_left_out(
    path: str | Path, noun: str, errors: Sequence[UserError], total: int, *, required: bool = True
) -> None:
    """Warns of what is left out of a file, of each kind of reason (`LEFT_OUT`) by itself, naming its first.

    Args:
      path: the file.
      noun: what it holds, in the plural.
      errors: the reason of each that is left out.
      total: how many the file holds.
      required: whether a file of which nothing is left is an error.

    Raises:
      UserError: nothing is left.
    """
    if required and errors and len(errors) == total:
        raise UserError(f"{path}: none of its {total} {noun} can be used; the first: {errors[0]}")
    for kind, warning in LEFT_OUT.items():
        those = [error for error in errors if isinstance(error, kind)]
        if those:
            message = f"{path}: left out {len(those)} of {total} {noun}; the first: {those[0]}"
            warnings.warn(message, warning, stacklevel=3)
