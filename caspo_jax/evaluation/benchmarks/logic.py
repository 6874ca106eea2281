"""Logic under contradictory information: BoardgameQA."""

from __future__ import annotations

import re

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.base import Benchmark, Row, text
from caspo_jax.evaluation.benchmarks.loading import Source
from caspo_jax.evaluation.execution import Sandbox
from caspo_jax.steps.marked import after_thought, boxed_or_marked
from caspo_jax.types import Question

_LABELS = ("proved", "disproved", "unknown")
_LABEL = re.compile(r"\b(proved|disproved|unknown)\b", re.IGNORECASE)
_ASK = (
    'Is the statement in question "proved", "disproved" or "unknown"? '
    "Please reason step by step, and put that one word within \\boxed{}."
)


def _read(row: Row, number: str) -> Question:
    label = text(row, "label").strip().lower()
    if label not in _LABELS:
        raise UserError(f"field `label` is {label!r}, none of {', '.join(_LABELS)}")
    extra = {k: row.get(k) for k in ("config", "goal", "proof")}
    return Question(f"boardgameqa/{number}", question=text(row, "example"), gold=label, extra=extra)


def _answer(output: str) -> str | None:
    """The label in what is boxed or marked, else in the last line, else in what a thought marks; None if two stand there."""
    said = after_thought(output)
    lines = said.strip().splitlines()
    found = _labels(boxed_or_marked(said) or (lines[-1] if lines else ""))
    found = found or _labels(boxed_or_marked(output) or "")
    return found.pop() if len(found) == 1 else None


def _labels(text: str) -> set[str]:
    return {word.lower() for word in _LABEL.findall(text)}


def _judge(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    return None if question.gold is None else answer == question.gold


LOGIC_BENCHMARKS = (
    Benchmark(
        name="boardgameqa",
        family="logic",
        source=Source(
            "tasksource/Boardgame-QA", "test", "78e38c3c8df3b4f6de7ae8bd1fc6a8bd1f31be56", "CC BY 4.0"
        ),
        size=15000,
        read=_read,
        ask=lambda question: f"{question.question}\n\n{_ASK}",
        answer=_answer,
        judge=_judge,
        same=lambda one, other: one == other,
        notes="Three labels, about equally frequent; `extra['config']` names the variant.",
    ),
)
