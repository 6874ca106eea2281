"""Traces to what the viewer draws: a small index of all of them, and their texts in chunks that open when needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax.evaluation.report.align import utf16_length
from caspo_jax.evaluation.report.beside import Beside
from caspo_jax.evaluation.report.choice import choose, question_of
from caspo_jax.evaluation.report.encode import short, thousandths
from caspo_jax.evaluation.report.folder import Run, TraceFile
from caspo_jax.evaluation.report.spelling import Spelling, Spellings
from caspo_jax.types import Step, Trace

CHUNK_TOKENS = 20_000  # a chunk is closed once it holds this many
PROBED = 20  # traces that a tokenizer must spell to be taken for a file's own
VERDICTS = {"correct": 1, "wrong": 0, "unknown": None}  # as the page has them


@dataclasses.dataclass(frozen=True)
class TraceView:
    """What goes into the page.

    sets: of each file name, run, counts; index: columns with one entry a trace; chunks: lists of traces.
    """

    sets: list[dict[str, Any]]
    questions: list[list[str | None]]
    index: dict[str, list[Any]]
    names: dict[str, dict[str, str]]  # run -> token id -> what a token that spells nothing is called
    chunks: list[list[dict[str, Any]]]


def confidence_gap(trace: Trace) -> float | None:
    """Mean confidence minus share right over the steps that have both; above 0 the trace is surer than it is right.

    None where no step has both, or where the confidence is none of [0, 1] (`sum_logprob`, `deepconf`, ...).
    """
    judged = [s for s in trace.steps if s.verdict != "unknown" and s.confidence is not None]
    if not judged or any(not 0 <= (s.confidence or 0.0) <= 1 for s in judged):
        return None
    return float(np.mean([(s.confidence or 0.0) - (s.verdict == "correct") for s in judged]))


def overstatement(trace: Trace, beside: Beside) -> float | None:
    """Mean decisiveness of the words minus confidence over the steps that have both; None where none has."""
    both = [
        (said, step.confidence)
        for said, step in zip(beside.decisiveness, trace.steps)
        if said is not None and step.confidence is not None
    ]
    if not both or any(not 0 <= sure <= 1 for _, sure in both):
        return None
    return float(np.mean([said - sure for said, sure in both]))


def is_flawed(trace: Trace) -> bool:
    """The answer is right and some step is wrong."""
    return bool(trace.correct) and any(s.verdict == "wrong" for s in trace.steps)


def view_traces(runs: Sequence[Run], spellings: Mapping[str, Spellings], most: int) -> TraceView:
    """The viewer's data.

    Args:
      runs: with their trace files.
      spellings: run name -> tokenizers to try.
      most: traces of one file; of more, whole questions are chosen (`choose`).
    """
    view = TraceView(
        sets=[],
        questions=[],
        index={
            k: []
            for k in ("set", "id", "question", "correct", "flawed", "gap", "boast", "confidence", "tokens")
        }
        | {"chunk": [], "place": []},
        names={},
        chunks=[],
    )
    known: dict[tuple[str, str | None, str | None], int] = {}
    room = 0
    for run in runs:
        for file in run.traces:
            shown = choose(file.traces, most)
            probes = [(t.token_ids, t.text) for t in file.traces[:PROBED]]
            spelling = spellings[run.name].find(probes)
            view.sets.append(_set(run, file, len(shown), spelling))
            names = view.names.setdefault(run.name, {})
            for number in shown:
                trace = file.traces[number]
                if room <= 0:
                    view.chunks.append([])
                    room = CHUNK_TOKENS
                key = (question_of(trace), trace.question or trace.prompt, trace.gold)
                question = known.setdefault(key, len(known))
                if question == len(view.questions):
                    view.questions.append(list(key))
                boast = overstatement(trace, file.beside[number])
                _add(view.index, trace, question, boast, len(view.sets) - 1, view.chunks)
                view.chunks[-1].append(_trace(trace, file.beside[number], spelling, names))
                room -= max(1, len(trace.token_ids))
    return view


def _set(run: Run, file: TraceFile, shown: int, spelling: Spelling | None) -> dict[str, Any]:
    return {
        "run": run.name,
        "name": file.name,
        "shown": shown,
        "total": len(file.traces),
        "tokens": spelling is not None,
        "strategies": sorted({t.strategy for t in file.traces if t.strategy}),
    }


def _add(
    index: dict[str, list[Any]],
    trace: Trace,
    question: int,
    boast: float | None,
    set_: int,
    chunks: list[Any],
) -> None:
    row = {
        "set": set_,
        "id": trace.id,
        "question": question,
        "correct": None if trace.correct is None else int(trace.correct),
        "flawed": int(is_flawed(trace)),
        "gap": short(confidence_gap(trace), 3),
        "boast": short(boast, 3),
        "confidence": short(_confidence(trace), 3),
        "tokens": len(trace.token_ids),
        "chunk": len(chunks) - 1,
        "place": len(chunks[-1]),
    }
    for name, value in row.items():
        index[name].append(value)


def _confidence(trace: Trace) -> float | None:
    if trace.path_confidence is not None:
        return trace.path_confidence
    known = [s.confidence for s in trace.steps if s.confidence is not None]
    return float(np.mean(known)) if known else None


def _trace(trace: Trace, beside: Beside, spelling: Spelling | None, names: dict[str, str]) -> dict[str, Any]:
    lengths = spelling.lengths(trace.token_ids, trace.text) if spelling is not None else None
    if lengths is not None and spelling is not None:
        name_silent(trace.token_ids, lengths, spelling, names)
    stated = [*beside.decisiveness, *[None] * (len(trace.steps) - len(beside.decisiveness))]
    estimates = {
        name: [short(v) for v in values]
        for name, values in beside.estimates.items()
        if len(values) == len(trace.steps) and any(v is not None for v in values)
    }
    units = _units(trace.text, trace.steps)
    record = {
        "answer": trace.answer,
        "finish": trace.finish_reason,
        "path": short(trace.path_confidence),
        "strategy": trace.strategy,
        "policy": trace.policy,
        "text": trace.text,
        "ids": list(trace.token_ids),
        "lengths": lengths,
        "entropy": thousandths(trace.entropy),
        "surprise": thousandths(trace.logprob, sign=-1),
        "steps": [
            [*units[i], s.token_start, s.token_end, *_judgement(s, stated[i])]
            for i, s in enumerate(trace.steps)
        ],
        "estimates": estimates or None,
        "verifier": next((s.verifier for s in trace.steps if s.verifier), None),
    }
    return {name: value for name, value in record.items() if value is not None}


def _judgement(step: Step, decisiveness: float | None) -> list[float | None]:
    return [short(step.confidence), short(step.entropy), VERDICTS[step.verdict], short(decisiveness)]


def name_silent(
    token_ids: Iterable[int], lengths: Sequence[int], spelling: Spelling, names: dict[str, str]
) -> None:
    """Note in `names` what the tokens that spell nothing are called."""
    for token, length in zip(token_ids, lengths, strict=True):
        if length == 0 and token in spelling.names:
            names[str(token)] = spelling.names[token]


def _units(text: str, steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Character spans of the steps, counted in UTF-16 units."""
    spans, at, units = [], 0, 0
    for step in steps:
        marks = []
        for place in (step.start, step.end):
            place = max(place, at)
            units += utf16_length(text[at:place])
            at = place
            marks.append(units)
        spans.append((marks[0], marks[1]))
    return spans
