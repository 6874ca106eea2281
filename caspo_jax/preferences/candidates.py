"""Annotated traces to candidates: the steps that were sampled from one prefix."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from caspo_jax.preferences.identity import stable_hash
from caspo_jax.steps import is_closed, prefix_verdict
from caspo_jax.steps.beginnings import Beginning, cut_when_read
from caspo_jax.types import Question, Trace, Verdict

PrefixKey = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The key of a candidate, equal where keys are, that holds no prefix of its own: a trace has as many as steps."""

    candidate: Candidate
    number: int  # hash of the key

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self.candidate.key == other.candidate.key


@cut_when_read("prefix", "prefix_ids")
@dataclasses.dataclass(frozen=True)
class Candidate:
    """One sampled step and the state it was sampled from."""

    question: Question
    prompt: str
    prompt_ids: tuple[int, ...]
    prefix: str  # text of the steps before, delimiters included
    prefix_ids: tuple[int, ...]  # tokens of the steps before, prompt not included
    text: str  # the step, delimiter excluded
    token_ids: tuple[int, ...]  # [T] the step, delimiter (and EOS if it ended the trace) included
    verdict: Verdict
    confidence: float | None
    prefix_verdict: Verdict  # wrong if any step before is, correct if all are
    ends_trace: bool  # the last token is the EOS that ended the trace
    is_last: bool  # ended the trace, by EOS or by a stop string
    trace_id: str
    step_index: int
    entropy: tuple[float, ...] | None = None  # [T] nats, distribution that each token was drawn from
    other_ids: tuple[int, ...] | None = None  # [T] the most probable other token at each position

    @property
    def key(self) -> PrefixKey:
        """What candidates of one prefix have in common: question, prompt ids, prefix ids."""
        return (self.question.id, self.prompt_ids, self.prefix_ids)

    @property
    def place(self) -> Place:
        """Its key to look things up by."""
        return Place(self, hash(self.key))


def build_candidates(
    traces: Sequence[Trace],
    *,
    questions: Mapping[str, Question] | None = None,
    other_ids: Sequence[Sequence[int] | None] | None = None,
) -> tuple[list[Candidate], dict[str, int]]:
    """Every finished step of annotated traces as a candidate, in trace order.

    Args:
      traces: with steps and verdicts.
      questions: question by trace id; default made of the trace's fields, its id a hash of what was asked
          (so that all traces of one question share it).
      other_ids: of each trace (or None), for each emitted token the most probable other token.

    Returns:
      The candidates, and counts: `steps` seen, `unfinished` (cut by a limit), `empty` (no text).
    """
    counts: collections.Counter[str] = collections.Counter(steps=0, unfinished=0, empty=0)
    candidates = []
    for row, trace in enumerate(traces):
        question = (questions or {}).get(trace.id) or question_of(trace)
        others = None if other_ids is None else other_ids[row]
        for index, step in enumerate(trace.steps):
            counts["steps"] += 1
            if not step.text:
                counts["empty"] += 1
                continue
            if not is_closed(trace, step):
                counts["unfinished"] += 1
                continue
            span = slice(step.token_start, step.token_end)
            last = index == len(trace.steps) - 1
            candidates.append(
                Candidate(
                    question=question,
                    prompt=trace.prompt if trace.prompt is not None else trace.question or "",
                    prompt_ids=trace.prompt_ids,
                    prefix=Beginning(trace.text, step.start),  # type: ignore[arg-type]
                    prefix_ids=Beginning(trace.token_ids, step.token_start),  # type: ignore[arg-type]
                    text=step.text,
                    token_ids=trace.token_ids[span],
                    verdict=step.verdict,
                    confidence=step.confidence,
                    prefix_verdict=prefix_verdict(trace.steps[:index]),
                    ends_trace=last and trace.finish_reason == "eos",
                    is_last=last and trace.finish_reason in ("eos", "stop"),
                    trace_id=trace.id,
                    step_index=index,
                    entropy=None if trace.entropy is None else trace.entropy[span],
                    other_ids=None if others is None else tuple(int(i) for i in others[span]),
                )
            )
    return candidates, dict(counts)


def question_of(trace: Trace) -> Question:
    """The question a trace answers; equal for all traces with the same question, prompt and gold."""
    return Question(
        id=stable_hash(trace.question, trace.prompt, list(trace.prompt_ids), trace.gold),
        question=trace.question,
        prompt=trace.prompt,
        prompt_ids=trace.prompt_ids,
        gold=trace.gold,
    )


def filter_candidates(
    candidates: Sequence[Candidate], *, allow_flawed_prefix: bool = False
) -> tuple[list[list[Candidate]], dict[str, int]]:
    """Groups by prefix, without flawed prefixes, duplicates and what has no verdict or confidence.

    Of steps with equal token ids or equal text one stays: the first with a verdict. Where such duplicates
    are called both correct and wrong, none stays.

    Returns:
      One list of candidates a prefix, in order of first appearance, and counts of what was dropped:
      `flawed_prefix`, `unverified_prefix`, `duplicate_ids`, `duplicate_text`, `conflicting_verdict`,
      `unknown_verdict`, `no_confidence`; each candidate is counted once.
    """
    counts: collections.Counter[str] = collections.Counter(
        dict.fromkeys(
            (
                "flawed_prefix",
                "unverified_prefix",
                "duplicate_ids",
                "duplicate_text",
                "conflicting_verdict",
                "unknown_verdict",
                "no_confidence",
            ),
            0,
        )
    )
    groups: dict[Place, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.place, []).append(candidate)
    kept = []
    for group in groups.values():
        verdicts = {c.prefix_verdict for c in group}
        if not allow_flawed_prefix and verdicts != {"correct"}:
            counts["flawed_prefix" if "wrong" in verdicts else "unverified_prefix"] += len(group)
            continue
        usable = _deduplicate(group, counts)
        if usable:
            kept.append(usable)
    return kept, dict(counts)


def _deduplicate(group: Sequence[Candidate], counts: collections.Counter[str]) -> list[Candidate]:
    by_text: dict[str, list[Candidate]] = {}
    for candidate in group:
        by_text.setdefault(candidate.text.strip(), []).append(candidate)
    usable = []
    for same in by_text.values():
        known = {c.verdict for c in same} - {"unknown"}
        if len(known) > 1:
            counts["conflicting_verdict"] += len(same)
            continue
        best = min(same, key=lambda c: (c.verdict == "unknown", not _has_confidence(c)))
        for other in same:
            if other is not best:
                counts["duplicate_ids" if other.token_ids == best.token_ids else "duplicate_text"] += 1
        if best.verdict == "unknown":
            counts["unknown_verdict"] += 1
        elif not _has_confidence(best):
            counts["no_confidence"] += 1
        else:
            usable.append(best)
    return usable


def _has_confidence(candidate: Candidate) -> bool:
    return candidate.confidence is not None and bool(np.isfinite(candidate.confidence))
