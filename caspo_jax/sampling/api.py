"""`generate`, `cat_search`, `cat_sweep`, `explore`: questions in, records out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from flax import nnx

from caspo_jax.checks import check, of_kind
from caspo_jax.errors import UserError
from caspo_jax.sampling.config import CatConfig, SampleConfig
from caspo_jax.sampling.questions import Questions
from caspo_jax.sampling.results import search_results
from caspo_jax.sampling.run import run
from caspo_jax.sampling.traces import build_trace
from caspo_jax.sampling.units import Usage
from caspo_jax.sampling.votes import last_line, same_text
from caspo_jax.types import CatResult, Equal, Extract, Progress, Trace


def _check(model: Any, config: Any, kind: type, function: str) -> None:
    found = type(model).__name__
    hint = "load_pretrained gives one, and its tokenizer beside it"
    check(isinstance(model, nnx.Module), f"{function} takes a Decoder as model, not a {found}; {hint}")
    of_kind(config, kind, function, "config")


def generate(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    config: SampleConfig,
    key: Any,
    *,
    batch_size: int | None = None,
    step_confidence: str = "entropy",
    path_confidence: str = "geometric",
    progress: Progress | None = None,
    usage: Usage | None = None,
    pad_to: tuple[int, int] = (0, 0),
    limits: Sequence[int] | None = None,
) -> list[Trace]:
    """Samples `config.num_samples` outputs a question.

    Every output is a path of the tree loop that never prunes and never forks; sample i of a question has node key
    fold_in(question key, i), so it is the path of branch i in `cat_search` until a rule of the search differs. Runs on the
    host, not inside jit.

    Args:
      model: a Decoder.
      tokenizer: its tokenizer.
      questions: strings, Questions, or mappings as in a file of questions. A question listed twice has the same id, and so
        the same outputs twice.
      config: how to sample and where outputs end. All `num_samples` traces of a question carry its id: give them ids of
        their own before labels are looked up by id.
      key: a threefry key; a question's key is fold_in(key, hash of its id).
      batch_size: outputs on the device at once (default: by memory).
      step_confidence: name of the confidence that the steps carry.
      path_confidence: name of the traces' confidence.
      progress: called with (questions done, questions in all).
      usage: counters of how well the slots were used, to which this call adds.
      pad_to: the most questions and the most prompt tokens of several calls: each is then run in batches made for these,
        so that they share what is compiled. Changes no trace.
      limits: the most new tokens of each question's outputs, at most `config.max_new_tokens` (default); only these must
        fit into the context.

    Returns:
      Traces in question order, num_samples in a row for each.

    Raises:
      UserError: bad questions, prompts or key.

    >>> import jax
    >>> from caspo_jax.models import load_pretrained
    >>> from caspo_jax.tasks import get_task
    >>> task = get_task("graph")
    >>> config = SampleConfig(max_new_tokens=96, temperature=0.0)
    >>> questions = task.questions("test", 2, seed=0)
    >>> traces = generate(*load_pretrained(task.policy_path), questions, config, jax.random.key(0))
    >>> [trace.finish_reason for trace in traces], 0 < traces[0].steps[0].confidence <= 1
    (['eos', 'eos'], True)
    """
    _check(model, config, SampleConfig, "generate")
    strategy = "greedy" if config.temperature == 0 else "sample"
    samples = config.num_samples
    search = CatConfig(
        num_branches=1,
        expand=1,
        step_confidence=step_confidence,
        path_confidence=path_confidence,
        sample=dataclasses.replace(config, num_samples=1),
    )
    found = run(
        model,
        tokenizer,
        questions,
        search,
        key,
        strategy="self_consistency",
        samples=samples,
        batch_size=batch_size,
        progress=progress,
        usage=usage,
        pad_to=pad_to,
        limits=limits,
    )
    traces = []
    for record, prompt, trees in zip(found.records, found.prompts, found.trees, strict=True):
        # In the order of their child ranks: paths finish in any order.
        paths = [
            (int(tree.rank[tree.path(node)[0]]), tree, node) for tree in trees for node in tree.finished()
        ]
        for _, tree, node in sorted(paths, key=lambda path: path[0]):
            traces.append(
                build_trace(tree, node, record, prompt, found.vocabulary, config.step_delimiter, strategy)
            )
    return traces


def cat_search(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    config: CatConfig,
    key: Any,
    *,
    batch_size: int | None = None,
    extract: Extract = last_line,
    equivalent: Equal = same_text,
    progress: Progress | None = None,
    usage: Usage | None = None,
    pad_to: tuple[int, int] = (0, 0),
    strategy: str = "cat",
) -> list[CatResult]:
    """Confidence-aware Thought: a tree of branches that are pruned and forked at step boundaries.

    Runs on the host, not inside jit: there `cat_decode` is the search.

    Args:
      model: a Decoder.
      tokenizer: its tokenizer.
      questions: strings, Questions, or mappings as in a file of questions.
      config: the search.
      key: a threefry key; a question's key is fold_in(key, hash of its id).
      batch_size: slots on the device at once (default: by memory).
      extract: text -> answer or None, for the vote.
      equivalent: (answer, answer) -> bool, for the vote.
      progress: called with (questions done, questions in all).
      usage: counters of how well the slots were used, to which this call adds.
      pad_to: as in `generate`.
      strategy: cat | self_consistency | explore, the policy of the loop.

    Returns:
      One CatResult a question, in order.

    Raises:
      UserError: bad questions, prompts or key.

    >>> import jax
    >>> from caspo_jax.models import load_pretrained
    >>> from caspo_jax.tasks import extract_answer, get_task
    >>> task = get_task("graph")
    >>> config = CatConfig(num_branches=2, threshold=0.8, sample=SampleConfig(max_new_tokens=96, temperature=0.7))
    >>> questions = task.questions("test", 2, seed=0)
    >>> results = cat_search(
    ...     *load_pretrained(task.policy_path), questions, config, jax.random.key(0), extract=extract_answer
    ... )
    >>> [result.tokens > 0 and result.answer is not None for result in results]
    [True, True]
    """
    _check(model, config, CatConfig, "cat_search")
    return search_results(
        model,
        tokenizer,
        questions,
        [config],
        key,
        strategy=strategy,
        batch_size=batch_size,
        extract=extract,
        equivalent=equivalent,
        progress=progress,
        usage=usage,
        pad_to=pad_to,
    )


def cat_sweep(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    config: CatConfig,
    thresholds: Sequence[float],
    key: Any,
    *,
    batch_size: int | None = None,
    extract: Extract = last_line,
    equivalent: Equal = same_text,
    progress: Progress | None = None,
    usage: Usage | None = None,
) -> list[list[CatResult]]:
    """`cat_search` at each of several thresholds, in the same batches: larger ones, and one tail instead of many.

    Args:
      model: a Decoder.
      tokenizer: its tokenizer.
      questions: strings, Questions, or mappings as in a file of questions.
      config: the search; its threshold is not read.
      thresholds: prune strictly below.
      key: as in `cat_search`; the searches of a question share its draws, whatever the threshold.
      batch_size: slots on the device at once (default: by memory).
      extract: text -> answer or None, for the vote.
      equivalent: (answer, answer) -> bool, for the vote.
      progress: called with (searches done, searches in all).
      usage: counters of how well the slots were used, to which this call adds.

    Returns:
      For each threshold what `cat_search` gives, up to float error.

    Raises:
      UserError: no threshold, or one that is no number; bad questions, prompts or key.

    >>> import jax
    >>> from caspo_jax.models import load_pretrained
    >>> from caspo_jax.tasks import extract_answer, get_task
    >>> task = get_task("graph")
    >>> config = CatConfig(num_branches=2, sample=SampleConfig(max_new_tokens=96, temperature=0.7))
    >>> questions = task.questions("test", 2, seed=0)
    >>> loose, strict = cat_sweep(
    ...     *load_pretrained(task.policy_path), questions, config, (0.0, 0.9), jax.random.key(0), extract=extract_answer
    ... )
    >>> len(loose), loose[0].tree.threshold, strict[0].tree.threshold
    (2, 0.0, 0.9)
    """
    _check(model, config, CatConfig, "cat_sweep")
    if not len(thresholds):
        raise UserError("thresholds is empty: give at least one")
    found = search_results(
        model,
        tokenizer,
        questions,
        [dataclasses.replace(config, threshold=float(threshold)) for threshold in thresholds],
        key,
        strategy="cat",
        batch_size=batch_size,
        extract=extract,
        equivalent=equivalent,
        progress=progress,
        usage=usage,
    )
    each = len(found) // len(thresholds)
    return [found[i * each : (i + 1) * each] for i in range(len(thresholds))]


def explore(
    model: Any, tokenizer: Any, questions: Questions, config: CatConfig, key: Any, **options: Any
) -> list[CatResult]:
    """The tree for training data: forks into siblings and never prunes, so siblings are candidates of one prefix.

    Set `config.root_branches` below `num_branches`: the slots that this leaves free are forked into. The threshold is
    not read. Arguments and result are those of `cat_search`.
    """
    return cat_search(model, tokenizer, questions, config, key, strategy="explore", **options)
