"""A local checkpoint as judge of steps."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.steps.asking import ask, fill_template, last_line, load_template
from caspo_jax.steps.rollouts import Generate
from caspo_jax.steps.verifiers import VerifyItem
from caspo_jax.store import short_hash
from caspo_jax.types import Verdict

PROMPT_FILE = Path(__file__).with_name("judge_prompt.txt")
_FIELDS = ("question", "prefix", "step")
_VERDICT = re.compile(r"verdict\s*:\s*(correct|wrong)\s*\.?", re.IGNORECASE)


def load_prompt(path: str | Path = PROMPT_FILE) -> str:
    """A judge's prompt template. Raises UserError unless it holds {question}, {prefix} and {step}."""
    return load_template(path, _FIELDS, "judge's prompt")


def parse_verdict(reply: str) -> Verdict:
    """The verdict of a reply's last line, which must be exactly `Verdict: correct` or `Verdict: wrong`."""
    match = _VERDICT.fullmatch(last_line(reply))
    if match is None:
        return "unknown"
    return "correct" if match.group(1).lower() == "correct" else "wrong"


@dataclasses.dataclass(frozen=True)
class LocalJudge:
    """Asks a model about each step, all in one batch; a reply that is cut or has no verdict means unknown.

    `generate(questions, n)` is called with n = 1; it applies the judge's chat template to `question` and
    should sample greedily. `decoding` says what it decodes with, for manifests.
    """

    generate: Generate
    template: str = dataclasses.field(default_factory=load_prompt)
    name: str = "judge"
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # checkpoint and the like

    @property
    def settings(self) -> dict[str, Any]:
        """The prompt's hash and what the judge decodes with, for manifests."""
        return {"prompt": short_hash(self.template), **self.decoding}

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item."""
        return ask(self.generate, [self.prompt(item) for item in items], "judge", parse_verdict, "unknown")

    def prompt(self, item: VerifyItem) -> str:
        """What the judge reads about an item."""
        question = item.question.question or item.question.prompt
        if question is None:
            raise UserError(f"question {item.question.id!r} has no text: a judge cannot read prompt_ids")
        return fill_template(
            self.template,
            question=question.strip(),
            prefix=item.prefix.strip() or "(none)",
            step=item.step.strip(),
        )
