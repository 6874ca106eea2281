"""Values to JSON that may stand inside a `<script>` element, and numbers as short as the page needs them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from caspo_jax.store import writable

# What could end the element, open a comment or end a line of script, wherever it stands in the JSON.
_UNSAFE = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def script_json(value: Any) -> str:
    r"""Compact JSON that holds no `<`, `>` or `&` and no lone surrogate: data, whatever a model wrote.

    Raises:
      ValueError: NaN or an infinity, which JSON cannot hold.

    >>> script_json({"text": "</script>"})
    '{"text":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return writable(text).translate(_UNSAFE)


def short(value: float | None, digits: int = 4) -> float | None:
    """The number rounded; null for NaN, infinities and None."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), digits)


def thousandths(values: Iterable[float] | None, sign: int = 1) -> list[int | None] | None:
    """Non-negative numbers in thousandths, as integers; null where they are not finite."""
    if values is None:
        return None
    return [round(1000 * sign * v) if math.isfinite(v) else None for v in values]
