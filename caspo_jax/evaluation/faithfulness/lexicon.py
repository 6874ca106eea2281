"""A hedge lexicon as scorer: no model, no network, and every score can be explained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness import clauses
from caspo_jax.evaluation.faithfulness.patterns import PLAIN, Lexicon, Match, load_lexicon
from caspo_jax.evaluation.faithfulness.wording import sentences, vocabulary, words

QUESTIONS = {"yes_no": 0.35, "wh": 0.5, "tag": 0.45}
_DIGITS = 12  # decimals of a score
_REACH = 5  # tokens that a negation reaches forward
_SURE = vocabulary("sure certain confident positive confidence certainty convinced")


@dataclasses.dataclass(frozen=True)
class Mark:
    """A phrase that moved a score."""

    text: str
    category: str
    value: float
    counts: bool  # False: in a clause that does not govern, in a condition, or a booster beside a hedge


@dataclasses.dataclass(frozen=True)
class SentenceScore:
    """One sentence of a step, as the lexicon read it."""

    text: str  # lower case, formulas, code and quotations masked
    decisiveness: float
    marks: tuple[Mark, ...]


@dataclasses.dataclass(frozen=True)
class LexiconScorer:
    r"""Decisiveness from marks of stance: hedges, boosters, self-corrections, questions.

    A step is cut into sentences; formulas, code and quotations are masked. In sentence s let H be the values of the
    hedges in the governing clause (the last of those joined by but, however, although, ...; conditions left
    out), together with its self-corrections and its being a question, and B the values of the boosters there:

        D_s = max({d0} u B)                    if H is empty,
        D_s = min(H) * gamma^(|H| - 1)         otherwise,
        D   = (1 - lam) * sum_s w_s D_s / sum_s w_s  +  lam * min_s D_s,

    where w_s = 1, but `closing` for the last sentence, which says what the step comes to. No hedge exceeds d0
    and gamma < 1, so another hedge in a sentence never raises D; a booster never lowers it. A negated booster
    (`not certain`) is a hedge with a value of its own.

    d0 = 0.9: a plain assertion commits its writer to all of its content, so it is decisive by default (published
    rubrics give it 1); what is left below 1 makes room for `certainly`, which people do rank higher.

    Args:
      lexicon: the marks, default the library's.
      plain: d0, in [the largest hedge, the smallest booster].
      stacking: gamma, what each further hedge in a clause leaves.
      weakest: lam, the share of a step's least decisive sentence: one `I have no idea` colours ten plain lines.
      closing: weight of the last sentence.

    Raises:
      UserError: a number out of its range.

    Source: the task and the scale are those of arXiv 2606.03969; lexicon, rules and values are this library's own.
    """

    lexicon: Lexicon = dataclasses.field(default_factory=load_lexicon, repr=False)
    plain: float = PLAIN
    stacking: float = 0.85
    weakest: float = 0.3
    closing: float = 2.0
    name: str = "lexicon"

    def __post_init__(self) -> None:
        hedges = [
            e.value for e in self.lexicon.entries if e.role in ("hedge", "correction") and e.value is not None
        ]
        boosters = [e.value for e in self.lexicon.entries if e.role == "booster" and e.value is not None]
        low, high = max([*hedges, *QUESTIONS.values()]), min([1.0, *boosters])
        if not low <= self.plain <= high:
            raise UserError(
                f"plain={self.plain}: give a value from {low} (largest hedge) to {high} (least booster)"
            )
        if not (0.0 <= self.stacking <= 1.0 and 0.0 <= self.weakest <= 1.0):
            raise UserError(f"stacking={self.stacking} and weakest={self.weakest} must be in [0, 1]")
        if not (math.isfinite(self.closing) and self.closing > 0.0):
            raise UserError(f"closing={self.closing} must be a positive number")

    def score(self, steps: Sequence[str]) -> list[float | None]:
        """One decisiveness a step; None for a step without a letter, a digit or a formula."""
        return [self._step(self.explain(step)) for step in steps]

    def explain(self, step: str) -> tuple[SentenceScore, ...]:
        """The sentences of a step with their scores and the phrases that made them."""
        return tuple(self._sentence(sentence) for sentence in sentences(step))

    def _step(self, scored: Sequence[SentenceScore]) -> float | None:
        if not scored:
            return None
        values = [sentence.decisiveness for sentence in scored]
        total = math.fsum([*values[:-1], self.closing * values[-1]])
        mean = total / (len(values) - 1 + self.closing)
        found = (1.0 - self.weakest) * mean + self.weakest * min(values)
        # Ten plain sentences and one are equally decisive: a rank correlation must not see the last bits of a sum.
        return round(min(1.0, max(0.0, found)), _DIGITS)

    def _sentence(self, sentence: str) -> SentenceScore:
        tokens = words(sentence)
        matches = self.lexicon.find(tokens)
        start, end = clauses.governing(tokens)
        antecedents = clauses.conditions(tokens)
        hedges: list[float] = []
        boosters: list[float] = []
        marks: list[Mark] = []
        asks = clauses.question(tokens)
        for match in matches:
            entry = match.entry
            asks = None if entry.category == "restated question" else asks
            if entry.value is None:
                continue
            value, raises = entry.value, entry.role == "booster"
            percent = _percent_before(tokens, match) if raises else None
            if raises and self._negated(tokens, match.start):
                value, raises = entry.negated or 0.0, False
                raises = value >= self.plain  # `need not be`: no hedge, no booster
            elif percent is not None:
                value, raises = percent, percent >= self.plain
            counts = entry.role == "correction" or (
                start <= match.start < end and not any(a < match.start < b for a, b in antecedents)
            )
            if counts:
                (boosters if raises else hedges).append(value)
            marks.append(Mark(" ".join(tokens[match.start : match.end]), entry.category, value, counts))
        if asks is not None:
            hedges.append(QUESTIONS[asks])
            marks.append(Mark("?", f"question: {asks}", QUESTIONS[asks], True))
        if hedges:
            decisiveness = min(hedges) * self.stacking ** (len(hedges) - 1)
            marks = [dataclasses.replace(m, counts=m.counts and m.value < self.plain) for m in marks]
        else:
            decisiveness = max([self.plain, *boosters])
        return SentenceScore(sentence, decisiveness, tuple(marks))

    def _negated(self, tokens: Sequence[str], start: int) -> bool:
        """Does a negation reach the booster at `start`, across words that do not stop it?"""
        negators, across = self.lexicon.classes.get("neg", ()), self.lexicon.classes.get("across", ())
        for i in range(start - 1, max(-1, start - 1 - _REACH), -1):
            if tokens[i] in negators:
                return True
            if tokens[i] not in across:
                return False
        return False


def _percent_before(tokens: Sequence[str], match: Match) -> float | None:
    """0.6 of `60% sure`."""
    at = match.start
    if tokens[at] not in _SURE or at < 2 or tokens[at - 1] != "%":
        return None
    try:
        return min(1.0, float(tokens[at - 2].replace(",", "")) / 100.0)
    except ValueError:
        return None
