"""Traces to annotated traces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from caspo_jax.confidence import STEP_CONFIDENCES, needed_fields
from caspo_jax.errors import UserError
from caspo_jax.sampling.segments import token_text
from caspo_jax.steps import Verifier, annotate_traces, verifier_settings
from caspo_jax.store import hash_path
from caspo_jax.training.stages.policy import Policy, check_delimiter, open_output, write_annotated
from caspo_jax.types import DEFAULT_DELIMITER, Equal, Extract, Progress, Trace

_RECORDED = ("entropy", "logprob")  # the token statistics that traces hold
TRACE_CONFIDENCES = tuple(n for n in STEP_CONFIDENCES if set(needed_fields(n)) <= set(_RECORDED))


def annotate_stage(
    policy: Policy,
    traces: str | Path,
    output: str | Path,
    verifier: Verifier,
    *,
    extract: Extract,
    equal: Equal,
    answer_kind: str | None = None,
    confidence: str = "entropy",
    delimiter: str = DEFAULT_DELIMITER,
    batch_size: int = 256,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Traces to traces with steps, confidences, verdicts, answer and correctness.

    Args:
      policy: whose tokenizer wrote the traces.
      traces: JSONL of traces.
      output: JSONL of annotated traces.
      verifier: judges the steps.
      extract: text -> answer.
      equal: (gold, answer) -> bool.
      answer_kind: what the manifest calls the two.
      confidence: name of the step confidence; it must need no more than the traces' log-probs and entropies.
      delimiter: what ends a step.
      batch_size: traces a call of the verifier, at most; of long ones fewer.
      overwrite: start anew if the output was begun with other settings.
      progress: called with (traces done, traces in all).

    Raises:
      UserError: a policy without a tokenizer, a trace whose text is not what its token ids spell (file:line), or a
        confidence that traces do not tell.
    """
    output = Path(output)
    check_confidence(confidence)
    check_delimiter(delimiter)
    spelled, told = _text_check(policy), _statistics_check(confidence)

    def check(trace: Trace) -> None:
        spelled(trace)
        told(trace)

    # All of them before anything is written; then they are read again, for all in memory take gigabytes.
    total = sum(1 for _ in policy.each_trace(traces, prompts=False, check=check))
    settings = {
        "traces": hash_path(traces),
        "verifier": verifier.name,
        "verifier_settings": verifier_settings(verifier) or None,
        "answers": answer_kind,
        "confidence": confidence,
        "delimiter": delimiter,
        "batch_size": batch_size,
    }
    written = open_output(output, "annotate", settings, overwrite)
    if written.complete:
        return output
    annotate = functools.partial(
        annotate_traces,
        token_bytes=policy.token_bytes,
        verifier=verifier,
        delimiter=delimiter,
        confidence=confidence,
        extract=extract,
        equal=equal,
    )
    again = policy.each_trace(traces, prompts=False)
    write_annotated(written, again, total, annotate, batch_size, progress)
    return output


def _text_check(policy: Policy) -> Callable[[Trace], None]:
    """What refuses traces of another tokenizer: their steps and answers would be read from other words than they say."""
    if policy.tokenizer is None:
        raise UserError(f"{policy.path}: no tokenizer.json, and steps are read from what the token ids spell")
    spelling = policy.token_bytes

    def check(trace: Trace) -> None:
        said, spelled = (
            "".join(text.split()) for text in (trace.text, token_text(spelling, trace.token_ids))
        )
        # Texts may leave out what a stop string or a template's marks cost.
        if said and trace.token_ids and not (spelled and (said in spelled or spelled in said)):
            raise UserError(
                f"the token ids of trace {trace.id!r} spell another text than its own with the tokenizer of {policy.path}: "
                "give the policy that wrote it"
            )

    return check


def check_confidence(name: str, what: str = "confidence") -> None:
    """Whether a step confidence can be computed from traces: found out before anything is sampled or opened.

    Args:
      name: of the confidence.
      what: what messages call it, such as "--confidence".

    Raises:
      UserError: no confidence has this name, or it needs token statistics that traces do not hold.
    """
    usable = ", ".join(TRACE_CONFIDENCES)
    if name not in STEP_CONFIDENCES:
        raise UserError(f"{what}={name}: there is no such step confidence; choose from {usable}")
    missing = [field for field in needed_fields(name) if field not in _RECORDED]
    if missing:
        raise UserError(
            f"{what}={name}: needs {' and '.join(missing)} of every token, which traces do not hold; choose from {usable}"
        )


def _statistics_check(confidence: str) -> Callable[[Trace], None]:
    """What refuses traces that hold statistics, but not those that the confidence needs."""
    needed = needed_fields(confidence)

    def check(trace: Trace) -> None:
        held = [field for field in _RECORDED if getattr(trace, field) is not None]
        if held and not set(needed) <= set(held):
            raise UserError(
                f"trace {trace.id!r} holds {' and '.join(held)} of its tokens, but confidence={confidence} "
                f"needs {' and '.join(needed)}: choose another confidence"
            )

    return check
