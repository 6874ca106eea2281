"""caspo.json: what a policy folder says about steps and searching, each value checked against what its key may hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from caspo_jax.errors import UserError

CASPO_FILE = "caspo.json"


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


# Types only: whether a confidence or a task of that name exists is checked where it is looked up.
_KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step_delimiter": (_text, "a string of at least one character"),
    "confidence": (_text, "the name of a step confidence"),
    "threshold": (_number, "a number"),
    "task": (_text, "the name of an embedded task"),
}


def check_caspo_json(settings: Mapping[str, Any], where: str) -> None:
    """Refuses a known key whose value is of another type; other keys are the user's own.

    Args:
      settings: the parsed file.
      where: its name, for messages.

    Raises:
      UserError: names file, key and value.
    """
    for key, (fits, expected) in _KNOWN.items():
        if key in settings and not fits(settings[key]):
            raise UserError(
                f"{where}: {key} must be {expected}, not {settings[key]!r}; mend it or leave it out"
            )
