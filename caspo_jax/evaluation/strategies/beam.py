"""Step-level beam search: the surest prefixes go on, step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, timed
from caspo_jax.evaluation.strategies.prefixes import FIRST_ROOM, Prefixes, steps_of, sureness
from caspo_jax.models import token_bytes
from caspo_jax.sampling import SampleConfig, first_stop, token_text
from caspo_jax.types import Trace


@dataclasses.dataclass(frozen=True)
class Beam:
    """A prefix of whole steps."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # of its tokens
    value: float = 0.0  # how sure its steps are
    ended: bool = False


def beam(context: Context, settings: Settings) -> list[Answer]:
    """For each (b, m): of the b x m candidate next steps of a question the b with the surest paths are kept.

    All candidates of a round have closed the same number of steps, which the asynchronous branches of the loop do not:
    so each round is a call of the loop in which a step delimiter ends an output. (One that only goes on with the delimiter
    before it has closed no step more; it is as sure as it was.) Finished paths stay and compete; the answer is that of the
    surest one.

    Source: Xie et al. 2023, with the policy's own confidence as the judge.
    """
    answers: list[Answer] = []
    for kept, tried in settings.beams:
        answers += timed(functools.partial(_beam, context, settings, kept, tried), len(context.questions))
    return answers


def _beam(context: Context, settings: Settings, kept: int, tried: int) -> list[Answer]:
    sample = settings.sample
    config = dataclasses.replace(sample, num_samples=tried, stop=(sample.step_delimiter, *sample.stop))
    prefixes = Prefixes.of(context, config, len(context.questions) * kept)
    beams: list[list[Beam]] = [[Beam()] for _ in context.questions]
    tokens, calls = np.zeros(len(beams), int), np.zeros(len(beams), int)
    spelled = token_bytes(context.tokenizer, context.model.config.vocab_size)
    step_room = FIRST_ROOM
    for depth in range(settings.most_steps):
        wanted = [
            (q, b.ids, f"step{depth}/{rank}")
            for q, held in enumerate(beams)
            for rank, b in enumerate(held)
            if not b.ended
        ]
        if not wanted:
            break
        found, step_room = prefixes.extend_by_steps(wanted, config, step_room)
        grown: list[list[Beam]] = [[b for b in held if b.ended] for held in beams]
        longest = np.zeros(len(beams), int)
        sources = [b for held in beams for b in held if not b.ended]
        for (q, ids, _), source, traces in zip(wanted, sources, found):
            if not traces:  # no room left
                grown[q].append(dataclasses.replace(source, ended=True))
            for trace in traces:
                child = _child(source, trace, sample, spelled)
                grown[q].append(child)
                added = len(child.ids) - len(ids)
                tokens[q] += added
                longest[q] = max(longest[q], added)
        calls += longest + (longest > 0)
        beams = [
            sorted({b.ids: b for b in held}.values(), key=lambda b: -b.value)[:kept] if held else []
            for held in grown
        ]
    answers = []
    for q, question in enumerate(context.questions):
        best = max([b for b in beams[q] if b.ended] or beams[q], key=lambda b: b.value)
        answer = context.extract(token_text(spelled, best.ids))
        answers.append(
            Answer(
                "beam",
                f"{kept}x{tried}",
                question.id,
                answer,
                None,
                int(tokens[q]),
                int(calls[q]),
            )
        )
    return answers


def _child(beam: Beam, trace: Trace, sample: SampleConfig, spelled: Sequence[bytes]) -> Beam:
    """The beam and the step that a continuation of it wrote, as far as an output may go."""
    room = sample.max_new_tokens - len(beam.ids)
    ids = (*beam.ids, *trace.token_ids[:room])
    logprobs = (*beam.logprobs, *(trace.logprob or ())[:room])
    closed = trace.finish_reason == "stop" and first_stop(spelled, ids, sample.stop) is None
    value = sureness(steps_of(ids, logprobs, spelled, sample.step_delimiter))
    return Beam(ids, logprobs, value, ended=not closed or len(trace.token_ids) >= room)
