"""Greedy decoding and CaT: one call of the loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, timed
from caspo_jax.sampling import CatConfig, cat_sweep, generate, vote
from caspo_jax.types import CatResult, CatTree, Question


def greedy(context: Context, settings: Settings) -> list[Answer]:
    """The most probable token, always."""
    return timed(lambda: _greedy(context, settings), len(context.questions))


def _greedy(context: Context, settings: Settings) -> list[Answer]:
    traces = generate(
        context.model,
        context.tokenizer,
        context.questions,
        settings.sample.greedy(),
        context.key,
        batch_size=context.batch_size,
        step_confidence="mean_logprob",
        progress=context.progress,
    )
    context.show("greedy", traces)
    answers = []
    for question, trace in zip(context.questions, traces, strict=True):
        answer = context.extract(trace.text)
        spent = len(trace.token_ids)
        answers.append(
            Answer(
                "greedy",
                "1",
                question.id,
                answer,
                None,
                spent,
                1 + spent,
                path_confidence=trace.path_confidence,
            )
        )
    return answers


def cat_at(config: CatConfig, branches: int) -> CatConfig:
    """The search with K branches and everything else as it is."""
    return dataclasses.replace(config, num_branches=branches, root_branches=None, num_answers=None)


def cat(context: Context, settings: Settings) -> list[Answer]:
    """CaT with each number of branches."""
    return [a for k in settings.cat_sizes for a in search(context, cat_at(settings.cat, k), "cat", str(k))]


def cat_paper(context: Context, settings: Settings) -> list[Answer]:
    """CaT with the published rule: entropy, path confidence, confidence-weighted vote."""
    config = paper_config(settings)
    return search(context, config, "cat_paper", str(config.num_branches))


def paper_config(settings: Settings) -> CatConfig:
    """The published rule's search, at the middle size."""
    config = dataclasses.replace(
        settings.cat,
        step_confidence="entropy",
        path_confidence="geometric",
        prune="path",
        vote="confidence",
        gamma=1.0,
        threshold=settings.paper_threshold,
    )
    return cat_at(config, middle_size(settings))


def middle_size(settings: Settings) -> int:
    """The number of branches that thresholds are chosen at."""
    return settings.cat_sizes[len(settings.cat_sizes) // 2]


def search(context: Context, config: CatConfig, name: str, size: str) -> list[Answer]:
    """One tree search a question."""
    return timed(lambda: _search(context, config, name, size), len(context.questions))


def _search(context: Context, config: CatConfig, name: str, size: str) -> list[Answer]:
    (results,) = swept(context, config, [config.threshold])
    context.show(f"{name}_{size}", results, vote=config.vote, gamma=config.gamma)
    return [
        _answer(context, question, result, result.answer, name, size)
        for question, result in zip(context.questions, results, strict=True)
    ]


def swept(context: Context, config: CatConfig, thresholds: Sequence[float]) -> list[list[CatResult]]:
    """The searches themselves, at each threshold."""
    return cat_sweep(
        context.model,
        context.tokenizer,
        context.questions,
        config,
        thresholds,
        context.key,
        extract=lambda text: context.extract(text),
        equivalent=context.same,
        batch_size=context.batch_size,
        progress=context.progress,
    )


def elected(
    context: Context, config: CatConfig, results: Sequence[CatResult], name: str, size: str
) -> list[Answer]:
    """The answers that the vote of `config` takes from the paths of searches that are done."""
    choose = functools.partial(
        vote, method=config.vote, extract=context.extract, equivalent=context.same, gamma=config.gamma
    )
    return [
        _answer(context, question, result, choose(result.paths)[0], name, size)
        for question, result in zip(context.questions, results, strict=True)
    ]


def _answer(
    context: Context, question: Question, result: CatResult, answer: str | None, name: str, size: str
) -> Answer:
    calls = 1 + longest_path(result.tree)
    found = [
        p.path_confidence for p in result.paths if answer is not None and context.extract(p.text) == answer
    ]
    surest = max((c for c in found if c is not None), default=None)
    return Answer(name, size, question.id, answer, None, result.tokens, calls, path_confidence=surest)


def longest_path(tree: CatTree) -> int:
    """Tokens of the longest branch, finished or not: iterations of the loop."""
    depth: list[int] = []
    for node in tree.nodes:  # parents come first
        depth.append(len(node.token_ids) + (depth[node.parent] if node.parent >= 0 else 0))
    return max(depth)
