"""Annotated traces to preference pairs, and pairs and verified steps back from their files."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.preferences import PairConfig, build_candidates
from caspo_jax.preferences.by_model import policy_competitors
from caspo_jax.preferences.left_out import NoContrastError, check_fits
from caspo_jax.preferences.packing import Row, pair_rows
from caspo_jax.preferences.pair_tokens import pair_tokenizer, thinks_on
from caspo_jax.preferences.readers import (
    UnclosedThoughtWarning,
    load_pairs,
    step_dpo_from_record,
    trl_from_record,
)
from caspo_jax.preferences.selection import Contrast, make_pair, select_contrasts
from caspo_jax.records import pair_from_record, pair_to_record
from caspo_jax.steps import Verifier, verifier_settings
from caspo_jax.store import hash_path
from caspo_jax.training.stages.competitors import forget_competitors, kept_competitors
from caspo_jax.training.stages.policy import Policy, batches, check_delimiter, open_output
from caspo_jax.types import CLOSE_THOUGHT, DEFAULT_DELIMITER, OPEN_THOUGHT, Pair, Progress, Trace

# Pairs at once, fewer where their prefixes have that many tokens: those of a large run, prefixes and all, take gigabytes.
_WRITTEN, _WRITTEN_TOKENS = 1024, 1 << 20


def pairs_stage(
    policy: Policy,
    annotated: str | Path,
    output: str | Path,
    config: PairConfig,
    verifier: Verifier,
    *,
    answer_kind: str | None = None,
    delimiter: str = DEFAULT_DELIMITER,
    max_step_tokens: int = 256,
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Annotated traces to preference pairs; a stage that was killed keeps the competitors that it had made.

    Args:
      policy: whose traces they are; it makes the competitors of low-confidence steps.
      annotated: JSONL of annotated traces.
      output: JSONL of pairs.
      config: which pairs.
      verifier: judges the competitors.
      answer_kind: what the manifest calls the answers, for verifiers that read them.
      delimiter: what ends a step.
      max_step_tokens: a competitor that goes on for longer is dropped.
      batch_size: rows on the device at once (default: by memory).
      overwrite: start anew if the output was made with other settings.
      progress: called with (competitors done, in all).

    Returns:
      What was counted: candidates, pairs of each kind, and everything dropped with its reason.

    Raises:
      UserError: traces with steps of which none has a verdict.
    """
    output = Path(output)
    check_delimiter(delimiter)
    # Without what no pair is made of: log-probs are a third of what traces take in memory.
    traces = [dataclasses.replace(trace, logprob=None) for trace in policy.each_trace(annotated)]
    verdicts = {step.verdict for trace in traces for step in trace.steps}
    if verdicts == {"unknown"}:
        raise UserError(
            f"{annotated}: no step has a verdict, so none is preferred to another: annotate the traces first "
            "(experiments.annotate), or with another verifier"
        )
    settings = {
        "policy": policy.hash,
        "dtype": str(policy.model.dtype),
        "annotated": hash_path(annotated),
        "pairs": dataclasses.asdict(config),
        "verifier": verifier.name,
        "verifier_settings": verifier_settings(verifier) or None,
        "answers": answer_kind,
        "delimiter": delimiter,
        "max_step_tokens": max_step_tokens,
        "batch_size": batch_size,
    }
    written = open_output(output, "pairs", settings, overwrite)
    if written.complete:
        forget_competitors(output)  # killed just before it could
        return written.manifest.contents["counts"]
    candidates, counts = build_candidates(traces)
    make = policy_competitors(
        policy.model,
        policy.tokenizer,
        verifier,
        delimiter=delimiter,
        max_new_tokens=max_step_tokens,
        batch_size=batch_size,
    )
    with kept_competitors(
        make, output, settings, batch_size=batch_size, overwrite=overwrite, progress=progress
    ) as competitors:
        contrasts, selected = select_contrasts(candidates, config, competitors=competitors)
        for part in batches(contrasts, _WRITTEN, _WRITTEN_TOKENS, _context_tokens):
            written.append([pair_to_record(make_pair(*contrast)) for contrast in part])
        counts = {"traces": len(traces), **counts, **selected, "pairs": len(contrasts)}
        written.finish(**counts)
    return counts


def _context_tokens(contrast: Contrast) -> int:
    _, chosen, _ = contrast
    return len(chosen.prompt_ids) + len(chosen.prefix_ids)


def verified_traces(traces: Iterable[Trace]) -> list[Row]:
    """For each distinct trace its steps before the first that is not verified correct, as one row.

    A row holds all verified steps of a trace, so that the prefix they share is read once.

    Raises:
      UserError: verified steps without tokens (names the trace).
    """
    rows = (verified_row(trace) for trace in traces)
    return list(dict.fromkeys(row for row in rows if row is not None))


def verified_row(trace: Trace) -> Row | None:
    """The row of one trace, None where not even its first step is verified. Raises as `verified_traces` does."""
    right = list(itertools.takewhile(lambda s: s.verdict == "correct", trace.steps))
    if not right:
        return None
    step_ids = trace.token_ids[: right[-1].token_end]
    if not step_ids:
        raise UserError(
            f"trace {trace.id!r} has verified steps but no tokens of them: annotate it with the policy that is trained"
        )
    return trace.prompt_ids, step_ids


def read_pairs(
    path: str | Path,
    policy: Policy,
    delimiter: str | None = None,
    *,
    required: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Pair], int]:
    """Pairs of a JSONL file, in our format or, by their fields, in those of Step-DPO-10K and TRL.

    Left out with a warning, and counted, are pairs longer than the policy's context, pairs of two equal steps, and of the
    latter two formats those with an empty text. Whole answers that never close the thought which the chat template opens
    are used, with a warning.

    Args:
      path: the file.
      policy: whose tokenizer reads the texts of the latter two.
      delimiter: what ends their steps; default the policy's own, else two newlines.
      required: whether a file whose pairs would all be left out is an error.
      progress: called with how many pairs were read.

    Returns:
      The pairs, and how many were left out.

    Raises:
      UserError: a malformed record or ids outside the vocabulary (file:line), or none of the pairs can be used.
    """
    tokenizer = policy.tokenizer
    if delimiter is None:
        delimiter = policy.step_delimiter
    check_delimiter(delimiter)
    unclosed: list[str] = []

    def parse(record: dict[str, Any]) -> Pair:
        if "chosen_ids" in record:
            pair = pair_from_record(record)
            if pair.chosen_ids == pair.rejected_ids:
                raise NoContrastError("`chosen_ids` and `rejected_ids` are the same")
            return pair
        step_dpo = "initial_reason_steps" in record
        pair = step_dpo_from_record(record) if step_dpo else trl_from_record(record, tokenizer)
        if tokenizer is None:
            raise UserError(f"{policy.path} has no tokenizer, which pairs without token ids need")
        return pair

    def complete(some: Sequence[Pair]) -> Callable[[Pair], Pair]:
        tokenized = pair_tokenizer(some, tokenizer, delimiter=delimiter)

        def completed(given: Pair) -> Pair:
            pair = tokenized(given)
            check_fits(
                max(len(context) + len(step) for context, step in pair_rows(pair)), policy.model.config
            )
            for ids in (pair.chosen_ids, pair.rejected_ids):
                policy.check_ids(pair.prompt_ids, [*pair.prefix_ids, *ids])
            if not given.chosen_ids and thinks_on(pair, tokenizer):
                unclosed.append(pair.id)
            return pair

        return completed

    pairs, left_out = load_pairs(path, parse, complete=complete, required=required, progress=progress)
    if unclosed:
        warnings.warn(
            f"{path}: the chat template opens a thought ({OPEN_THOUGHT}) that {len(unclosed)} of {len(pairs)} chosen "
            f"answers never close (the first: pair {unclosed[0]!r}): the policy learns to end inside of it. Give answers "
            f"with their thought, or with an empty one: begin them with {CLOSE_THOUGHT}",
            UnclosedThoughtWarning,
            stacklevel=2,
        )
    return pairs, left_out
