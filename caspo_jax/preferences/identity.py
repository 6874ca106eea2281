"""Hashes that are the same on every machine and in every process."""

from __future__ import annotations

import json
from typing import Any

from caspo_jax.store import short_hash


def stable_hash(*parts: Any) -> str:
    """The `short_hash` of the parts as JSON."""
    return short_hash(json.dumps(parts, ensure_ascii=False, separators=(",", ":")))
