"""Traces to annotated traces."""

from __future__ import annotations

from pathlib import Path

from caspo_jax.records import trace_to_record
from caspo_jax.steps import Verifier, annotate_traces
from caspo_jax.store import hash_path
from caspo_jax.training.stages.policy import Equal, Extract, Policy, Progress, open_output


def annotate_stage(
    policy: Policy,
    traces: str | Path,
    output: str | Path,
    verifier: Verifier,
    *,
    extract: Extract,
    equal: Equal,
    confidence: str = "entropy",
    delimiter: str = "\n\n",
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
      confidence: name of the step confidence; it must need no more than the traces' log-probs and entropies.
      delimiter: what ends a step.
      batch_size: traces a call of the verifier.
      overwrite: start anew if the output was begun with other settings.
      progress: called with (traces done, traces in all).
    """
    output = Path(output)
    loaded = policy.read_traces(traces, prompts=False)
    settings = {
        "traces": hash_path(traces),
        "verifier": verifier.name,
        "confidence": confidence,
        "delimiter": delimiter,
        "batch_size": batch_size,
    }
    written = open_output(output, "annotate", settings, overwrite)
    if written.complete:
        return output
    spelled = policy.token_bytes
    for start in range(0, len(loaded), batch_size):
        part = loaded[start : start + batch_size]
        if not {t.id for t in part} <= written.done:
            done = annotate_traces(
                part,
                spelled,
                verifier=verifier,
                delimiter=delimiter,
                confidence=confidence,
                extract=extract,
                equal=equal,
            )
            written.append([trace_to_record(t) for t in done])
        if progress is not None:
            progress(min(start + batch_size, len(loaded)), len(loaded))
    written.finish(traces=len(loaded))
    return output
