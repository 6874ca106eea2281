"""Traces to annotated traces: steps, step confidences, verdicts, answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.records import finite
from caspo_jax.steps.beginnings import Beginning
from caspo_jax.steps.segmentation import DEFAULT_DELIMITER, segment
from caspo_jax.steps.verifiers import Verifier, VerifyItem, asked
from caspo_jax.types import VERDICTS, Question, Step, Trace, Verdict

# Strategy and reason of outputs that were left before their end: their answer is neither right nor wrong. What a data
# set rated only so far is `recorded`.
_LEFT_OPEN = frozenset({("explore", "pruned"), ("explore", "budget"), ("recorded", "length")})


def segment_trace(
    trace: Trace,
    token_bytes: Sequence[bytes],
    *,
    delimiter: str = DEFAULT_DELIMITER,
    confidence: str = "entropy",
    stats: Any = None,
    vocab_size: int | None = None,
) -> Trace:
    """The trace with its steps and their confidences; verdicts unknown.

    Args:
      trace: with `token_ids`; its `entropy` and `logprob` [T] serve the confidences that need no more.
      token_bytes: for each id of the vocabulary the bytes it spells.
      delimiter: text that ends a step.
      confidence: name of the step confidence; steps stay without one if the trace has no statistics.
      stats: TokenStats [T] of the emitted tokens, for confidences that need more than `entropy` and
          `logprob`.
      vocab_size: needed by `normalised`; default the length of `token_bytes`.

    Raises:
      UserError: an id outside the vocabulary, a statistics list of another length, a confidence that
          needs statistics which the trace does not hold.
    """
    return segment_by(trace, token_bytes, (confidence,), delimiter, stats, vocab_size)[0]


def segment_by(
    trace: Trace,
    token_bytes: Sequence[bytes],
    confidences: Sequence[str],
    delimiter: str = DEFAULT_DELIMITER,
    stats: Any = None,
    vocab_size: int | None = None,
) -> list[Trace]:
    """`segment_trace` by each of several step confidences, its steps found once."""
    text, steps, counted = segment(trace.token_ids, token_bytes, delimiter)
    segmented, size = dataclasses.replace(trace, text=text, steps=steps), vocab_size or len(token_bytes)
    return [_measured(segmented, counted, n, _statistics(trace, n, stats), size) for n in confidences]


def measure_steps(
    trace: Trace, token_bytes: Sequence[bytes], confidence: str = "entropy", vocab_size: int | None = None
) -> Trace:
    """The trace with confidences of the steps that it has, wherever its delimiters stand.

    For steps that somebody else cut. Tokens that begin behind a step's text, its delimiter, are not counted; EOS there is.

    Args:
      trace: with `entropy` and `logprob` [T].
      token_bytes, confidence, vocab_size: see `segment_trace`.

    Raises:
      UserError: as `segment_trace`.
    """
    fields = _statistics(trace, confidence, None)
    if fields is None:
        raise UserError(f"trace {trace.id!r} holds no log-probs or entropies of its tokens")
    counted = np.ones(len(trace.token_ids), bool)
    for step in trace.steps:
        place = slice(step.token_start, step.token_end)
        sizes = np.array([len(token_bytes[token]) for token in trace.token_ids[place]])
        starts = np.cumsum(sizes) - sizes
        end = len(step.text.encode("utf-8"))
        counted[place] = (starts < end) | ((sizes == 0) & (starts == end))
    return _measured(trace, counted, confidence, fields, vocab_size or len(token_bytes))


def _measured(
    trace: Trace,
    counted: np.ndarray,
    confidence: str,
    fields: Mapping[str, np.ndarray] | None,
    vocab_size: int,
) -> Trace:
    """The trace with a confidence for each step, over its counted tokens [T]; as it is without statistics."""
    from caspo_jax.confidence import TokenStats, step_confidence

    if fields is None or not trace.steps:
        return trace
    columns, masks = step_rows(trace.steps, counted)
    rows = {name: values[columns] for name, values in fields.items()}
    values = np.asarray(step_confidence(confidence, TokenStats(**rows), masks, vocab_size))
    entropy = rows.get("entropy", [None] * len(masks))
    steps = tuple(
        dataclasses.replace(step, confidence=finite(value), entropy=_mean(row, mask))
        for step, value, row, mask in zip(trace.steps, values, entropy, masks)
    )
    return dataclasses.replace(trace, steps=steps)


def _statistics(trace: Trace, confidence: str, stats: Any) -> dict[str, np.ndarray] | None:
    from caspo_jax.confidence import needed_fields

    needed = set(needed_fields(confidence))
    length = len(trace.token_ids)
    fields: dict[str, np.ndarray] = {}
    for name in sorted(needed | {"entropy"}):
        values = getattr(stats, name, None) if stats is not None else None
        values = getattr(trace, name, None) if values is None else values
        if values is None:
            continue
        array = np.asarray(values, np.float64)  # null (NaN on disk) becomes NaN
        if array.shape != (length,):
            raise UserError(f"trace {trace.id!r}: {name} has shape {array.shape} for {length} token_ids")
        fields[name] = array
    missing = needed - set(fields)
    if not missing:
        return fields
    if stats is None and trace.entropy is None and trace.logprob is None:
        return None  # no statistics at all: a trace from elsewhere
    raise UserError(
        f"trace {trace.id!r}: step confidence {confidence!r} needs {', '.join(sorted(missing))} per token: "
        "give stats=, or choose one that needs entropy or logprob only"
    )


def step_rows(steps: Sequence[Step], counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of each of S steps as a row as long as the longest of them: of rows as long as the trace, most is empty.

    Args:
      steps: at least one.
      counted: [T] bool, tokens of the trace that count.

    Returns:
      Columns [S, L] of the trace, and which of these are the step's own and count, bool [S, L].
    """
    starts, ends = (
        np.array([getattr(s, name) for s in steps])[:, None] for name in ("token_start", "token_end")
    )
    columns = starts + np.arange((ends - starts).max())
    own = columns < ends
    columns = np.minimum(columns, len(counted) - 1)
    return columns, own & counted[columns]


def _mean(values: np.ndarray | None, mask: np.ndarray) -> float | None:
    return float(values[mask].mean()) if values is not None and mask.any() else None


def step_items(trace: Trace, question: Question | None = None) -> list[tuple[int, VerifyItem]]:
    """What a verifier is asked about a trace: `(step index, item)` for each finished step.

    A step that the length limit or the budget cut is not finished, and not asked about; one that is empty
    (a delimiter at the very start) neither.
    """
    if question is None:
        question = Question(
            id=trace.id,
            question=trace.question,
            prompt=trace.prompt,
            prompt_ids=trace.prompt_ids,
            gold=trace.gold,
        )
    ended = trace.finish_reason in ("eos", "stop")
    items = []
    for index, step in enumerate(trace.steps):
        last = index == len(trace.steps) - 1
        if not step.text or (last and not ended and not is_closed(trace, step)):
            continue
        items.append(
            (
                index,
                VerifyItem(
                    question=question,
                    prefix=Beginning(trace.text, step.start),  # type: ignore[arg-type]
                    step=step.text,
                    is_last=last and ended,
                    prompt_ids=trace.prompt_ids,
                    prefix_ids=Beginning(trace.token_ids, step.token_start),  # type: ignore[arg-type]
                    step_ids=trace.token_ids[step.token_start : step.token_end],
                    trace_id=trace.id,
                    step_index=index,
                ),
            )
        )
    return items


def is_closed(trace: Trace, step: Step) -> bool:
    """Whether the step was finished: a delimiter follows it, or the trace ended with it by EOS or a stop."""
    return step.end < len(trace.text) or trace.finish_reason in ("eos", "stop")


def annotate_traces(
    traces: Sequence[Trace],
    token_bytes: Sequence[bytes],
    *,
    verifier: Verifier | None = None,
    questions: Mapping[str, Question] | None = None,
    delimiter: str = DEFAULT_DELIMITER,
    confidence: str = "entropy",
    stats: Sequence[Any] | None = None,
    vocab_size: int | None = None,
    extract: Callable[[str], str | None] | None = None,
    equal: Callable[[str, str], bool] | None = None,
) -> list[Trace]:
    """Steps, confidences, verdicts, answers and correctness of traces, in one call of the verifier.

    Args:
      traces: what was sampled.
      token_bytes: for each id of the vocabulary the bytes it spells.
      verifier: judges the steps; None leaves every verdict unknown.
      questions: by trace id; default, a question made of the trace's own fields.
      delimiter: text that ends a step.
      confidence: name of the step confidence.
      stats: TokenStats [T] of each trace, where the confidence needs more than the trace holds.
      vocab_size: default the length of `token_bytes`.
      extract: text -> answer; None keeps the trace's `answer`.
      equal: (gold, answer) -> bool, sets `correct` where there is a gold; None keeps the trace's.

    Returns:
      The annotated traces, in order.
    """
    annotated = [
        segment_trace(
            trace,
            token_bytes,
            delimiter=delimiter,
            confidence=confidence,
            stats=None if stats is None else stats[i],
            vocab_size=vocab_size,
        )
        for i, trace in enumerate(traces)
    ]
    annotated = [with_answer(trace, extract, equal) for trace in annotated]
    return verify_traces(annotated, verifier, questions) if verifier is not None else annotated


def with_answer(
    trace: Trace, extract: Callable[[str], str | None] | None, equal: Callable[[str, str], bool] | None
) -> Trace:
    """The trace with its answer, and whether that is the gold one; arguments as of `annotate_traces`."""
    if (trace.strategy, trace.finish_reason) in _LEFT_OPEN:
        return dataclasses.replace(trace, answer=None, correct=None)
    answer = extract(trace.text) if extract is not None else trace.answer
    correct = trace.correct
    if equal is not None and trace.gold is not None:
        correct = answer is not None and equal(trace.gold, answer)
    return dataclasses.replace(trace, answer=answer, correct=correct)


def verify_traces(
    traces: Sequence[Trace], verifier: Verifier, questions: Mapping[str, Question] | None = None
) -> list[Trace]:
    """The segmented traces with the verifier's verdict on every finished step.

    Raises:
      UserError: the verifier is none, or gave something else than one of VERDICTS for each step.
    """
    where: list[tuple[int, int]] = []
    items: list[VerifyItem] = []
    for row, trace in enumerate(traces):
        for index, item in step_items(trace, (questions or {}).get(trace.id)):
            where.append((row, index))
            items.append(item)
    verdicts = asked(verifier, items)
    for (row, index), verdict in zip(where, verdicts):
        if verdict not in VERDICTS:
            raise UserError(
                f"verifier {verifier.name!r} gave {verdict!r} for step {index} of trace {traces[row].id!r}: "
                f"give {', '.join(VERDICTS)}"
            )
    steps = [
        [dataclasses.replace(step, verdict="unknown", verifier=verifier.name) for step in trace.steps]
        for trace in traces
    ]
    for (row, index), verdict in zip(where, verdicts):
        steps[row][index] = dataclasses.replace(steps[row][index], verdict=verdict)
    return [dataclasses.replace(trace, steps=tuple(row)) for trace, row in zip(traces, steps)]


def annotate_trace(trace: Trace, token_bytes: Sequence[bytes], **options: Any) -> Trace:
    """`annotate_traces` of one trace."""
    return annotate_traces([trace], token_bytes, **options)[0]


def first_wrong_step(trace: Trace) -> int | None:
    """Index of the first wrong step; None if no step is known to be wrong."""
    return next((i for i, step in enumerate(trace.steps) if step.verdict == "wrong"), None)


def is_flawed_correct(trace: Trace) -> bool | None:
    """Whether a right answer stands on a wrong step; None unless the answer is known to be right."""
    return None if trace.correct is not True else first_wrong_step(trace) is not None


def prefix_verdict(steps: Sequence[Step]) -> Verdict:
    """Of the steps before a step: wrong if any is, correct if all are (an empty prefix is), else unknown."""
    verdicts = {step.verdict for step in steps}
    if "wrong" in verdicts:
        return "wrong"
    return "unknown" if "unknown" in verdicts else "correct"
