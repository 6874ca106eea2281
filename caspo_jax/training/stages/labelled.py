"""Solutions with labelled steps, from elsewhere, to annotated traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from caspo_jax.confidence.scoring import score_outputs
from caspo_jax.errors import UserError
from caspo_jax.preferences import labelled_to_traces
from caspo_jax.preferences.left_out import TooLongError, check_fits, say_left_out
from caspo_jax.steps import measure_steps, read_labelled, with_answer
from caspo_jax.steps.labels import Neutral
from caspo_jax.store import hash_path
from caspo_jax.training.stages.annotate import check_confidence
from caspo_jax.training.stages.policy import Policy, check_delimiter, open_output, write_annotated
from caspo_jax.types import DEFAULT_DELIMITER, Equal, Extract, Progress, Trace


def labelled_stage(
    policy: Policy,
    solutions: str | Path,
    output: str | Path,
    *,
    extract: Extract,
    equal: Equal,
    answer_kind: str | None = None,
    confidence: str = "entropy",
    delimiter: str = DEFAULT_DELIMITER,
    neutral: Neutral = "unknown",
    batch_size: int = 16,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Labelled solutions of PRM800K, ProcessBench or Math-Shepherd to annotated traces that pairs are made of.

    Each solution is encoded step by step with the policy's tokenizer, and the policy's log-probs and entropies of its
    tokens are measured: confidences are this policy's, whoever wrote the steps. Solutions that exceed its context are left
    out with a warning (`TooLongWarning`).

    Args:
      policy: reads the solutions.
      solutions: JSONL (`steps.read_labelled`).
      output: JSONL of annotated traces.
      extract, equal, answer_kind, confidence, overwrite: as in `annotate_stage`.
      delimiter: put between steps.
      neutral: what PRM800K's label 0 means.
      batch_size: solutions read together.
      progress: called with (solutions done, solutions in all).

    Raises:
      UserError: a malformed record (file:line), a solution that the policy cannot read, or none that fits its context.
    """
    output = Path(output)
    check_confidence(confidence)
    check_delimiter(delimiter)
    if policy.tokenizer is None:
        raise UserError(f"{policy.path} has no tokenizer, which solutions without token ids need")
    traces = labelled_to_traces(read_labelled(solutions, neutral), policy.tokenizer, delimiter=delimiter)
    traces = _fitting(policy, traces, solutions)
    settings = {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "solutions": hash_path(solutions),
        "answers": answer_kind,
        "confidence": confidence,
        "delimiter": delimiter,
        "neutral": neutral,
        "batch_size": batch_size,
    }
    written = open_output(output, "annotate", settings, overwrite)
    if written.complete:
        return output
    spelled = policy.token_bytes

    def measured(part: Sequence[Trace]) -> list[Trace]:
        scores = score_outputs(policy.model, [(t.prompt_ids, t.token_ids) for t in part])
        return [
            with_answer(measure_steps(trace, spelled, confidence), extract, equal)
            for trace in (
                dataclasses.replace(
                    t, logprob=tuple(logprob), entropy=tuple(entropy), policy=policy.hash[:16]
                )
                for t, (logprob, entropy) in zip(part, scores, strict=True)
            )
        ]

    write_annotated(written, traces, len(traces), measured, batch_size, progress)
    return output


def _fitting(policy: Policy, traces: Sequence[Trace], solutions: str | Path) -> list[Trace]:
    """Those that the context holds, all of them readable."""
    fitting: list[Trace] = []
    too_long: list[UserError] = []
    for trace in traces:
        try:
            check_fits(len(trace.prompt_ids) + len(trace.token_ids), policy.model.config)
            policy.check_ids(trace.prompt_ids, trace.token_ids)
        except TooLongError as error:
            too_long.append(TooLongError(f"solution {trace.id!r}: {error}"))
        except UserError as error:
            raise UserError(f"solution {trace.id!r}: {error}") from error
        else:
            fitting.append(trace)
    say_left_out(solutions, "solutions", too_long, len(traces))
    return fitting
