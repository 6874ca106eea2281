"""What a search found: the paths of each question's tree, and the answer they vote for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from caspo_jax.sampling.config import CatConfig
from caspo_jax.sampling.decided import is_decided
from caspo_jax.sampling.questions import Questions
from caspo_jax.sampling.run import run
from caspo_jax.sampling.traces import build_trace, build_tree
from caspo_jax.sampling.tree import Tree
from caspo_jax.sampling.units import Usage
from caspo_jax.sampling.votes import vote
from caspo_jax.types import CatResult, Equal, Extract, Progress, Question, Trace


def search_results(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    configs: Sequence[CatConfig],
    key: Any,
    *,
    strategy: str,
    batch_size: int | None,
    extract: Extract,
    equivalent: Equal,
    progress: Progress | None,
    usage: Usage | None,
    pad_to: tuple[int, int] = (0, 0),
) -> list[CatResult]:
    """Results of all questions with the first config, then with the next, which differs in the threshold alone.

    The other arguments, and what is raised, are those of `cat_search`.
    """
    config = configs[0]
    # (search, node) -> path: a finished one stays as it is, however often it is looked at.
    built: dict[tuple[int, int], Trace] = {}

    def finished(
        search: int, record: Question, prompt: tuple[int, ...], vocabulary: Sequence[bytes], tree: Tree
    ) -> tuple[Trace, ...]:
        nodes = tree.finished()
        for node in nodes:
            if (search, node) not in built:
                path = build_trace(
                    tree, node, record, prompt, vocabulary, config.sample.step_delimiter, strategy
                )
                built[search, node] = dataclasses.replace(path, answer=extract(path.text))
        return tuple(built[search, node] for node in nodes)

    def decided(*found: Any) -> bool:
        return is_decided(found[-1], finished(*found), config, extract, equivalent)

    found = run(
        model,
        tokenizer,
        questions,
        config,
        key,
        strategy=strategy,
        batch_size=batch_size,
        progress=progress,
        usage=usage,
        decided=decided if config.stop_decided else None,
        pad_to=pad_to,
        thresholds=[config.threshold for config in configs],
    )
    threshold_of = [
        config.threshold if strategy == "cat" else None for config in configs for _ in found.records
    ]
    results = []
    asked = list(zip(found.records, found.prompts, found.keys, strict=True)) * len(configs)
    for search, ((record, prompt, seed), (tree,), threshold) in enumerate(
        zip(asked, found.trees, threshold_of, strict=True)
    ):
        paths = finished(search, record, prompt, found.vocabulary, tree)
        answer, votes = vote(paths, config.vote, extract=extract, equivalent=equivalent, gamma=config.gamma)
        results.append(
            CatResult(
                record.id,
                answer,
                paths,
                build_tree(tree, record.id, prompt, seed, threshold),
                tree.tokens,
                votes,
            )
        )
    return results
