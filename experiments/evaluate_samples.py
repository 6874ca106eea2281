"""What `evaluate` keeps for its report: traces and search trees of the first questions of every benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caspo_jax.records import search_to_record, trace_to_record
from caspo_jax.steps import verify_traces
from caspo_jax.store import write_jsonl
from caspo_jax.tasks import get_task
from caspo_jax.tasks.registry import TASKS
from caspo_jax.types import CatResult, Question, Trace

if TYPE_CHECKING:
    from experiments.benchmark_source import Benchmark

QUESTIONS = 50
SAMPLES = 8  # of a question


def keeper(out: Path, name: str, benchmark: Benchmark, questions: Sequence[Question]) -> Callable[..., None]:
    """A function (strategy, its traces or search results) that writes OUT/samples/NAME/STRATEGY.jsonl, and for searches
    STRATEGY.trees.jsonl beside it.

    Args:
      out: the run's folder.
      name: of the benchmark.
      benchmark: who reads and scores answers.
      questions: what was asked, in order; the first `QUESTIONS` of them are kept.
    """
    asked = {q.id: q for q in questions[:QUESTIONS]}
    runs_code = getattr(benchmark, "runs_code", False)  # its answers take seconds each to judge
    verifier = get_task(name).verifier() if name in TASKS else None

    def read(traces: Sequence[Trace], strategy: str) -> list[dict[str, Any]]:
        counts: dict[str, int] = {}
        kept = []
        for trace in traces:
            question = asked.get(trace.id)
            if question is None:
                continue
            number = counts[trace.id] = counts.get(trace.id, -1) + 1
            if number >= SAMPLES:
                continue
            answer = benchmark.extract(trace.text) if trace.answer is None else trace.answer
            right = None if runs_code else answer is not None and bool(benchmark.score(answer, question))
            kept.append(
                dataclasses.replace(
                    trace, id=f"{trace.id}/{number}", answer=answer, correct=right, strategy=strategy
                )
            )
        return [trace_to_record(t) for t in (verify_traces(kept, verifier) if verifier else kept)]

    def keep(strategy: str, found: Sequence[Any], **facts: Any) -> None:
        folder = out / "samples" / name
        if found and isinstance(found[0], CatResult):
            results = [r for r in found if r.tree.question_id in asked]
            write_jsonl(folder / f"{strategy}.trees.jsonl", [search_to_record(r, **facts) for r in results])
            found = [path for result in results for path in result.paths]
        write_jsonl(folder / f"{strategy}.jsonl", read(found, strategy))

    return keep
