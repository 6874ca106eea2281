"""Labelled solutions (PRM800K, Math-Shepherd, ProcessBench) to annotated traces."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from caspo_jax.models.tokenizer import encode_prompt
from caspo_jax.steps import DEFAULT_DELIMITER
from caspo_jax.steps.labels import LabelledSteps
from caspo_jax.types import Question, Step, Trace

_KEPT = 4096  # encodings of steps


def labelled_to_trace(solution: LabelledSteps, tokenizer: Any, **options: Any) -> Trace:
    """One of `labelled_to_traces`, with its arguments."""
    return labelled_to_traces([solution], tokenizer, **options)[0]


def labelled_to_traces(
    solutions: Sequence[LabelledSteps],
    tokenizer: Any,
    *,
    delimiter: str = DEFAULT_DELIMITER,
    eos_id: int | None = None,
    name: str = "recorded",
) -> list[Trace]:
    """Labelled solutions as annotated traces; each step is encoded apart, with its delimiter.

    So equal prefixes have equal token ids, whatever follows. Steps carry no confidence: `score` a trace to
    get its token statistics, then `segment_trace` keeps the spans if no step contains the delimiter.

    Args:
      solutions: steps and verdicts.
      tokenizer: encodes prompts and steps.
      delimiter: put between steps; the last one gets it unless it ended the solution.
      eos_id: put after the last step if it ended the solution; default the tokenizer's.
      name: of the verifier on record.
    """
    encoder = _Encoder(tokenizer)
    eos = tokenizer.eos_token_id if eos_id is None else eos_id
    return [_trace(solution, encoder, delimiter, eos, name) for solution in solutions]


class _Encoder:
    """A tokenizer that keeps what it encoded last: PRM800K's alternatives to a step repeat the question and all steps before."""

    def __init__(self, tokenizer: Any) -> None:
        @functools.lru_cache(maxsize=_KEPT)
        def step(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        self.step, self._tokenizer = step, tokenizer
        self._asked = ""
        self._prompt: tuple[int, ...] = ()

    def prompt(self, solution: LabelledSteps) -> tuple[int, ...]:
        if solution.question != self._asked or not self._prompt:
            question = Question(id=solution.id, question=solution.question, gold=solution.gold)
            self._asked, self._prompt = solution.question, tuple(encode_prompt(self._tokenizer, question))
        return self._prompt


def _trace(solution: LabelledSteps, encoder: _Encoder, delimiter: str, eos: int | None, name: str) -> Trace:
    ids: list[int] = []
    steps: list[Step] = []
    text = ""
    for nth, (body, verdict) in enumerate(zip(solution.steps, solution.verdicts, strict=True)):
        ends = solution.ended and nth == len(solution.steps) - 1
        start, token_start = len(text), len(ids)
        ids += encoder.step(body if ends else body + delimiter)
        if ends and eos is not None:
            ids.append(eos)
        text += body if ends else body + delimiter
        steps.append(
            Step(
                start=start,
                end=start + len(body),
                token_start=token_start,
                token_end=len(ids),
                text=body,
                verdict=verdict,
                verifier=name,
            )
        )
    return Trace(
        id=solution.id,
        question=solution.question,
        gold=solution.gold,
        prompt=None,
        prompt_ids=encoder.prompt(solution),
        token_ids=tuple(ids),
        text=text,
        finish_reason="eos" if solution.ended else "length",
        strategy="recorded",
        steps=tuple(steps),
    )
