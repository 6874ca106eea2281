"""Outputs as they were found to traces that can be measured: prompt ids, token ids, steps on both text and tokens."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from caspo_jax.confidence.forced import StepRow
from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.formats import Source
from caspo_jax.evaluation.faithfulness.placing import place_steps, spelled_tags, token_ids_by_bytes
from caspo_jax.evaluation.faithfulness.thinking import Status, thinking_steps
from caspo_jax.models import ModelConfig, encode_prompt, render_chat, token_bytes
from caspo_jax.models.tokenizer import opened_once
from caspo_jax.records import trace_from_record, trace_to_record
from caspo_jax.steps.segmentation import join_bytes
from caspo_jax.store import short_hash
from caspo_jax.types import DEFAULT_DELIMITER, OPEN_THOUGHT, Question, Trace

Which = Literal["auto", "thinking", "all"]
TOP = 5  # log-probs a token that the published token estimator averages


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trace ready to be measured."""

    trace: Trace  # steps are paragraphs of the thinking block, or of the whole text
    group: str  # question: what the bootstrap resamples
    thinking: Status
    giant: bool
    uncounted: tuple[int, ...]  # tokens of steps that no confidence looks at (pure delimiter)
    mean_top5: tuple[float, ...] | None  # [T] recorded mean of the top five log-probs, nats
    notes: tuple[str, ...]  # what was odd: retokenised, no_prompt, too_long, text_differs, no_steps

    @property
    def id(self) -> str:
        """The trace's id."""
        return self.trace.id

    @property
    def readable(self) -> bool:
        """Can the checkpoint read it?"""
        return "too_long" not in self.notes and bool(self.trace.token_ids)

    def row(self) -> StepRow:
        """The trace as the model reads it; tokens between steps belong to the step before."""
        steps = self.trace.steps
        starts = (*(s.token_start for s in steps), steps[-1].token_end) if steps else ()
        return StepRow(self.trace.prompt_ids, self.trace.token_ids, starts)

    def masks(self) -> np.ndarray:
        """[S, T] bool, the tokens that count in each step."""
        masks = np.zeros((len(self.trace.steps), len(self.trace.token_ids)), bool)
        for row, step in zip(masks, self.trace.steps):
            row[step.token_start : step.token_end] = True
        masks[:, list(self.uncounted)] = False
        return masks


def prepare(
    sources: Sequence[Source],
    tokenizer: Any,
    config: ModelConfig,
    *,
    which: Which = "auto",
    delimiter: str = DEFAULT_DELIMITER,
    split_giant: bool = True,
) -> list[Subject]:
    """Token ids, prompt ids and steps of outputs.

    Recorded token ids are used as they are; ids that a server did not report are found by the bytes of its tokens, else
    the text is tokenised anew and recorded log-probs are dropped (`retokenised`).

    Args:
      sources: from `read_sources`.
      tokenizer: of the checkpoint that will read them.
      config: the checkpoint's ModelConfig.
      which: steps of the `thinking` block only; of the whole text where there is none (`all`); `auto` does that if no
        trace has a block.
      delimiter: what ends a step.
      split_giant: cut a giant paragraph at its line breaks.

    Raises:
      UserError: no tokenizer, an id outside the vocabulary.
    """
    if tokenizer is None:
        raise UserError("the checkpoint has no tokenizer: steps cannot be placed on tokens")
    spelled = spelled_tags(tokenizer, token_bytes(tokenizer, config.vocab_size))
    inverse = token_ids_by_bytes(tokenizer, spelled)
    prompts = [_prompt_ids(source, tokenizer) for source in sources]
    opened = [_ends_open(prompt, spelled) for prompt in prompts]
    whole = which == "all"
    if which == "auto":
        found = (thinking_steps(s.text, opened=o) for s, o in zip(sources, opened))
        whole = all(item.status == "none" for item in found)
    return [
        _subject(
            source,
            prompt,
            tokenizer,
            inverse,
            spelled=spelled,
            context=config.context,
            opened=is_open,
            whole_text=whole,
            delimiter=delimiter,
            split_giant=split_giant,
        )
        for source, prompt, is_open in zip(sources, prompts, opened)
    ]


def count_subjects(subjects: Sequence[Subject]) -> dict[str, int]:
    """What a report says of its traces: how many, and how many were odd in which way."""
    notes = collections.Counter(note for subject in subjects for note in subject.notes)
    return {
        "traces": len(subjects),
        "questions": len({subject.group for subject in subjects}),
        "steps": sum(len(subject.trace.steps) for subject in subjects),
        "no_thinking": sum(subject.thinking == "none" for subject in subjects),
        "unclosed": sum(subject.thinking == "unclosed" for subject in subjects),
        "giant": sum(subject.giant for subject in subjects),
        **{
            note: notes[note] for note in ("no_steps", "no_prompt", "retokenised", "text_differs", "too_long")
        },
    }


def subject_to_record(subject: Subject) -> dict[str, Any]:
    """One line of the prepared traces: a trace record with a few fields more."""
    record = trace_to_record(subject.trace)
    for field in ("group", "thinking", "giant"):
        record[field] = getattr(subject, field)
    return record | {
        "uncounted": list(subject.uncounted),
        "mean_top5_logprob": None if subject.mean_top5 is None else list(subject.mean_top5),
        "notes": list(subject.notes),
    }


def subject_from_record(record: Mapping[str, Any]) -> Subject:
    """Read it back."""
    top = record.get("mean_top5_logprob")
    return Subject(
        trace=trace_from_record(record),
        group=record["group"],
        thinking=record["thinking"],
        giant=record["giant"],
        uncounted=tuple(record["uncounted"]),
        mean_top5=None if top is None else tuple(top),
        notes=tuple(record["notes"]),
    )


def _subject(
    source: Source,
    prompt_ids: tuple[int, ...],
    tokenizer: Any,
    inverse: Mapping[bytes, int],
    *,
    spelled: Sequence[bytes],
    context: int,
    **placing: Any,
) -> Subject:
    """One output prepared; `placing` are keywords of `place_steps`."""
    notes = []
    given = source.trace
    ids = given.token_ids if given is not None else _recorded_ids(source, inverse)
    logprob = given.logprob if given is not None else None
    mean_top5 = None
    if ids is None:
        plain = source.text.encode("utf-8", "replace").decode()  # no tokenizer takes a lone surrogate
        ids = tuple(tokenizer(plain, add_special_tokens=False)["input_ids"])
        notes.append("retokenised")
    elif given is None:
        logprob, mean_top5 = _recorded_stats(source)
    try:
        join_bytes(prompt_ids, spelled)  # refuses ids of another vocabulary, as for the output's
        text, found, steps, counted = place_steps(ids, spelled, **placing)
    except UserError as error:
        raise UserError(f"trace {source.id!r}: {error}") from error
    if text.strip() != source.text.strip():
        notes.append("text_differs")
    if not steps:
        notes.append("no_steps")
    if not prompt_ids:
        notes.append("no_prompt")
    if len(prompt_ids) + len(ids) > context:
        notes.append("too_long")
    if given is not None:
        verdicts = {(s.token_start, s.token_end): (s.verdict, s.verifier) for s in given.steps}
        known = [verdicts.get((s.token_start, s.token_end), ("unknown", None)) for s in steps]
        steps = tuple(dataclasses.replace(s, verdict=v, verifier=w) for s, (v, w) in zip(steps, known))
    base = given or Trace(
        id=source.id,
        question=source.question,
        gold=source.gold,
        prompt=source.prompt,
        prompt_ids=prompt_ids,
        token_ids=ids,
        text=text,
        finish_reason=source.finish_reason,
        correct=source.correct,
    )
    trace = dataclasses.replace(base, prompt_ids=prompt_ids, text=text, steps=steps, logprob=logprob)
    inside = [t for s in steps for t in range(s.token_start, s.token_end)]
    return Subject(
        trace=trace,
        group=_group(source),
        thinking=found.status,
        giant=found.giant,
        uncounted=tuple(t for t in inside if not counted[t]),
        mean_top5=mean_top5,
        notes=tuple(notes),
    )


def _recorded_ids(source: Source, inverse: Mapping[bytes, int]) -> tuple[int, ...] | None:
    ids = [inverse.get(token.data) if token.id is None else token.id for token in source.tokens]
    return tuple(i for i in ids if i is not None) if ids and None not in ids else None


def _recorded_stats(source: Source) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Log-prob and mean of the top five of every token, each None unless all tokens have it."""
    logprobs = [token.logprob for token in source.tokens]
    tops = [token.top[:TOP] for token in source.tokens]
    known = tuple(float(v) for v in logprobs if v is not None)
    full = all(len(top) == TOP and all(math.isfinite(v) for v in top) for top in tops)
    return (
        known if len(known) == len(logprobs) else None,
        tuple(sum(top) / TOP for top in tops) if full else None,
    )


def _prompt_ids(source: Source, tokenizer: Any) -> tuple[int, ...]:
    if source.prompt_ids is not None:
        return source.prompt_ids
    return tuple(opened_once(tokenizer, _rendered(source, tokenizer), source.text))


def _rendered(source: Source, tokenizer: Any) -> Sequence[int]:
    if source.messages is not None and tokenizer.chat_template:
        rendered = render_chat(tokenizer, source.messages, f"trace {source.id!r}")
        rendered = rendered.encode("utf-8", "replace").decode()
        return list(tokenizer.encode(rendered, add_special_tokens=False))
    question, prompt = source.question, source.prompt or None
    if source.messages is not None and question is None:
        question = "\n\n".join(message["content"] for message in source.messages)
    if not (prompt or question):
        return []
    return encode_prompt(tokenizer, Question(source.id, question=question, prompt=prompt))


def _ends_open(prompt_ids: Sequence[int], spelled: Sequence[bytes]) -> bool:
    tail = b"".join(spelled[i] for i in prompt_ids[-16:] if 0 <= i < len(spelled))
    return tail.rstrip().endswith(OPEN_THOUGHT.encode())


def _group(source: Source) -> str:
    """The question's name: given, or its text, so that two policies' traces meet; a trace of no question is its own."""
    if source.group is not None:
        return source.group
    if source.question or source.prompt:
        return source.question or source.prompt or ""
    asked = source.messages or source.prompt_ids
    return short_hash(repr(asked)) if asked else source.id
