"""Scores that someone else gave, from a file: people, a hosted judge, an earlier run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.faithfulness.decisiveness import Score
from caspo_jax.records import VERSION, check_schema
from caspo_jax.store import parse_at, read_jsonl

SCHEMA = "decisiveness"


@dataclasses.dataclass(frozen=True)
class RecordedTrace:
    """The recorded scores of one trace; `score` wants its steps, all and in order."""

    trace_id: str
    scores: Mapping[int, Score]
    texts: Mapping[int, str]  # what was scored, where the file says so
    length: int | None = None  # number of steps, if the file gave the whole trace
    name: str = "recorded"
    of_no_trace: Mapping[str, Score] = dataclasses.field(default_factory=dict)  # stripped text -> score

    def score(self, steps: Sequence[str]) -> list[Score]:
        """One score a step by position, else by its text among those of no trace; None where there is none.

        Raises:
          UserError: scores of other steps: another number of them, or another text.
        """
        recorded = max(self.scores, default=-1) + 1
        if recorded > len(steps) or (self.length is not None and self.length != len(steps)):
            raise UserError(
                f"trace {self.trace_id!r} has {len(steps)} steps, but scores for {self.length or recorded}: "
                "they were recorded for other steps; score these again"
            )
        for index, text in self.texts.items():
            if text.strip() != steps[index].strip():
                raise UserError(
                    f"trace {self.trace_id!r}: the score of step {index} was recorded for the text "
                    f"{_shown(text)}, but the step is {_shown(steps[index])}: score these steps again"
                )
        return [self.scores.get(i, self.of_no_trace.get(step.strip())) for i, step in enumerate(steps)]


@dataclasses.dataclass(frozen=True)
class RecordedScores:
    """Recorded scores by trace, and by text for whoever has no trace."""

    traces: Mapping[str, RecordedTrace]
    by_text: Mapping[str, Score]  # stripped text -> score
    name: str = "recorded"
    of_no_trace: Mapping[str, Score] = dataclasses.field(default_factory=dict)  # the same, of no trace

    def score(self, steps: Sequence[str]) -> list[Score]:
        """One score a step by its text (surrounding white space aside); None for a text that is not recorded.

        Two traces may hold one text with two scores; that text is unknown here, and known to `for_trace`.
        """
        return [self.by_text.get(step.strip()) for step in steps]

    def for_trace(self, trace_id: str) -> RecordedTrace:
        """The scores of one trace; if the file does not name it, only its steps of texts of no trace are known."""
        unnamed = RecordedTrace(trace_id, {}, {}, name=self.name, of_no_trace=self.of_no_trace)
        return self.traces.get(trace_id, unnamed)


def read_scores(path: str | Path, name: str = "recorded") -> RecordedScores:
    """Decisiveness scores of a JSONL file.

    A line gives one step (`trace_id` or `id`, `step_index`, `decisiveness`, and `text` if you like), a whole trace
    (`trace_id` or `id`, `decisiveness` as a list, and `steps` as a list of texts if you like), or a text of no
    trace (`text`, `decisiveness`), whose score is that of every step with this text that has none of its own. A score is
    a number in [0, 1] or null; `score` and `scores` are read too.

    Args:
      path: the file.
      name: what reports call the scorer, for a report with several files.

    Raises:
      UserError: naming file:line; a score outside [0, 1], two different scores for one step.
    """
    scores: dict[str, dict[int, Score]] = {}
    texts: dict[str, dict[int, str]] = {}
    lengths: dict[str, int] = {}
    by_text: dict[str, list[Score]] = {}
    of_no_trace: dict[str, list[Score]] = {}
    for where, record in read_jsonl(path):
        line = parse_at(where, _line, record)
        for index, (score, text) in line.steps.items():
            if line.trace_id is not None:
                known = scores.setdefault(line.trace_id, {})
                if known.setdefault(index, score) != score:
                    raise UserError(
                        f"{where}: step {index} of {line.trace_id!r} was given {known[index]} before and "
                        f"{score} now; keep one"
                    )
                if text is not None:
                    texts.setdefault(line.trace_id, {})[index] = text
            if text is not None:
                by_text.setdefault(text.strip(), []).append(score)
                if line.trace_id is None:
                    of_no_trace.setdefault(text.strip(), []).append(score)
        if line.trace_id is not None and line.length is not None:
            scores.setdefault(line.trace_id, {})
            if lengths.setdefault(line.trace_id, line.length) != line.length:
                raise UserError(
                    f"{where}: {line.trace_id!r} had {lengths[line.trace_id]} steps before, {line.length} now"
                )
    agreed, loose = (
        {text: _agreed(found) for text, found in texts_of.items()} for texts_of in (by_text, of_no_trace)
    )
    traces = {
        trace: RecordedTrace(trace, found, texts.get(trace, {}), lengths.get(trace), name, loose)
        for trace, found in scores.items()
    }
    return RecordedScores(traces, agreed, name, loose)


def scores_to_record(
    trace_id: str, scores: Sequence[Score], steps: Sequence[str] | None = None
) -> dict[str, Any]:
    """The line of a trace that `read_scores` reads back."""
    record: dict[str, Any] = {
        "schema": {"name": SCHEMA, "version": VERSION},
        "trace_id": trace_id,
        "decisiveness": list(scores),
    }
    return record if steps is None else record | {"steps": list(steps)}


@dataclasses.dataclass(frozen=True)
class _Line:
    trace_id: str | None
    steps: dict[int, tuple[Score, str | None]]
    length: int | None = None


def _line(record: Mapping[str, Any]) -> _Line:
    check_schema(record, SCHEMA)
    identity = record.get("trace_id", record.get("id"))
    trace_id = None if identity is None else str(identity)
    given = [field for field in ("decisiveness", "score", "scores") if field in record]
    if len(given) != 1:
        raise UserError(f"a line needs one of `decisiveness`, `score`, `scores`, found {len(given)} of them")
    value = record[given[0]]
    if isinstance(value, list):
        if trace_id is None:
            raise UserError("a list of scores needs the `trace_id` (or `id`) of its trace")
        texts = _texts(record, len(value))
        return _Line(trace_id, {i: (_score(v), t) for i, (v, t) in enumerate(zip(value, texts))}, len(value))
    text = record.get("text", record.get("step"))
    if text is not None and not isinstance(text, str):
        raise UserError(f"`text` must be a string, found {type(text).__name__}")
    index = record.get("step_index")
    if index is None:
        if text is None:
            raise UserError("a score needs `step_index` beside its `trace_id`, or the `text` that it is of")
        return _Line(None, {0: (_score(value), text)})
    if trace_id is None:
        raise UserError("a `step_index` needs the `trace_id` (or `id`) of its trace")
    if type(index) is not int or index < 0:
        raise UserError(f"`step_index` must be 0 or more, found {index!r}")
    return _Line(trace_id, {index: (_score(value), text)})


def _texts(record: Mapping[str, Any], length: int) -> list[str | None]:
    steps = record.get("steps")
    if steps is None:
        return [None] * length
    if not isinstance(steps, list) or len(steps) != length:
        raise UserError(f"`steps` must be a list of as many texts as there are scores ({length})")
    texts = [step.get("text") if isinstance(step, Mapping) else step for step in steps]
    if not all(isinstance(text, str) for text in texts):
        raise UserError("`steps` must hold texts, or objects with a `text`")
    return texts


def _score(value: Any) -> Score:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise UserError(f"score {value!r} is no number in [0, 1]; write null where it is unknown")
    return float(value)


def _agreed(found: Sequence[Score]) -> Score:
    return found[0] if all(score == found[0] for score in found) else None


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:37] + "...")
