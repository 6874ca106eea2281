"""The embedded tasks by name: questions in disjoint splits, writers of training text, exact step checkers."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.contradiction import ContradictionItem, Contradicts
from caspo_jax.steps.verifiers import VerifyItem
from caspo_jax.tasks import chain, graph, graph_writing
from caspo_jax.tasks.hedging import plain
from caspo_jax.types import DEFAULT_DELIMITER, Question, Verdict

SPLITS = ("pretrain", "train", "tune", "test")
_SHARES = {"pretrain": range(0, 10), "train": range(10, 13), "tune": range(13, 14), "test": range(14, 16)}
_ANSWER = re.compile(r"answer: (-?)(\d+)")


@dataclasses.dataclass(frozen=True)
class Task:
    """An embedded task.

    Attributes:
      name: what `--task` takes.
      sample: draws a problem.
      parse: question text to problem, None when the text is not of this task.
      try_solution: (problem, rng, mix, slips) -> the steps of a solution, or None where a slip led to values out of range.
      check: (problem, steps before, step) -> does the step follow? Exact.
      basics: how often each phrasing stands in the text that the base policy first learns the skills from.
      mix: the same for the text it learns last: mostly phrasings that skip the working.
      slips: how often a step of each phrasing of that last text ends in a slip: the less working, the more slips.
      drill: draws an exercise in the task's skills, in given phrasings, for the base policy's training text:
        (question or None, lines), each line in parts that are by turns given and to be learned.
      claim: (problem, steps before, step) -> (what the step is about, what it says of it), None if nothing.
    """

    name: str
    sample: Callable[[random.Random], Any]
    parse: Callable[[str], Any]
    try_solution: Callable[[Any, random.Random, Mapping[str, float], Mapping[str, float]], list[str] | None]
    check: Callable[[Any, Sequence[str], str], bool]
    basics: Mapping[str, float]
    mix: Mapping[str, float]
    slips: Mapping[str, float]
    drill: Callable[[random.Random, Sequence[str]], tuple[str | None, list[tuple[str, ...]]]]
    claim: Callable[[Any, Sequence[str], str], tuple[str, int] | None]

    @property
    def policy_path(self) -> Path:
        """The folder of the shipped tiny policy."""
        return Path(__file__).parent / "policies" / self.name

    def problems(self, split: str, seed: int) -> Iterator[Any]:
        """An endless stream of distinct problems of a split.

        A problem's split is decided by a hash of its text, so splits are disjoint whatever the seeds.
        """
        if split not in _SHARES:
            raise UserError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
        rng = random.Random(f"{self.name}/{split}/{seed}")
        seen: set[str] = set()
        while True:
            problem = self.sample(rng)
            share = hashlib.sha256(problem.text.encode()).digest()[0] % 16
            if share in _SHARES[split] and problem.text not in seen:
                seen.add(problem.text)
                yield problem

    def questions(self, split: str, count: int, seed: int) -> list[Question]:
        """`count` questions of a split, with gold answers."""
        stream = self.problems(split, seed)
        problems = (next(stream) for _ in range(count))
        return [
            Question(id=f"{self.name}-{split}-{seed}-{i}", question=p.text, gold=str(p.answer))
            for i, p in enumerate(problems)
        ]

    def solve(
        self,
        problem: Any,
        rng: random.Random,
        mix: Mapping[str, float],
        slips: Mapping[str, float] | None = None,
    ) -> list[str]:
        """A solution as a list of steps, drawn again where a slip leads to values out of range.

        Args:
          problem: from `parse` or `problems`.
          rng: decides everything.
          mix: share of each phrasing; one is drawn for each step.
          slips: how often a step of each phrasing ends in a slip; None writes correct solutions.
        """
        while True:
            steps = self.try_solution(problem, rng, mix, slips or {})
            if steps is not None:
                return steps

    def verifier(self) -> TaskVerifier:
        """The exact step checker, behind the verifier protocol."""
        return TaskVerifier(self)

    def contradiction(self) -> TaskContradiction:
        """The exact judge of contradiction, for prefix-conditioned sampling."""
        return TaskContradiction(self)


@dataclasses.dataclass(frozen=True)
class TaskVerifier:
    """Exact verdicts for the steps of an embedded task, hedges aside; `unknown` for a question of another kind."""

    task: Task

    @property
    def name(self) -> str:
        """The verifier's name in records."""
        return f"exact:{self.task.name}"

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item: local correctness of the step given question and prefix."""
        return [self._verify(item) for item in items]

    def _verify(self, item: VerifyItem) -> Verdict:
        problem = self.task.parse(item.question.question or "")
        if problem is None:
            return "unknown"
        return "correct" if self.task.check(problem, steps_of(item.prefix), plain(item.step)) else "wrong"


@dataclasses.dataclass(frozen=True)
class TaskContradiction:
    """Exact judge of contradiction for an embedded task, hedges aside.

    A continuation contradicts a step if it says another number of the same thing. One about another thing does not; one
    that claims nothing cannot be told.
    """

    task: Task

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"exact:{self.task.name}"

    def judge(self, items: Sequence[ContradictionItem]) -> list[Contradicts]:
        """One verdict an item."""
        return [self._judge(item) for item in items]

    def _judge(self, item: ContradictionItem) -> Contradicts:
        problem = self.task.parse(item.question)
        if problem is None:
            return None
        prefix = steps_of(item.prefix)
        mine = self.task.claim(problem, prefix, plain(item.step))
        other = self.task.claim(problem, prefix, plain(item.continuation))
        if mine is None or other is None:
            return None
        return mine[0] == other[0] and mine[1] != other[1]


def steps_of(prefix: str) -> list[str]:
    """The steps of a text without their hedges."""
    return [plain(step) for step in prefix.split(DEFAULT_DELIMITER) if step.strip()]


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "graph": Task(
            name="graph",
            sample=graph.sample_problem,
            parse=graph.parse_problem,
            try_solution=graph_writing.try_solution,
            check=graph.check_step,
            basics=MappingProxyType({"brief": 0.4, "shown": 0.35, "careful": 0.25}),
            mix=MappingProxyType({"direct": 0.25, "brief": 0.25, "shown": 0.3, "careful": 0.2}),
            slips=MappingProxyType({"direct": 0.0, "brief": 0.14, "shown": 0.1, "careful": 0.05}),
            drill=graph_writing.drill,
            claim=graph.claim,
        ),
        "chain": Task(
            name="chain",
            sample=chain.sample_problem,
            parse=chain.parse_problem,
            try_solution=chain.try_solution,
            check=chain.check_step,
            basics=MappingProxyType({"shown": 0.6, "careful": 0.4}),
            mix=MappingProxyType({"direct": 0.5, "shown": 0.3, "careful": 0.2}),
            slips=MappingProxyType({"direct": 0.0, "shown": 0.1, "careful": 0.05}),
            drill=chain.drill,
            claim=chain.claim,
        ),
    }
)


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
      UserError: no task has this name.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}: one of {', '.join(TASKS)}")
    return TASKS[name]


def extract_answer(text: str) -> str | None:
    """The number after the last `answer:`, or None."""
    found = _ANSWER.findall(text)
    if not found:
        return None
    sign, digits = found[-1]
    digits = digits.lstrip("0")
    return sign + digits if digits else "0"
