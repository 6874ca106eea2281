"""Monte-Carlo verifier: is the gold answer still reached from the state after a step?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caspo_jax.checks import at_least, own_numbers, within
from caspo_jax.errors import UserError
from caspo_jax.steps.answers import AnswerKind, is_right
from caspo_jax.steps.verifiers import VerifyItem
from caspo_jax.store import short_hash
from caspo_jax.types import DEFAULT_DELIMITER, Equal, Extract, Question, Trace, Verdict

# (questions, n): n traces a question, in question order, as `generate` gives them.
Generate = Callable[[Sequence[Question], int], Sequence[Trace]]

_State = tuple[tuple[int, ...], tuple[int, ...]]  # prompt ids, ids after it
_Goal = tuple[_State, str | None]  # a state, and the gold answer that is to be reached from it


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Samples `n` continuations of prompt + prefix + step and grades their answers (Math-Shepherd, 2312.08935).

    With v(state) the share of rollouts that end with the gold answer, a step is correct if
    v(after it) > threshold (0: one success is enough, their hard estimate); one that ended its trace is
    correct if its answer is the gold one. If v(before it) <= threshold too, the state was lost already and
    the step's own verdict is unknown, unless `local` is off. Rollouts that meet the length limit are failures.
    `decoding` says what `generate` decodes with, for manifests.
    """

    generate: Generate
    n: int = 8
    threshold: float = 0.0
    local: bool = True
    kind: AnswerKind = AnswerKind.MATH
    extract: Extract | None = None
    equal: Equal | None = None
    name: str = "rollouts"
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # checkpoint, seed and the like
    delimiter: str = DEFAULT_DELIMITER  # stands between a step and what a rollout adds

    def __post_init__(self) -> None:
        own_numbers(self)
        at_least(self, 1, "n")
        within(self, "[0, 1)", "threshold")

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers of the rule and what continuations are decoded with, for manifests."""
        more = {"kind": self.kind.value} if self.extract is None else {}
        if self.delimiter != DEFAULT_DELIMITER:
            more["delimiter"] = self.delimiter
        return {"n": self.n, "threshold": self.threshold, "local": self.local, **more, **self.decoding}

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item; each distinct state is sampled once. Raises UserError without gold or ids."""
        goals: dict[_Goal, tuple[VerifyItem, str]] = {}
        ended_right: list[bool] = []
        for item in items:
            if item.question.gold is None:
                raise UserError(f"question {item.question.id!r} has no gold answer: rollouts need one")
            if not item.prompt_ids:
                raise UserError(f"question {item.question.id!r} has no prompt_ids: rollouts continue them")
            ended_right.append(item.is_last and self._right(item, item.prefix + item.step))
            if not item.is_last:
                goals.setdefault(_after(item), (item, item.prefix + item.step + self.delimiter))
            if self.local and not ended_right[-1]:
                goals.setdefault(_before(item), (item, item.prefix))
        values = self._values(goals)
        return [self._verdict(item, right, values) for item, right in zip(items, ended_right, strict=True)]

    def _verdict(self, item: VerifyItem, ended_right: bool, values: dict[_Goal, float]) -> Verdict:
        if ended_right or (not item.is_last and values[_after(item)] > self.threshold):
            return "correct"
        return "unknown" if self.local and values[_before(item)] <= self.threshold else "wrong"

    def _values(self, goals: dict[_Goal, tuple[VerifyItem, str]]) -> dict[_Goal, float]:
        if not goals:
            return {}
        rows = {state: row for row, state in enumerate(dict.fromkeys(state for state, _ in goals))}
        questions = [Question(id=_identity(state), prompt_ids=state[0] + state[1]) for state in rows]
        traces = self.generate(questions, self.n)
        if len(traces) != len(questions) * self.n:
            raise ValueError(f"generate gave {len(traces)} traces for {len(questions)} questions x {self.n}")
        values = {}
        for goal, (item, text) in goals.items():
            row = rows[goal[0]]
            rollouts = traces[row * self.n : (row + 1) * self.n]
            right = [
                trace.finish_reason in ("eos", "stop") and self._right(item, text + trace.text)
                for trace in rollouts
            ]
            values[goal] = sum(right) / self.n
        return values

    def _right(self, item: VerifyItem, text: str) -> bool:
        gold = item.question.gold
        assert gold is not None
        return is_right(gold, text, self.kind, self.extract, self.equal) or False


def _before(item: VerifyItem) -> _Goal:
    return (item.prompt_ids, item.prefix_ids), item.question.gold


def _after(item: VerifyItem) -> _Goal:
    return (item.prompt_ids, item.prefix_ids + item.step_ids), item.question.gold


def _identity(state: _State) -> str:
    """An id, and so a random key, that depends on the state alone: not on the trace that got there, nor on its neighbours."""
    return f"rollout/{short_hash(repr(state))}"
