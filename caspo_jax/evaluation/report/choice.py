"""Which records of a file a page shows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from caspo_jax.types import Trace

MOST_TOKENS = 3_000_000  # of one file: about 40 MB of page
TOKEN_BYTES = 13  # of page, about: its text, id, entropy and surprise


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


def leading(tokens: Sequence[int], most: int, most_tokens: int = MOST_TOKENS) -> int:
    """How many records to show where the first ones are: those of about `most_tokens` tokens, one at least, `most` at most.

    Args:
      tokens: of each record.
    """
    return min(most, max(1, int(np.searchsorted(np.cumsum(tokens), most_tokens, side="right"))))


def question_of(trace: Trace) -> str:
    """The id of a trace's question: the trace's own, up to its last slash."""
    return trace.id.rpartition("/")[0] or trace.id
