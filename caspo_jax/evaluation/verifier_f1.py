"""A verifier checked against labelled first errors (ProcessBench): how good are the verdicts that training rests on?"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.metrics import (
    FirstErrorScore,
    Interval,
    bootstrap_interval,
    processbench_f1,
    processbench_f1_statistic,
)
from caspo_jax.steps import DEFAULT_DELIMITER, LabelledSteps, Verifier, VerifyItem
from caspo_jax.steps.beginnings import Beginning
from caspo_jax.steps.labels import processbench_from_record
from caspo_jax.steps.verifiers import asked
from caspo_jax.store import load_records
from caspo_jax.types import Progress, Question, Verdict


@dataclasses.dataclass(frozen=True)
class VerifierReport:
    """What a verifier found in labelled solutions."""

    score: FirstErrorScore
    interval: Interval  # 95 % of F1, bootstrap by question
    found: tuple[int, ...]  # index of the first step called wrong, -1 none
    labels: tuple[int, ...]
    unknown: float  # share of the steps that it gave no verdict


def load_processbench(path: str | Path) -> list[LabelledSteps]:
    """Solutions of a JSONL file in ProcessBench's layout: `id, problem, steps, label` (-1 no error).

    Raises:
      UserError: naming file:line; or nothing in it.
    """
    solutions = load_records(path, processbench_from_record)
    if not solutions:
        raise UserError(f"{path}: no solution in it")
    return solutions


def first_error(verdicts: Sequence[Verdict]) -> int:
    """Index of the first wrong step, -1 if none is: what is unknown counts as right."""
    return next((index for index, verdict in enumerate(verdicts) if verdict == "wrong"), -1)


def judge_verifier(
    verifier: Verifier,
    solutions: Sequence[LabelledSteps],
    *,
    batch_size: int = 4096,
    draws: int = 1000,
    progress: Progress | None = None,
) -> VerifierReport:
    """F1 of a verifier on solutions with labelled first errors.

    Every step is put to it with the steps before as they stand, wrong ones included; the first that it calls wrong counts.

    Args:
      verifier: judges steps.
      solutions: as `load_processbench` gives them.
      batch_size: steps at once. Of few, a judge compiles its programs anew each time: their longest prompts differ.
      draws: of the bootstrap.
      progress: called with (steps done, steps in all).
    """
    items = [item for solution in solutions for item in _items(solution)]
    verdicts: list[Verdict] = []
    for start in range(0, len(items), batch_size):
        verdicts += asked(verifier, items[start : start + batch_size])
        if progress is not None:
            progress(len(verdicts), len(items))
    found, at = [], 0
    for solution in solutions:
        found.append(first_error(verdicts[at : at + len(solution.steps)]))
        at += len(solution.steps)
    labels = [first_error(solution.verdicts) for solution in solutions]
    groups = np.array([solution.question for solution in solutions], dtype=object)
    interval = bootstrap_interval(processbench_f1_statistic(found, labels), groups, draws=draws)
    unknown = float(np.mean([v == "unknown" for v in verdicts])) if verdicts else float("nan")
    return VerifierReport(processbench_f1(found, labels), interval, tuple(found), tuple(labels), unknown)


def _items(solution: LabelledSteps) -> list[VerifyItem]:
    question = Question(id=solution.id, question=solution.question, gold=solution.gold)
    whole = "".join(f"{step}{DEFAULT_DELIMITER}" for step in solution.steps)
    sizes = [len(step) + len(DEFAULT_DELIMITER) for step in solution.steps]
    starts = itertools.accumulate(sizes, initial=0)
    return [
        VerifyItem(
            question=question,
            prefix=Beginning(whole, start),  # type: ignore[arg-type]
            step=step,
            is_last=solution.ended and index == len(solution.steps) - 1,
            trace_id=solution.id,
            step_index=index,
        )
        for index, (step, start) in enumerate(zip(solution.steps, starts))
    ]
