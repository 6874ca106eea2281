"""A local checkpoint as judge of steps."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from caspo_jax.errors import UserError
from caspo_jax.steps.rollouts import Generate
from caspo_jax.steps.verifiers import VerifyItem
from caspo_jax.types import Question, Verdict

PROMPT_FILE = Path(__file__).with_name("judge_prompt.txt")
_FIELDS = ("question", "prefix", "step")
_VERDICT = re.compile(r"[*_\s]*verdict[*_\s]*:[*_\s]*(correct|wrong)[*_.\s]*", re.IGNORECASE)


def load_prompt(path: str | Path = PROMPT_FILE) -> str:
    """A judge's prompt template. Raises UserError unless it holds {question}, {prefix} and {step}."""
    try:
        template = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the judge's prompt {path}: {error.strerror}") from error
    missing = [f"{{{field}}}" for field in _FIELDS if f"{{{field}}}" not in template]
    if missing:
        raise UserError(f"{path}: the judge's prompt lacks {', '.join(missing)}")
    return template


def fill_prompt(template: str, **values: str) -> str:
    """The template with its fields filled in one pass, so that braces in the values stay as they are."""
    pattern = "|".join(re.escape(f"{{{name}}}") for name in values)
    return re.sub(pattern, lambda match: values[match.group()[1:-1]], template)


def parse_verdict(reply: str) -> Verdict:
    """The verdict of a reply's last line, which must be exactly `Verdict: correct` or `Verdict: wrong`."""
    lines = [line for line in reply.strip().splitlines() if line.strip()]
    match = _VERDICT.fullmatch(lines[-1]) if lines else None
    if match is None:
        return "unknown"
    return "correct" if match.group(1).lower() == "correct" else "wrong"


@dataclasses.dataclass(frozen=True)
class LocalJudge:
    """Asks a model about each step, all in one batch; a reply that is cut or has no verdict means unknown.

    `generate(questions, n)` is called with n = 1; it applies the judge's chat template to `question` and
    should sample greedily.
    """

    generate: Generate
    template: str = dataclasses.field(default_factory=load_prompt)
    name: str = "judge"

    def verify(self, items: Sequence[VerifyItem]) -> list[Verdict]:
        """One verdict an item."""
        if not items:
            return []
        prompts = [self.prompt(item) for item in items]
        distinct = list(dict.fromkeys(prompts))
        questions = [Question(id=f"judge/{_digest(prompt)}", question=prompt) for prompt in distinct]
        traces = self.generate(questions, 1)
        if len(traces) != len(questions):
            raise ValueError(f"generate gave {len(traces)} traces for {len(questions)} questions")
        verdicts = {
            prompt: parse_verdict(trace.text) if trace.finish_reason in ("eos", "stop") else "unknown"
            for prompt, trace in zip(distinct, traces)
        }
        return [verdicts[prompt] for prompt in prompts]

    def prompt(self, item: VerifyItem) -> str:
        """What the judge reads about an item."""
        question = item.question.question or item.question.prompt
        if question is None:
            raise UserError(f"question {item.question.id!r} has no text: a judge cannot read prompt_ids")
        return fill_prompt(
            self.template,
            question=question.strip(),
            prefix=item.prefix.strip() or "(none)",
            step=item.step.strip(),
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
