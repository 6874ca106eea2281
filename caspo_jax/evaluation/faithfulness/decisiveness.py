"""How decisive does a step sound? One protocol for all scorers, and its use on traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from caspo_jax.types import Trace

Score = float | None  # decisiveness in [0, 1]; None where it is unknown, never -1


@runtime_checkable
class DecisivenessScorer(Protocol):
    """Reads steps: 1 for a flat assertion, 0 for a step that commits to nothing."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def score(self, steps: Sequence[str]) -> list[Score]:
        """One decisiveness in [0, 1] a step, in order; None where it cannot tell (an empty step, say)."""
        ...


@runtime_checkable
class TraceScorer(DecisivenessScorer, Protocol):
    """A scorer whose answer depends on which trace the steps are of, such as recorded scores."""

    def for_trace(self, trace_id: str) -> DecisivenessScorer:
        """The scorer of one trace: its `score` is given the steps of that trace, all and in order."""
        ...


def score_traces(scorer: DecisivenessScorer, traces: Sequence[Trace]) -> list[list[Score]]:
    """The decisiveness D_i of every step of every trace.

    A scorer that knows traces is asked trace by trace; any other gets all steps in one call, so that a judge can
    batch them.

    Args:
      scorer: what reads the steps.
      traces: annotated traces.

    Returns:
      For each trace one score a step.
    """
    texts = [[step.text for step in trace.steps] for trace in traces]
    if isinstance(scorer, TraceScorer):
        return [_checked(scorer.for_trace(trace.id), steps) for trace, steps in zip(traces, texts)]
    scores = iter(_checked(scorer, [text for steps in texts for text in steps]))
    return [[next(scores) for _ in steps] for steps in texts]


def _checked(scorer: DecisivenessScorer, steps: Sequence[str]) -> list[Score]:
    scores = scorer.score(steps)
    if len(scores) != len(steps):
        raise ValueError(f"scorer {scorer.name!r} gave {len(scores)} scores for {len(steps)} steps")
    for score in scores:
        if score is not None and not 0.0 <= score <= 1.0:
            raise ValueError(f"scorer {scorer.name!r} gave {score}: a score is in [0, 1], or None")
    return scores
