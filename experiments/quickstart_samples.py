"""What the report shows of a quickstart beside its numbers: some of the measured traces and trees, and scored pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.confidence.scoring import score_outputs
from caspo_jax.records import pair_from_record, schema, search_to_record, trace_to_record
from caspo_jax.store import load_records, write_jsonl
from caspo_jax.training.stages import Policy
from caspo_jax.types import CatResult, Pair, Trace
from experiments import common

QUESTIONS = 50  # whose traces and trees are kept: the first
PAIRS = 200  # of the first round, evenly spread


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Keeps traces and trees of the first questions in FOLDER/POLICY/, as they were measured."""

    folder: Path
    vote: str  # of the searches, and
    gamma: float  # its exponent

    def keep(self, name: str) -> dict[str, Any]:
        """The callbacks that `evaluate` takes, for the policy of that name."""

        def keep_traces(traces: Sequence[Trace]) -> None:
            write_jsonl(self.folder / name / "annotated.jsonl", self._traces(name, traces))

        def keep_results(results: Sequence[CatResult]) -> None:
            kept = results[:QUESTIONS]
            trees = (search_to_record(r, self.vote, self.gamma) for r in kept)
            write_jsonl(self.folder / name / "trees.jsonl", trees)
            paths = [path for result in kept for path in result.paths]
            write_jsonl(self.folder / name / "cat.jsonl", self._traces(name, paths))

        return {"keep_traces": keep_traces, "keep_results": keep_results}

    def _traces(self, name: str, traces: Sequence[Trace]) -> list[dict[str, Any]]:
        """Records of the first questions' traces, numbered within their question."""
        counts: dict[str, int] = {}
        records = []
        for trace in traces:
            number = counts.get(trace.id, 0)
            if trace.id not in counts and len(counts) == QUESTIONS:
                break
            counts[trace.id] = number + 1
            judged = trace.correct
            if judged is None and trace.gold is not None and trace.answer is not None:
                judged = common.same_text(trace.gold, trace.answer)
            named = dataclasses.replace(trace, id=f"{trace.id}/{number}", policy=name, correct=judged)
            records.append(trace_to_record(named))
        return records


def score_pairs(
    policies: Mapping[str, Path], pairs_file: Path, folder: Path, dtype: str | None = None
) -> None:
    """Score a round's pairs under every policy, before and after: FOLDER/POLICY/pair_scores.jsonl.

    Args:
      policies: name -> folder, the base first.
      pairs_file: JSONL of pairs.
      folder: of the samples.
      dtype: compute dtype; default the checkpoint's.
    """
    pairs = load_records(pairs_file, pair_from_record)
    chosen = pairs[:: max(1, -(-len(pairs) // PAIRS))]
    for name, path in policies.items():
        write_jsonl(folder / name / "pair_scores.jsonl", pair_scores(name, Policy.load(path, dtype), chosen))


def pair_scores(name: str, policy: Policy, pairs: Sequence[Pair], rows: int = 64) -> list[dict[str, Any]]:
    """Log-probs of the chosen and the rejected step's tokens of every pair, nats, a record a pair.

    Args:
      name: of the policy, on record.
      policy: who scores.
      pairs: what is scored.
      rows: outputs scored together.
    """
    outputs = [
        ((*pair.prompt_ids, *pair.prefix_ids), ids)
        for pair in pairs
        for ids in (pair.chosen_ids, pair.rejected_ids)
    ]
    logprobs = []
    for first in range(0, len(outputs), rows):
        part = outputs[first : first + rows]
        filled = [*part, *[part[-1]] * (rows - len(part))]  # one number of rows to compile
        logprobs += [values for values, _ in score_outputs(policy.model, filled)[: len(part)]]
    return [
        {
            "schema": schema("pair_score"),
            "pair": pair.id,
            "policy": name,
            "chosen_logprob": logprobs[2 * i],
            "rejected_logprob": logprobs[2 * i + 1],
        }
        for i, pair in enumerate(pairs)
    ]


def write_quickstart_report(out: Path, base: Path, rounds: Sequence[Path], dtype: str | None = None) -> Path:
    """Score the first round's pairs before and after training, and write OUT/report.html."""
    policies = {"base": base, f"round_{len(rounds)}": rounds[-1]}
    score_pairs(policies, out / "round_1" / "pairs.jsonl", out / "samples", dtype)
    common.write_html_report(out, None)
    return out / "report.html"
