"""CaT trees to what the viewer draws: nodes on a token axis, with the texts, answers and weights of their paths."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.report.align import token_lengths
from caspo_jax.evaluation.report.choice import leading
from caspo_jax.evaluation.report.encode import short, thousandths
from caspo_jax.evaluation.report.folder import Run, TreeFile
from caspo_jax.evaluation.report.spelling import Spelling, Spellings
from caspo_jax.evaluation.report.trace_view import PROBED, name_silent
from caspo_jax.sampling import vote
from caspo_jax.sampling.votes import same_text
from caspo_jax.steps import AnswerKind, equivalent
from caspo_jax.types import Trace


def view_trees(
    runs: Sequence[Run], spellings: Mapping[str, Spellings], names: dict[str, dict[str, str]], most: int
) -> dict[str, Any]:
    """{sets, trees}: the first trees of every file, `most` at most, and fewer where they are long (`leading`)."""
    sets: list[dict[str, Any]] = []
    trees: list[dict[str, Any]] = []
    for run in runs:
        paths = {(t.token_ids, t.prompt_ids): t for file in run.traces for t in file.traces}
        texts = [(t.token_ids, t.text) for t in list(paths.values())[:PROBED]]
        spelling = spellings[run.name].find(texts) or spellings[run.name].first()
        for file in run.trees:
            method = file.vote + (f", gamma {file.gamma:g}" if file.vote == "confidence" else "")
            shown = file.trees[: leading([sum(map(len, tree["token_ids"])) for tree in file.trees], most)]
            sets.append(
                {
                    "run": run.name,
                    "name": file.name,
                    "vote": method,
                    "shown": len(shown),
                    "total": len(file.trees),
                }
            )
            for record in shown:
                silent = names.setdefault(run.name, {})
                trees.append(_tree(record, file, paths, spelling, silent) | {"set": len(sets) - 1})
    return {"sets": sets, "trees": trees}


def chain(parent: Sequence[int], node: int) -> list[int]:
    """Nodes from a child of the root down to `node`."""
    found = []
    while node >= 0:
        found.append(node)
        node = parent[node]
    return found[::-1]


def _tree(
    record: Mapping[str, Any],
    file: TreeFile,
    known: Mapping[Any, Trace],
    spelling: Spelling | None,
    names: dict[str, str],
) -> dict[str, Any]:
    finished = [i for i, status in enumerate(record["status"]) if status == "finished"]
    paths = {leaf: _path(record, leaf, known) for leaf in finished}
    weights = path_weights(list(paths.values()), file.vote, file.gamma)
    prompt = tuple(record.get("prompt_ids") or ())
    asked = next((t for t in paths.values() if t.question or t.prompt), None)
    nodes = []
    for i, ids in enumerate(record["token_ids"]):
        text, lengths = token_lengths(ids, spelling.bytes) if spelling is not None else ("", [0] * len(ids))
        if spelling is not None:
            name_silent(ids, lengths, spelling, names)
        node: dict[str, Any] = {
            "parent": record["parent"][i],
            "status": record["status"][i],
            "reason": record["reason"][i],
            "confidence": short(record["confidence"][i]),
            "path": short(record["path_confidence"][i]),
            "text": text,
            "ids": list(ids),
            "lengths": lengths,
            "entropy": thousandths(_numbers(record["entropy"][i])),
            "surprise": thousandths(_numbers(record["logprob"][i]), sign=-1),
        }
        if i in paths:
            node |= {
                "answer": paths[i].answer,
                "right": paths[i].correct,
                "weight": short(weights[finished.index(i)]),
                "total": short(sum(v or 0.0 for v in _numbers(record["logprob"][i]))),
            }
        nodes.append(node)
    return {
        "question": record["question_id"],
        "text": None if asked is None else asked.question or asked.prompt,
        "gold": None if asked is None else asked.gold,
        "prompt": len(prompt),
        "threshold": short(record.get("threshold")),
        "answers": [[a, short(w)] for a, w in elected(record, list(paths.values()), file)],
        "nodes": nodes,
    }


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if v is None else float(v) for v in values]


def _path(record: Mapping[str, Any], leaf: int, known: Mapping[Any, Trace]) -> Trace:
    """The finished path as a trace: the one that the run's trace files hold, else one without text and answer."""
    nodes = chain(record["parent"], leaf)
    ids = tuple(token for node in nodes for token in record["token_ids"][node])
    prompt = tuple(record.get("prompt_ids") or ())
    logprob = tuple(v for node in nodes for v in _numbers(record["logprob"][node]))
    found = known.get((ids, prompt))
    base = found or Trace(
        id=f"{record['question_id']}/{leaf}",
        question=None,
        gold=None,
        prompt=None,
        prompt_ids=prompt,
        token_ids=ids,
        text="",
        finish_reason="eos",
    )
    return dataclasses.replace(base, logprob=logprob, path_confidence=record["path_confidence"][leaf])


def elected(
    record: Mapping[str, Any], paths: Sequence[Trace], file: TreeFile
) -> list[tuple[str, float | None]]:
    """(answer, weight), the elected answer first: as the search recorded it; where it did not, they are counted."""
    if "votes" in record:
        answer, votes = record.get("answer"), record["votes"]
    else:
        kind = file.kind
        same = functools.partial(equivalent, kind=kind) if kind in tuple(AnswerKind) else same_text
        answer, votes = vote(
            paths, file.vote, extract=lambda _: None, equivalent=same, gamma=file.gamma  # type: ignore[arg-type]
        )  # fmt: skip
    return sorted(votes.items(), key=lambda item: (item[0] != answer, -(item[1] or 0.0)))


def path_weights(paths: Sequence[Trace], method: str, gamma: float = 1.0) -> list[float | None]:
    """What each path weighs in the vote; None for one that does not count: no answer, or a duplicate in `sequence`.

    For `best_path` the weight of a path is its confidence, of which only the largest of an answer counts.
    """
    single = [
        path if path.answer is None else dataclasses.replace(path, answer=str(i))
        for i, path in enumerate(paths)
    ]
    _, votes = vote(single, method, extract=lambda _: None, gamma=gamma)  # type: ignore[arg-type]
    return [votes.get(str(i)) for i in range(len(paths))]
