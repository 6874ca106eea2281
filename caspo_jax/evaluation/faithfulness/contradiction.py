"""Does what a model would have said contradict what it said? One protocol, and three who judge."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from caspo_jax.steps.answers import AnswerKind, equivalent
from caspo_jax.steps.asking import ask, fill_template, last_line, load_template
from caspo_jax.steps.marked import boxed_or_marked
from caspo_jax.steps.numerals import DEGREES
from caspo_jax.steps.rollouts import Generate

PROMPT_FILE = Path(__file__).with_name("contradiction_prompt.md")
_FIELDS = ("question", "prefix", "step", "continuation")
_LABEL = re.compile(r"\bcontradiction\s*:", re.IGNORECASE)
# A verdict, and what may follow it on its line: nothing, or a mark and whatever explains it.
_YES_OR_NO = re.compile(
    r"\s*(?:(?:final\s+)?(?:answer|verdict)\s*:\s*)?(yes|no)\b(?:\s+contradiction\b)?(?=\s*(?:$|[.,;:!()–—])|\s+-)",
    re.IGNORECASE,
)
# Of `2.5kg` nothing, and never 2.
_NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d+ (?=\d+/\d))?\d+(?:[.,/]\d+)*(?!\w|[.,/]\d)")
_FRACTION = re.compile(r"(\d\s*)?\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
# What makes a number an operand of something that is not worked out: `3x^2`, `\sqrt{2}`, `7 - 5`, `3 \pi`.
_BEFORE = re.compile(
    r"(?:[/^×÷·]|[\w)}]\s*\+|[\w)}](?:\*|\s+\*\s)|\\(?:times|cdot|div|pm|sqrt)|\\[dt]?frac(?:\s*\{[^{}]*\})?)\s*\{?\s*$"
)
_BINARY_MINUS = re.compile(r"(?:\b[A-Za-z]|\d|[)}])\s*$")
_AFTER = re.compile(r"\s*(?:[/^×÷·+]|\\(?!text|mbox|mathrm|q?quad)[A-Za-z])|\*\w|\s\*\s")

Contradicts = bool | None  # None: could not be told


@dataclasses.dataclass(frozen=True)
class ContradictionItem:
    """A step, and what the model said instead from the same prefix."""

    question: str  # "" where only ids are known
    prefix: str  # text before the step
    step: str
    continuation: str  # first paragraph of a sample


@runtime_checkable
class ContradictionJudge(Protocol):
    """Says whether a continuation contradicts a step."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def judge(self, items: Sequence[ContradictionItem]) -> list[Contradicts]:
        """One verdict an item, in order; None where it cannot tell."""
        ...


@dataclasses.dataclass(frozen=True)
class AnswerEquivalence:
    """Compares what step and continuation come to: another value contradicts, the same words never do, and another text
    without a value cannot be told.

    Args:
      value: text -> what it comes to, default `last_value`.
      same: (value, value) -> bool, default mathematical equivalence.
      name: what reports call it.
    """

    value: Callable[[str], str | None] | None = None
    same: Callable[[str, str], bool] | None = None
    name: str = "answers"

    def judge(self, items: Sequence[ContradictionItem]) -> list[Contradicts]:
        """One verdict an item."""
        read = self.value or last_value
        same = self.same or (lambda a, b: equivalent(a, b, AnswerKind.MATH))
        verdicts: list[Contradicts] = []
        known: dict[tuple[str, str], bool] = {}
        for item in items:
            mine, other = read(item.step), read(item.continuation)
            if item.step.split() == item.continuation.split():
                verdicts.append(False)
            elif mine is None or other is None:
                verdicts.append(None)
            else:
                if (mine, other) not in known:
                    known[mine, other] = not same(mine, other)
                verdicts.append(known[mine, other])
        return verdicts


def last_value(text: str) -> str | None:
    r"""What a paragraph comes to: its `\boxed{}`, what it marks as answer, else its last number; None without any.

    None too where that number is an operand of a formula: `x = \frac{3}{y}` and `x = \frac{3}{z}` do not both come to 3.
    """
    marked = boxed_or_marked(text)
    if marked:
        return marked
    text = _FRACTION.sub(lambda m: f"{m[1].rstrip()} {m[2]}/{m[3]}" if m[1] else f"{m[2]}/{m[3]}", text)
    text = re.sub(DEGREES, " ", text)
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    number, before = found[-1].group(), text[: found[-1].start()]
    minus = re.search(r"[-−]\s*$", before)
    if number[0] in "-−" or minus:
        operand = _BINARY_MINUS.search(before[: minus.start()] if minus else before)
    else:
        operand = _BEFORE.search(before)
    return None if operand or _AFTER.match(text, found[-1].end()) else number


def load_contradiction_prompt(path: str | Path = PROMPT_FILE) -> str:
    """A judge's prompt. Raises UserError unless it can be read and holds every one of its fields."""
    return load_template(path, _FIELDS, "judge's prompt")


def parse_contradiction(reply: str) -> Contradicts:
    """The verdict of a reply's last line that is not blank; nothing above it counts, so that thinking aloud does no harm.

    `Contradiction: yes` or `no`, anywhere in the line, decides; the last one if there are several. Without that label the
    line must begin with yes or no (`No.`, `Answer: yes`), and must not hold the other word too: `Yes, both say 5, so no
    contradiction` may mean either. What follows a verdict after a mark (`Contradiction: no - because yes would mean ...`) is
    its explanation and is not read; after anything else (`yes and no`) there is no verdict. Case and emphasis (`**No**`)
    make no difference.

    Returns:
      True for a contradiction, False for none, None where it could not be told: not a default of either kind, but
      `PrefixConfig.unparsed`, half a contradiction as published.
    """
    line = last_line(reply)
    *labelled, said = _LABEL.split(line)
    match = _YES_OR_NO.match(said)
    if match is None or (not labelled and len(set(re.findall(r"\b(?:yes|no)\b", line.lower()))) > 1):
        return None
    return match[1].lower() == "yes"


@dataclasses.dataclass(frozen=True)
class LocalContradictionJudge:
    """Asks a model, all in one batch; a reply that is cut or has no verdict cannot be told. Equal items once.

    Args:
      generate: `generate(questions, 1)` gives one trace a question, in order; greedy decoding is meant.
      template: the prompt, with {question}, {prefix}, {step} and {continuation}.
      name: what reports call it.

    Source: arXiv 2606.03969 has a hosted judge; the prompt is this library's own.
    """

    generate: Generate
    template: str = dataclasses.field(default_factory=load_contradiction_prompt, repr=False)
    name: str = "judge"

    def judge(self, items: Sequence[ContradictionItem]) -> list[Contradicts]:
        """One verdict an item."""
        prompts = [
            fill_template(
                self.template,
                question=item.question.strip() or "(not known)",
                prefix=item.prefix.strip() or "(nothing)",
                step=item.step.strip(),
                continuation=item.continuation.strip() or "(nothing)",
            )
            for item in items
        ]
        return ask(self.generate, prompts, "contradiction", parse_contradiction, None)
