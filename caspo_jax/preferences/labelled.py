"""Labelled solutions (PRM800K, Math-Shepherd, ProcessBench) to annotated traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo_jax.models.tokenizer import encode_prompt
from caspo_jax.steps import DEFAULT_DELIMITER
from caspo_jax.steps.labels import LabelledSteps
from caspo_jax.types import Question, Step, Trace


def labelled_to_trace(
    solution: LabelledSteps,
    tokenizer: Any,
    *,
    delimiter: str = DEFAULT_DELIMITER,
    eos_id: int | None = None,
    name: str = "recorded",
) -> Trace:
    """A labelled solution as an annotated trace; each step is encoded apart, with its delimiter.

    So equal prefixes have equal token ids, whatever follows. Steps carry no confidence: `score` the trace to
    get its token statistics, then `segment_trace` keeps the spans if no step contains the delimiter.

    Args:
      solution: steps and verdicts.
      tokenizer: encodes prompt and steps.
      delimiter: put between steps; the last one gets it unless it ended the solution.
      eos_id: put after the last step if it ended the solution; default the tokenizer's.
      name: of the verifier on record.
    """
    question = Question(id=solution.id, question=solution.question, gold=solution.gold)
    eos = tokenizer.eos_token_id if eos_id is None else eos_id
    ids: list[int] = []
    steps: list[Step] = []
    text = ""
    for nth, (body, verdict) in enumerate(zip(solution.steps, solution.verdicts, strict=True)):
        ends = solution.ended and nth == len(solution.steps) - 1
        start, token_start = len(text), len(ids)
        ids += tokenizer.encode(body if ends else body + delimiter, add_special_tokens=False)
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
        prompt_ids=tuple(encode_prompt(tokenizer, question)),
        token_ids=tuple(ids),
        text=text,
        finish_reason="eos" if solution.ended else "length",
        strategy="recorded",
        steps=tuple(steps),
    )


def labelled_to_traces(solutions: Sequence[LabelledSteps], tokenizer: Any, **options: Any) -> list[Trace]:
    """`labelled_to_trace` of each."""
    return [labelled_to_trace(solution, tokenizer, **options) for solution in solutions]
