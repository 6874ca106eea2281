"""Search trees to traces: every leaf's path, also those that the search never finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from caspo_jax.types import CatTree, FinishReason, Question, Trace

_REASONS = get_args(FinishReason)


def tree_traces(
    tree: CatTree, question: Question, token_bytes: Sequence[bytes], *, strategy: str = "explore"
) -> list[Trace]:
    """One trace for each leaf, in node order; not segmented yet (`annotate_traces` does that).

    A search stops when enough paths are finished; the closed steps of its other branches are candidates too,
    siblings of what was finished. Steps that several leaves share appear in each of their traces and count once
    as candidates.

    Args:
      tree: of one question.
      question: its record.
      token_bytes: for each id of the vocabulary the bytes it spells.
      strategy: on record in the traces.

    Returns:
      Traces with ids `QUESTION/leaf NODE`; `finish_reason` is `pruned` or `budget` where a path was left open.
    """
    inner = {node.parent for node in tree.nodes}
    traces = []
    for leaf in range(len(tree.nodes)):
        if leaf in inner:
            continue
        chain = []
        at = leaf
        while at >= 0:
            chain.append(tree.nodes[at])
            at = tree.nodes[at].parent
        chain.reverse()
        ids = tuple(token for node in chain for token in node.token_ids)
        if not ids:
            continue
        end = tree.nodes[leaf]
        open_end: FinishReason = "pruned" if end.status == "pruned" else "budget"
        finished = end.status == "finished" and end.reason in _REASONS
        traces.append(
            Trace(
                id=f"{question.id}/leaf {leaf}",
                question=question.question,
                gold=question.gold,
                prompt=question.prompt,
                prompt_ids=tree.prompt_ids,
                token_ids=ids,
                text=b"".join(token_bytes[token] for token in ids).decode("utf-8", "replace"),
                finish_reason=end.reason if finished else open_end,  # type: ignore[arg-type]
                strategy=strategy,
                path_confidence=end.path_confidence,
                logprob=tuple(value for node in chain for value in node.logprob),
                entropy=tuple(value for node in chain for value in node.entropy),
            )
        )
    return traces
