"""A model asked the same thing about many texts: the prompt's file, the replies, their strictly read last lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from caspo_jax.errors import UserError
from caspo_jax.steps.marked import after_thought
from caspo_jax.steps.rollouts import Generate
from caspo_jax.store import short_hash
from caspo_jax.types import Question

T = TypeVar("T")
_EMPHASIS = re.compile(r"[*_`#\"“”]+")


def load_template(path: str | Path, fields: Sequence[str], what: str) -> str:
    """A prompt with places for its fields.

    Args:
      path: a UTF-8 text.
      fields: names that must stand in it as {name}.
      what: what messages call it, such as "judge's prompt".

    Raises:
      UserError: a file that cannot be read, is not UTF-8, or lacks a field.
    """
    try:
        template = Path(path).read_text(
            encoding="utf-8-sig"
        )  # of Windows editors too: their mark is no prompt
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save the {what} as UTF-8") from error
    missing = [f"{{{field}}}" for field in fields if f"{{{field}}}" not in template]
    if missing:
        raise UserError(f"{path}: the {what} lacks {', '.join(missing)}")
    return template


def fill_template(template: str, **values: str) -> str:
    """The template with its fields filled in one pass, so that braces in the values stay as they are."""
    pattern = "|".join(re.escape(f"{{{name}}}") for name in values)
    return re.sub(pattern, lambda match: values[match.group()[1:-1]], template)


def last_line(reply: str) -> str:
    """The last line of a reply that says something, without the marks of emphasis and of headings; "" without any.

    What closes a code block is such a mark. Of a thinking model's reply the last line of what it says after its thought,
    wherever the thought ends.

    >>> last_line("<think>Verdict: wrong? No.</think>**Verdict:** correct")
    'Verdict: correct'
    """
    for line in reversed(after_thought(reply).splitlines()):
        if said := _EMPHASIS.sub("", line).strip():
            return said
    return ""


def ask(
    generate: Generate, prompts: Sequence[str], kind: str, parse: Callable[[str], T], failed: T
) -> list[T]:
    """What a model replies to each prompt, all in one batch; equal prompts are asked once.

    Args:
      generate: `generate(questions, 1)` gives one trace a question, in order.
      prompts: in any number, in any order.
      kind: in front of the questions' ids.
      parse: reads a whole reply.
      failed: the result of a reply that was cut, which is never parsed.

    Returns:
      One result a prompt, in order.
    """
    distinct = list(dict.fromkeys(prompts))
    if not distinct:
        return []
    traces = generate([Question(id=f"{kind}/{short_hash(p)}", question=p) for p in distinct], 1)
    if len(traces) != len(distinct):
        raise ValueError(f"generate gave {len(traces)} traces for {len(distinct)} questions")
    found = {
        prompt: parse(trace.text) if trace.finish_reason in ("eos", "stop") else failed
        for prompt, trace in zip(distinct, traces)
    }
    return [found[prompt] for prompt in prompts]
