"""A local checkpoint as judge of decisiveness."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.decisiveness import Score
from caspo_jax.steps.judge import fill_prompt
from caspo_jax.steps.rollouts import Generate
from caspo_jax.types import Question, Trace

RUBRIC_FILE = Path(__file__).with_name("judge_rubric.md")
_RATING = re.compile(
    r"[*_\s]*decisiveness[*_\s]*:[*_\s]*(0(?:\.\d{1,4})?|1(?:\.0{1,4})?)[*_\s]*\.?[*_\s]*", re.IGNORECASE
)
_LONGEST_LINE = 200  # the rating's line is short; a longer one is no rating


def load_rubric(path: str | Path = RUBRIC_FILE) -> str:
    """A judge's rubric. Raises UserError unless it can be read and holds {step}."""
    try:
        rubric = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the judge's rubric {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save the rubric as UTF-8") from error
    if "{step}" not in rubric:
        raise UserError(f"{path}: the rubric lacks {{step}}, the place of the step; add it")
    return rubric


def parse_rating(reply: str) -> Score:
    """The rating of a reply's last line, which must be exactly `Decisiveness: N` with N in [0, 1]; else None."""
    lines = [line for line in reply.strip().splitlines() if line.strip()]
    if not lines or len(lines[-1]) > _LONGEST_LINE:
        return None
    match = _RATING.fullmatch(lines[-1])
    return None if match is None else float(match.group(1))


@dataclasses.dataclass(frozen=True)
class LocalDecisivenessJudge:
    """Asks a model to rate each step by a rubric, all in one batch.

    A reply that is cut, or whose last line is no rating, gives None: a failure is missing, never a default (the
    published judge counts it 1). Equal steps are asked once, empty ones never.

    Args:
        generate: `generate(questions, 1)` gives one trace a question, in order; it applies the judge's chat
            template to `question` and should decode greedily.
        rubric: the prompt, with {step} where the step goes.
        name: what reports call the judge.

    Source: arXiv 2606.03969 has a hosted judge; the rubric is this library's own.
    """

    generate: Generate
    rubric: str = dataclasses.field(default_factory=load_rubric, repr=False)
    name: str = "judge"

    def score(self, steps: Sequence[str]) -> list[Score]:
        """One rating a step; None for an empty step and for a failure of the judge."""
        texts = [step.strip() for step in steps]
        distinct = list(dict.fromkeys(text for text in texts if text))
        if not distinct:
            return [None] * len(texts)
        traces = self.generate([self.question(text) for text in distinct], 1)
        if len(traces) != len(distinct):
            raise ValueError(f"generate gave {len(traces)} traces for {len(distinct)} questions")
        ratings = {text: _rating(trace) for text, trace in zip(distinct, traces)}
        return [ratings.get(text) for text in texts]

    def question(self, step: str) -> Question:
        """What the judge reads about a step."""
        prompt = fill_prompt(self.rubric, step=step)
        digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Question(id=f"decisiveness/{digest}", question=prompt)


def judge_from_model(
    model: Any,
    tokenizer: Any,
    *,
    rubric: str | Path = RUBRIC_FILE,
    max_new_tokens: int = 512,
    batch_size: int | None = None,
    name: str = "judge",
) -> LocalDecisivenessJudge:
    """A judge that decodes greedily from a loaded checkpoint.

    Args:
        model: a Decoder.
        tokenizer: its tokenizer, whose chat template is applied.
        rubric: the rubric's file.
        max_new_tokens: length of a reply; one that needs more is a failure.
        batch_size: replies on the device at once (default: by memory).
        name: what reports call the judge.

    Raises:
        UserError: a rubric that cannot be used.
    """
    import jax

    from caspo_jax.sampling import SampleConfig, generate

    config = SampleConfig(max_new_tokens=max_new_tokens, temperature=0.0)

    def ask(questions: Sequence[Question], n: int) -> Sequence[Trace]:
        wanted = dataclasses.replace(config, num_samples=n)
        return generate(model, tokenizer, questions, wanted, jax.random.key(0), batch_size=batch_size)

    return LocalDecisivenessJudge(ask, load_rubric(rubric), name)


def _rating(trace: Trace) -> Score:
    return parse_rating(trace.text) if trace.finish_reason in ("eos", "stop") else None
