r"""Line ends and tabs on a command line, which a shell passes on as `\n` and `\t`: read alike by every flag that takes text."""

from __future__ import annotations

import re

from caspo_jax.errors import UserError

_MEANT = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
HELP = r"\n, \t, \r and \\ are read as escapes"


def unescaped(flag: str, text: str) -> str:
    r"""The text that a flag's value stands for.

    Raises:
      UserError: a backslash before anything else; names the flag.

    >>> unescaped("stop", r"\r\n"), unescaped("stop", r"\\boxed")
    ('\r\n', '\\boxed')
    """

    def meant(match: re.Match[str]) -> str:
        if match.group() not in _MEANT:
            raise UserError(
                f"--{flag}={text}: {match.group()} is no escape; {HELP}, so write \\\\ for a backslash"
            )
        return _MEANT[match.group()]

    return re.sub(r"\\.?", meant, text, flags=re.DOTALL)


def escaped(text: str) -> str:
    """The value of a flag that stands for a text: what `unescaped` takes back."""
    return text.replace("\\", "\\\\")
