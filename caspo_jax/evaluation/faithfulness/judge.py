"""A local checkpoint as judge of decisiveness."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from caspo_jax.evaluation.faithfulness.decisiveness import Score
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.steps.asking import ask, fill_template, last_line, load_template
from caspo_jax.steps.rollouts import Generate
from caspo_jax.types import Question, Trace

RUBRIC_FILE = Path(__file__).with_name("judge_rubric.md")
_RATING = re.compile(r"decisiveness\s*:\s*(0(?:\.\d{1,4})?|1(?:\.0{1,4})?)\s*\.?", re.IGNORECASE)


def load_rubric(path: str | Path = RUBRIC_FILE) -> str:
    """A judge's rubric. Raises UserError unless it can be read and holds {step}."""
    return load_template(path, ("step",), "judge's rubric")


def parse_rating(reply: str) -> Score:
    """The rating of a reply's last line, which must be exactly `Decisiveness: N` with N in [0, 1]; else None."""
    match = _RATING.fullmatch(last_line(reply))
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
        asked = [text for text in texts if text]
        prompts = [fill_template(self.rubric, step=text) for text in asked]
        ratings = dict(zip(asked, ask(self.generate, prompts, "decisiveness", parse_rating, None)))
        return [ratings.get(text) for text in texts]


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
    config = SampleConfig(max_new_tokens=max_new_tokens, temperature=0.0)

    def ask(questions: Sequence[Question], n: int) -> Sequence[Trace]:
        wanted = dataclasses.replace(config, num_samples=n)
        return generate(model, tokenizer, questions, wanted, jax.random.key(0), batch_size=batch_size)

    return LocalDecisivenessJudge(ask, load_rubric(rubric), name)
