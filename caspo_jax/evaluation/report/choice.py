"""Which traces of a file a page shows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from caspo_jax.types import Trace

MOST_TOKENS = 3_000_000  # of one file: about 40 MB of page


def choose(traces: Sequence[Trace], most: int, most_tokens: int = MOST_TOKENS) -> list[int]:
    """Which traces to show: all, or those of whole questions evenly spread over the file, `most` in all at most.

    Long traces count for more: about `most_tokens` tokens are shown, or one question.
    """
    tokens = sum(len(t.token_ids) for t in traces)
    if tokens > most_tokens:
        most = max(1, min(most, len(traces) * most_tokens // tokens))
    groups = [
        [i for i, _ in group]
        for _, group in itertools.groupby(enumerate(traces), key=lambda item: question_of(item[1]))
    ]
    if len(traces) <= most:
        return list(range(len(traces)))
    wanted = max(1, int(len(groups) * most / len(traces)))
    chosen = np.unique(np.linspace(0, len(groups) - 1, wanted).round().astype(int))
    return [i for g in chosen for i in groups[g]][:most]


def question_of(trace: Trace) -> str:
    """The id of a trace's question: the trace's own, up to its last slash."""
    return trace.id.rpartition("/")[0] or trace.id
