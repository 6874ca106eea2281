"""What says whether a step is right: one protocol, and the verifiers that need no model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from caspo_jax.errors import UserError
from caspo_jax.steps.answers import AnswerKind, is_right
from caspo_jax.steps.beginnings import cut_when_read
from caspo_jax.steps.equations import check_equations
from caspo_jax.types import VERDICTS, Equal, Extract, Question, Verdict


@cut_when_read("prefix", "prefix_ids")
@dataclasses.dataclass(frozen=True)
class VerifyItem:
    """One step to judge, with the state it was sampled from.

    Attributes:
      question: that the trace answers.
      prefix: text of the trace before the step, delimiters included.
      step: text of the step, delimiter excluded.
      is_last: the step ended the trace (EOS or a stop string).
      prompt_ids: tokens of the prompt.
      prefix_ids: tokens of the steps before, prompt not included.
      step_ids: tokens of the step, delimiter included.
      trace_id: of the trace.
      step_index: of the step in its trace, from 0.
    """

    question: Question
    prefix: str
    step: str
    is_last: bool
    prompt_ids: tuple[int, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    step_ids: tuple[int, ...] = ()
    trace_id: str | None = None
    step_index: int | None = None


@runtime_checkable
class Verifier(Protocol):
    """Judges steps: does each follow from its question and prefix?

    One whose verdicts depend on more than its name also has `settings`, a mapping of plain JSON values: manifests carry
    it, so that a restart with another judge is refused.
    """

    @property
    def name(self) -> str:
        """What records call it."""
        ...

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item, in order; `unknown` where it cannot tell."""
        ...


def asked(verifier: Verifier, items: Sequence[VerifyItem]) -> list[Verdict]:
    """A verdict an item, of any verifier.

    Raises:
      UserError: it is no verifier (a name, a class), or gives another number of verdicts.
    """
    if isinstance(verifier, type) or not isinstance(verifier, Verifier):
        what = f"the class {verifier.__name__}" if isinstance(verifier, type) else f"{verifier!r}"
        raise UserError(
            f"verifier is {what}: give an object with a `name` and a method `verify`, such as StatedEquations()"
        )
    verdicts = verifier.verify(items)
    if not hasattr(verdicts, "__len__") or len(verdicts) != len(items):
        given = f"{len(verdicts)} verdicts" if hasattr(verdicts, "__len__") else f"{verdicts!r}"
        raise UserError(f"verifier {verifier.name!r} gave {given} for {len(items)} steps")
    return verdicts


def verifier_settings(verifier: Verifier) -> dict[str, Any]:
    """What a verifier's verdicts depend on beside its name, for manifests; {} if it says nothing."""
    return dict(getattr(verifier, "settings", {}))


@dataclasses.dataclass(frozen=True)
class GoldAnswer:
    """Judges final steps by the answer they give against the question's gold; others are unknown.

    A final step without a readable answer is wrong when `no_answer="wrong"`, else unknown. Raises
    UserError for a final step whose question has no gold.
    """

    kind: AnswerKind = AnswerKind.MATH
    no_answer: Verdict = "unknown"
    extract: Extract | None = None
    equal: Equal | None = None
    name: str = "gold"

    @property
    def settings(self) -> dict[str, Any]:
        """What is not as usual, for manifests."""
        kind = {"kind": self.kind.value} if self.extract is None and self.kind != AnswerKind.MATH else {}
        return kind | ({"no_answer": self.no_answer} if self.no_answer != "unknown" else {})

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item: unknown unless `is_last`."""
        return [self._judge(item) if item.is_last else "unknown" for item in items]

    def _judge(self, item: VerifyItem) -> Verdict:
        gold = item.question.gold
        if gold is None:
            raise UserError(
                f"question {item.question.id!r} has no gold answer: add a 'gold' field or use another verifier"
            )
        right = is_right(gold, item.prefix + item.step, self.kind, self.extract, self.equal)
        if right is None:
            return self.no_answer
        return "correct" if right else "wrong"


@dataclasses.dataclass(frozen=True)
class RecordedLabels:
    """Verdicts that were recorded before, by trace id and step index; unknown where there is none."""

    labels: Mapping[str, Sequence[Verdict]]  # trace id -> verdict of each step
    name: str = "recorded"

    def __post_init__(self) -> None:
        for trace, verdicts in self.labels.items():
            for verdict in verdicts:
                if verdict not in VERDICTS:
                    raise UserError(
                        f"trace {trace!r}: unknown verdict {verdict!r}: choose from {', '.join(VERDICTS)}"
                    )

    @property
    def settings(self) -> dict[str, Any]:
        """A hash of the labels, for manifests."""
        labels = sorted((trace, list(verdicts)) for trace, verdicts in self.labels.items())
        return {"labels": hashlib.sha256(json.dumps(labels).encode()).hexdigest()}

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item, looked up by `trace_id` and `step_index`."""
        verdicts: list[Verdict] = []
        for item in items:
            known = self.labels.get(item.trace_id or "", ())
            index = item.step_index
            verdicts.append(known[index] if index is not None and 0 <= index < len(known) else "unknown")
        return verdicts


@dataclasses.dataclass(frozen=True)
class StatedEquations:
    """Evaluates every explicit arithmetic equality in a step, exactly; none means unknown."""

    rounding: bool = True  # accept a decimal that rounds a non-terminating value
    name: str = "equations"

    @property
    def settings(self) -> dict[str, Any]:
        """What is not as usual, for manifests."""
        return {} if self.rounding else {"rounding": False}

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """Wrong if any equality is false, correct if there is one and all hold, else unknown."""
        return [check_equations(item.step, rounding=self.rounding) for item in items]


@dataclasses.dataclass(frozen=True)
class ExactChecker:
    """A task's own exact checker: `check(question, prefix, step, is_last) -> verdict`."""

    check: Callable[[Question, str, str, bool], Verdict]
    name: str = "exact"

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item, from the checker."""
        return [self.check(item.question, item.prefix, item.step, item.is_last) for item in items]


@dataclasses.dataclass(frozen=True)
class FirstKnown:
    """The first of several verifiers that can tell decides each step."""

    verifiers: tuple[Verifier, ...]
    name: str = "first_known"

    @property
    def settings(self) -> dict[str, Any]:
        """The verifiers in order, each with its settings, for manifests."""
        return {"verifiers": [{"name": v.name, **verifier_settings(v)} for v in self.verifiers]}

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item; later verifiers see only what is still unknown."""
        verdicts: list[Verdict] = ["unknown"] * len(items)
        open_items = list(range(len(items)))
        for verifier in self.verifiers:
            if not open_items:
                break
            found = asked(verifier, [items[i] for i in open_items])
            for i, verdict in zip(open_items, found):
                verdicts[i] = verdict
            open_items = [i for i in open_items if verdicts[i] == "unknown"]
        return verdicts
