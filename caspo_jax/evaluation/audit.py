"""Does pruning cut right paths? False prunes by depth, accuracy by threshold, and what an oracle would do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.evaluation.replay import RecordedPath, Replay, judged_paths, replay, unjudged_paths
from caspo_jax.models import token_bytes
from caspo_jax.sampling import SampleConfig, first_stop, generate, token_text, vote
from caspo_jax.sampling.config import Vote
from caspo_jax.sampling.votes import same_text
from caspo_jax.types import CatTree, Equal, Extract, Question, Trace


@dataclasses.dataclass(frozen=True)
class AuditedQuestion:
    """One question's unpruned paths, as traces with answers and as what a rule sees of them."""

    id: str
    traces: Sequence[Trace]  # answer and correct set
    paths: Sequence[RecordedPath]  # in the same order


def audited_questions(traces: Sequence[Trace], trees: Iterable[CatTree], rule: str) -> list[AuditedQuestion]:
    """Recorded traces and trees of an unpruned, unforked search, a question at a time in the order of the trees.

    Args:
      traces: all paths; those of a tree share its question id, followed by `/index` where there are several.
      trees: one a question; an iterator's are let go one after the other.
      rule: `path` or `last`, what is compared with the threshold.
    """
    recorded = [(tree.question_id, unjudged_paths(tree, rule)) for tree in trees]
    paths: dict[str, list[Trace]] = {}
    several = len(traces) > len(recorded)  # one path a question carries the question's own id
    for trace in traces:
        if trace.correct is None:
            raise UserError(f"trace {trace.id!r}: its question has no gold answer, which the audit needs")
        paths.setdefault(trace.id.rpartition("/")[0] if several else trace.id, []).append(trace)
    found = []
    for id, unjudged in recorded:
        mine = paths.get(id, [])
        found.append(AuditedQuestion(id, mine, judged_paths(id, unjudged, [bool(t.correct) for t in mine])))
    return found


def voted_right(traces: Sequence[Trace], method: Vote, gamma: float, equivalent: Equal = same_text) -> bool:
    """Is the voted answer of these paths right?"""
    answer, _ = vote(traces, method, extract=lambda text: None, equivalent=equivalent, gamma=gamma)
    return answer is not None and any(bool(t.correct) for t in traces if t.answer == answer)


def threshold_sweep(
    questions: Sequence[AuditedQuestion],
    thresholds: Sequence[float],
    *,
    method: Vote = "sequence",
    gamma: float = 1.0,
    min_live: int = 1,
    equivalent: Equal = same_text,
    draws: int = 1000,
) -> list[dict[str, Any]]:
    """Accuracy, cost and losses at each threshold, by exact replay (forks off).

    A row holds: `threshold`; `accuracy` of the vote with its 95 % interval over questions; `tokens` a question;
    `pruned`, share of all paths; `false_prunes`, share of the right paths that are pruned; `right_among_pruned`;
    `lost`, share of the answerable questions (some path is right) that keep no right path.
    """
    groups = np.arange(len(questions))
    rows = []
    for threshold in thresholds:
        runs = [replay(q.paths, threshold, min_live) for q in questions]
        right = np.array(
            [
                voted_right([q.traces[i] for i in run.finished], method, gamma, equivalent)
                for q, run in zip(questions, runs)
            ],
            np.float64,
        )
        interval = metrics.bootstrap_interval(metrics.mean_statistic(right), groups, draws=draws)
        rows.append(
            {
                "threshold": float(threshold),
                "accuracy": interval.value,
                "accuracy_low": interval.low,
                "accuracy_high": interval.high,
                "tokens": float(np.mean([run.tokens for run in runs])),
                **_losses(questions, runs),
            }
        )
    return rows


def _losses(questions: Sequence[AuditedQuestion], runs: Sequence[Replay]) -> dict[str, float]:
    gone = [[q.paths[i].correct for i, _ in run.pruned] for q, run in zip(questions, runs)]
    right = [sum(p.correct for p in q.paths) for q in questions]
    paths = sum(len(q.paths) for q in questions)
    answerable = sum(r > 0 for r in right)
    pruned = sum(map(len, gone))
    false = sum(map(sum, gone))
    lost = sum(r > 0 and sum(g) == r for r, g in zip(right, gone))
    return {
        "pruned": pruned / paths,
        "false_prunes": _share(false, sum(right)),
        "right_among_pruned": _share(false, pruned),
        "lost": _share(lost, answerable),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def false_prunes_by_depth(
    questions: Sequence[AuditedQuestion], threshold: float, min_live: int = 1
) -> list[dict[str, Any]]:
    """For the d-th boundary of a path: how many right paths reach it, and the share of them pruned there; wrong ones too."""
    counts: dict[int, list[int]] = {}
    for question in questions:
        fallen = dict(replay(question.paths, threshold, min_live).pruned)
        for i, path in enumerate(question.paths):
            last = fallen.get(i, len(path.boundaries) - 1)
            for depth in range(last + 1):
                row = counts.setdefault(depth + 1, [0, 0, 0, 0])
                row[0 if path.correct else 2] += 1
                row[1 if path.correct else 3] += fallen.get(i) == depth
    return [
        {
            "depth": depth,
            "right_paths": right,
            "false_prunes": _share(cut, right),
            "wrong_paths": wrong,
            "true_prunes": _share(caught, wrong),
        }
        for depth, (right, cut, wrong, caught) in sorted(counts.items())
    ]


def oracle_prune(questions: Sequence[AuditedQuestion]) -> dict[str, float]:
    """The bound that no pruning rule passes: paths that will end wrong go at their first boundary, right ones stay.

    Its accuracy is the share of answerable questions (pass@K). A question without a right path keeps its last branch.
    """
    right, tokens = [], []
    for question in questions:
        paths = question.paths
        any_right = any(p.correct for p in paths)
        right.append(any_right)
        spent = [p.tokens if p.correct or not p.boundaries else p.boundaries[0] for p in paths]
        if not any_right:  # the last one to be looked at goes on to its end
            longest = max(range(len(paths)), key=lambda i: spent[i])
            spent[longest] = paths[longest].tokens
        tokens.append(sum(spent))
    return {"accuracy": float(np.mean(right)), "tokens": float(np.mean(tokens))}


def sweep_thresholds(questions: Sequence[AuditedQuestion], count: int = 12) -> list[float]:
    """0 and the quantiles of the paths' smallest confidences: where the sweep changes most."""
    lowest = np.array([p.lowest for q in questions for p in q.paths])
    lowest = lowest[np.isfinite(lowest)]
    if not lowest.size:
        return [0.0]
    found = np.quantile(lowest, np.linspace(0.0, 0.95, count), method="inverted_cdf")
    return [0.0, *dict.fromkeys(float(x) for x in found)]


def finish_pruned(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    trees: Sequence[CatTree],
    sample: SampleConfig,
    key: jax.Array,
    *,
    extract: Extract,
    equal: Equal,
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """Every branch that a search pruned, finished off the books: one continuation from where it fell.

    Drawn from the policy at that prefix with a key of its own, so it is a fair sample of what the branch would have
    become, forks included. It has the tokens that the search's length limit would have left to the branch; one that has not
    ended by then is wrong.

    Args:
      model: the policy's Decoder.
      tokenizer: its tokenizer.
      questions: with gold answers.
      trees: of `cat_search` on them, in order.
      sample: the search's sampling.
      key: seeds the continuations.
      extract: text -> answer.
      equal: (gold, answer) -> bool.
      batch_size: rows on the device at once.

    Returns:
      One row a pruned branch: `question`, `node`, `depth` (steps closed), `confidence`, `path_confidence`, `correct`.
    """
    fallen: list[_Fallen] = []
    for question, tree in zip(questions, trees, strict=True):
        if question.gold is None:
            raise UserError(f"question {question.id!r} has no gold answer: the audit needs one")
        pruned = [i for i, n in enumerate(tree.nodes) if n.status == "pruned"]
        fallen += [_Fallen(question.id, question.gold, tree, node, *_prefix(tree, node)) for node in pruned]
    if not fallen:
        return []
    prefixes = [
        Question(id=f"{f.question}/{f.node}", prompt_ids=(*f.tree.prompt_ids, *f.ids)) for f in fallen
    ]
    left = [sample.max_new_tokens - len(f.ids) for f in fallen]
    traces = generate(model, tokenizer, prefixes, sample, key, batch_size=batch_size, limits=left)
    spelled = token_bytes(tokenizer, model.config.vocab_size)

    def right(branch: _Fallen, rest: Trace) -> bool:
        ids = [*branch.ids, *rest.token_ids]
        # Stop strings and the answer may begin before the place where the branch fell.
        stop = first_stop(spelled, ids, sample.stop, len(branch.ids))
        answer = extract(token_text(spelled, ids[:stop]))
        ended = stop is not None or rest.finish_reason != "length"
        return bool(ended and answer is not None and equal(branch.gold, answer))

    return [
        {
            "question": branch.question,
            "node": branch.node,
            "depth": branch.depth,
            "confidence": branch.tree.nodes[branch.node].confidence,
            "path_confidence": branch.tree.nodes[branch.node].path_confidence,
            "correct": right(branch, rest),
        }
        for branch, rest in zip(fallen, traces, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class _Fallen:
    """A branch that a search pruned."""

    question: str  # its id
    gold: str
    tree: CatTree
    node: int  # its last one
    ids: list[int]  # from its first token to the end of the node
    depth: int  # steps closed


def _prefix(tree: CatTree, node: int) -> tuple[list[int], int]:
    """Tokens from the first to the end of `node`, and how many steps they close."""
    ids: list[int] = []
    depth = 0
    while node >= 0:
        ids = [*tree.nodes[node].token_ids, *ids]
        depth += tree.nodes[node].confidence is not None
        node = tree.nodes[node].parent
    return ids, depth
