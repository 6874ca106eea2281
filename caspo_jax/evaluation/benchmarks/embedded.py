"""The library's own tasks as benchmarks. They live in a room below this one, so the caller hands them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.base import Benchmark, Row
from caspo_jax.evaluation.execution import Sandbox
from caspo_jax.types import Question


class QuestionMaker(Protocol):
    """What is asked of an embedded task."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def questions(self, split: str, count: int, seed: int) -> Sequence[Question]:
        """Questions of a split, with gold answers."""
        ...


def embedded_benchmark(
    task: QuestionMaker,
    extract: Callable[[str], str | None],
    *,
    split: str = "test",
    seed: int = 0,
    size: int = 512,
) -> Benchmark:
    """A task's questions under its own name; the question is asked as it is, the answer is compared as text.

    Args:
      task: makes the questions.
      extract: text -> answer, or None.
      split: of the task.
      seed: of the questions.
      size: questions where no number is asked for.
    """

    def judge(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
        return None if question.gold is None else answer == question.gold

    return Benchmark(
        name=task.name,
        family="embedded",
        source=None,
        size=size,
        read=_no_rows,
        ask=lambda question: question.question or "",
        answer=extract,
        judge=judge,
        same=lambda one, other: one == other,
        notes=f"Made on the spot: split {split}, seed {seed}.",
        questions=lambda count: task.questions(split, count, seed),
    )


def _no_rows(row: Row, name: str) -> Question | None:
    raise UserError("an embedded task has no rows to read")
