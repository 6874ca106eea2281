"""Chat messages as servers and logs write them: their text, with reasoning that was split off put back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.types import CLOSE_THOUGHT, OPEN_THOUGHT

Messages = tuple[dict[str, str], ...]


def message_text(message: Mapping[str, Any]) -> str:
    """A message's text, reasoning that was split off put back between its tags.

    Reasoning without a word behind it was cut before it ended: its block stays open.
    """
    content, reasoning = message.get("content"), reasoning_of(message)
    if isinstance(content, list):
        parts = [
            p.get("text")
            for p in content
            if isinstance(p, Mapping) and p.get("type") in ("text", "output_text")
        ]
        content = "".join(p for p in parts if isinstance(p, str))
    content = content if isinstance(content, str) else ""
    if not reasoning:
        return content
    thought = f"{OPEN_THOUGHT}\n{reasoning.strip()}"
    return f"{thought}\n{CLOSE_THOUGHT}\n\n{content}" if content.strip() else thought


def reasoning_of(message: Mapping[str, Any]) -> str:
    """What a message holds of reasoning, "" for none."""
    for field in ("reasoning_content", "reasoning"):
        value = message.get(field)
        if isinstance(value, str) and value:  # servers send both names, one of them empty
            return value
    content = message.get("content")
    if not isinstance(content, list):
        return ""
    parts = [p.get("reasoning") for p in content if isinstance(p, Mapping) and p.get("type") == "reasoning"]
    return "\n\n".join(p for p in parts if isinstance(p, str))


def plain_messages(messages: Sequence[Any]) -> Messages:
    """Messages of a prompt as role and text. Raises UserError for one without a role."""
    return tuple(map(_plain, messages))


def messages_in(text: str) -> Messages | None:
    """The messages of a prompt that is their JSON; None where the text is something else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not found:
        return None
    chat = all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in found)
    return plain_messages(found) if chat else None


def _plain(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError("a message needs `role` and `content`")
    return {"role": message["role"], "content": message_text(message)}
