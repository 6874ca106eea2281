"""Device trees -> the records that cross rooms: Trace, CatTree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caspo_jax.sampling import state as codes
from caspo_jax.sampling.segments import character_spans, segment_bytes
from caspo_jax.sampling.tree import Tree
from caspo_jax.types import CatNode, CatTree, Question, Step, Trace


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def path_arrays(tree: Tree, chain: Sequence[int]) -> dict[str, np.ndarray]:
    """Tokens and statistics along a chain of nodes, [T] each."""
    spans = [(int(tree.slot[i]), int(tree.start[i]), int(tree.end[i])) for i in chain]
    out = {"token": np.concatenate([tree.token[a:b, k] for k, a, b in spans])}
    for name, array in tree.stats.items():
        out[name] = np.concatenate([array[a:b, k] for k, a, b in spans])
    return out


def build_trace(
    tree: Tree,
    node: int,
    question: Question,
    prompt_ids: tuple[int, ...],
    token_bytes: Sequence[bytes],
    delimiter: str,
    strategy: str,
) -> Trace:
    """The path that ends in `node` as a trace with its steps.

    Steps are those of the whole path: delimiter tokens that follow a closed step belong to it, although they were
    drawn in the child node. A step's confidence is that of the node that closed it.
    """
    chain = tree.path(node)
    arrays = path_arrays(tree, chain)
    ids = arrays["token"].tolist()
    data = b"".join(token_bytes[i] for i in ids)
    text = data.decode("utf-8", "replace")
    segments = segment_bytes(token_bytes, ids, delimiter)
    # Each node closes one step, save perhaps the last. NaN may also be what a closed step's confidence came to.
    confidences = [_number(tree.confidence[i]) for i in chain]
    steps = []
    for i, (segment, (start, end)) in enumerate(zip(segments, character_spans(data, segments), strict=True)):
        entropy = arrays["entropy"][segment.token_start : segment.token_end][segment.counted]
        steps.append(
            Step(
                start=start,
                end=end,
                token_start=segment.token_start,
                token_end=segment.token_end,
                text=text[start:end],
                confidence=confidences[i],
                entropy=float(entropy.mean(dtype=np.float64)),
            )
        )
    reason = codes.REASONS[int(tree.reason[node])]
    finish = {"threshold": "pruned", "answers": "budget", "decided": "budget"}.get(str(reason), reason)
    return Trace(
        id=question.id,
        question=question.question,
        gold=question.gold,
        prompt=question.prompt,
        prompt_ids=prompt_ids,
        token_ids=tuple(ids),
        text=text,
        finish_reason=finish,  # type: ignore[arg-type]
        strategy=strategy,
        path_confidence=_number(tree.path_confidence[node]),
        steps=tuple(steps),
        logprob=tuple(arrays["logprob"].tolist()),
        entropy=tuple(arrays["entropy"].tolist()),
    )


def build_tree(
    tree: Tree, question_id: str, prompt_ids: tuple[int, ...], key: tuple[int, ...], threshold: float | None
) -> CatTree:
    """The search tree as a record; nodes keep their order."""
    nodes = []
    for i in range(len(tree.parent)):
        slot, start, end = int(tree.slot[i]), int(tree.start[i]), int(tree.end[i])
        nodes.append(
            CatNode(
                parent=int(tree.parent[i]),
                token_ids=tuple(tree.token[start:end, slot].tolist()),
                logprob=tuple(tree.stats["logprob"][start:end, slot].tolist()),
                entropy=tuple(tree.stats["entropy"][start:end, slot].tolist()),
                confidence=_number(tree.confidence[i]),
                path_confidence=_number(tree.path_confidence[i]),
                status=codes.STATUSES[int(tree.status[i])],  # type: ignore[arg-type]
                reason=codes.REASONS[int(tree.reason[i])],
            )
        )
    return CatTree(question_id, prompt_ids, tuple(nodes), key, threshold)
