"""Votes over answers: merged by equivalence, never by string."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from caspo_jax.errors import UserError
from caspo_jax.sampling.config import VOTES, Vote
from caspo_jax.types import Equal, Extract, Trace

Key = TypeVar("Key", bound=Hashable)

NORMAL = (-708.0, 709.0)  # natural logarithms between which floats lose nothing


def last_line(text: str) -> str | None:
    """The last line that is not blank: the answer where no task says better."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


def same_text(a: str, b: str) -> bool:
    """Equality of strings."""
    return a == b


def answer_of(path: Trace, extract: Extract) -> str | None:
    """The path's `answer` where it is set, else what `extract` reads in its text."""
    return path.answer if path.answer is not None else extract(path.text)


def merge_answers(answers: Sequence[str | None], equivalent: Equal = same_text) -> list[int | None]:
    """Class of each answer: the index of the first answer that is equivalent to it, both ways; None for no answer.

    Both ways, because a benchmark asks whether an answer will do for a gold one, which is no equality: where 3.14 will do
    for a gold 3, one sloppy first answer would take in all that are better.

    >>> merge_answers(["42", "7", None, "42"])
    [0, 1, None, 0]
    """
    known: dict[str, int] = {}
    leaders: list[int] = []
    classes: list[int | None] = []
    for i, answer in enumerate(answers):
        if answer is None:
            classes.append(None)
            continue
        if answer not in known:
            found = next((j for j in leaders if _both_ways(equivalent, answers[j] or "", answer)), None)
            if found is None:
                leaders.append(i)
            known[answer] = i if found is None else found
        classes.append(known[answer])
    return classes


def _both_ways(equivalent: Equal, one: str, other: str) -> bool:
    return equivalent(one, other) and equivalent(other, one)


def vote(
    paths: Sequence[Trace],
    method: Vote = "sequence",
    *,
    extract: Extract = last_line,
    equivalent: Equal = same_text,
    gamma: float = 1.0,
) -> tuple[str | None, dict[str, float]]:
    """The answer of several paths, and the weight of every answer.

    Weights of a path with path confidence c and token log-probs l_t:

    * `majority` 1;
    * `confidence` c^gamma;
    * `sequence` exp(sum_t l_t), over *distinct* token sequences: duplicates count once;
    * `best_path` c of the surest path of each answer alone.

    Equivalent answers add up (for `best_path`, the largest counts) and are spelled as their heaviest spelling; ties go to
    what came first. `sequence` is normalised so that its weights add up to 1; `confidence` is divided by its largest weight where that is too small or
    too large for a float. A path whose `answer` is set keeps it, else `extract` reads its text.

    Args:
      paths: finished paths; those without an answer, or without the confidence or log-probs needed, weigh nothing.
      method: majority | confidence | sequence | best_path.
      extract: text -> answer or None.
      equivalent: (answer, answer) -> bool; asked both ways, so it may be (gold, answer) -> bool.
      gamma: exponent of `confidence`.
    """
    if method not in VOTES:
        raise UserError(f"vote={method!r}: choose from {', '.join(VOTES)}")
    answers = [answer_of(path, extract) for path in paths]
    voters = [
        (kind, answer, path)
        for kind, answer, path in zip(merge_answers(answers, equivalent), answers, paths, strict=True)
        if kind is not None and answer is not None
    ]
    # Of the voters alone: beside a far likelier path without an answer, what they weigh would vanish.
    weights = _weights([path for _, _, path in voters], method, gamma)
    counted = [
        ((kind, answer), weight)
        for (kind, answer, _), weight in zip(voters, weights, strict=True)
        if weight is not None
    ]
    totals = total_weights([(kind, weight) for (kind, _), weight in counted], method)
    if not totals:
        return None, {}
    spelled = total_weights(counted, method)
    shown = {kind: heaviest({text: w for (k, text), w in spelled.items() if k == kind}) for kind in totals}
    return shown[heaviest(totals)], {shown[kind]: weight for kind, weight in totals.items()}


def heaviest(totals: Mapping[Key, float]) -> Key:
    """The key with the largest weight, the first of equals."""
    return max(totals, key=lambda key: totals[key])


def total_weights(weighed: Iterable[tuple[Key, float]], method: Vote = "sequence") -> dict[Key, float]:
    """Weight of each key, in the order of first appearance: the sum, for `best_path` the largest."""
    totals: dict[Key, float] = {}
    for key, weight in weighed:
        before = totals.get(key, 0.0)
        totals[key] = max(before, weight) if method == "best_path" else before + weight
    return totals


def powers(confidences: Sequence[float | None], gamma: float) -> list[float | None]:
    """(c / `power_base`)^gamma of each; None stays."""
    base = power_base(confidences, gamma)
    return [None if c is None else (c / base) ** gamma for c in confidences]


def power_base(confidences: Sequence[float | None], gamma: float) -> float:
    """What a vote divides confidences by: 1, or the largest of them where its power, or a sum of such, is no float."""
    largest = max((c for c in confidences if c is not None), default=0.0)
    if not 0 < largest < math.inf:
        return 1.0
    least, most = NORMAL
    fits = least <= gamma * math.log(largest) <= most - math.log(len(confidences))
    return 1.0 if fits else largest


def _weights(paths: Sequence[Trace], method: Vote, gamma: float) -> list[float | None]:
    if method == "majority":
        return [1.0] * len(paths)
    if method != "sequence":
        return powers([path.path_confidence for path in paths], gamma if method == "confidence" else 1.0)
    seen: set[tuple[int, ...]] = set()
    sums: list[float | None] = []
    for path in paths:
        new = path.logprob is not None and path.token_ids not in seen
        seen.add(path.token_ids)
        sums.append(math.fsum(path.logprob) if new and path.logprob is not None else None)
    known = [s for s in sums if s is not None]
    if not known:
        return sums
    # Long paths have probabilities below the smallest float: shift before exp.
    top = max(known)
    scale = math.fsum(math.exp(s - top) for s in known)
    return [None if s is None else math.exp(s - top) / scale for s in sums]
