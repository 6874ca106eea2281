"""The exceptions that programs turn into one line: bad input, and a run that was asked to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Input that the user can mend: a file, a flag, a tensor, a shape.

    The message is one line that names the thing (file:line, tensor, flag, shape) and says what to do.
    Programs print it as `error: ...` and exit with 1; library callers may catch it as a ValueError.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters of it; its type's name where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextlib.contextmanager
def named_by(where: str, subject: str) -> Iterator[None]:
    """Lets errors of the body that begin with `subject: ` begin with `where: `: the code there knows of no file."""
    try:
        yield
    except UserError as error:
        message = str(error)
        if not message.startswith(f"{subject}: "):
            raise
        raise UserError(f"{where}: {message.removeprefix(f'{subject}: ')}") from error


class Interrupted(Exception):
    """A run that was asked to stop and has kept its state: the same call goes on where it was.

    Programs print it and exit with 128 + `signal` (143 for SIGTERM, 130 for Ctrl-C), as a process does that the signal ends.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal
