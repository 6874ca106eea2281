"""`generate`, `cat_search`, `explore`: questions in, records out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from caspo_jax.confidence.step import needed_fields
from caspo_jax.errors import UserError
from caspo_jax.models.tokenizer import check_prompt_ids, encode_prompt, eos_ids, token_bytes
from caspo_jax.sampling.automaton import build_automaton
from caspo_jax.sampling.batch import Unit, Usage
from caspo_jax.sampling.config import CatConfig, SampleConfig
from caspo_jax.sampling.decided import is_decided
from caspo_jax.sampling.policy import make_policy
from caspo_jax.sampling.search import Progress, default_rows, grow_trees, key_data
from caspo_jax.sampling.state import Knobs, fold_in
from caspo_jax.sampling.traces import build_trace, build_tree
from caspo_jax.sampling.tree import Tree
from caspo_jax.sampling.votes import Equivalent, Extract, last_line, same_text, vote
from caspo_jax.types import CatResult, Question, Trace

Questions = Sequence[str | Question]


def as_questions(questions: Questions) -> list[Question]:
    """Strings become records whose id is a hash of the text, so that neither place nor neighbours matter.

    Raises:
      UserError: a single string, something that is no question, or two different records of one id.
    """
    if isinstance(questions, str | Question):
        raise UserError("questions is one question: give a list of them")
    records: list[Question] = []
    seen: dict[str, Question] = {}
    for i, item in enumerate(questions):
        if isinstance(item, str):
            item = Question(id=hashlib.blake2b(item.encode(), digest_size=8).hexdigest(), question=item)
        elif not isinstance(item, Question):
            raise UserError(
                f"questions[{i}] is a {type(item).__name__}: give a str or a caspo_jax.types.Question"
            )
        if seen.setdefault(item.id, item) != item:
            raise UserError(
                f"questions[{i}]: id {item.id!r} is taken by another question; ids seed the sampling"
            )
        records.append(item)
    return records


def question_hash(question_id: str) -> int:
    """A stable 32-bit hash of a question's id."""
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=4).digest(), "big")


def question_keys(key: Any, ids: Sequence[str]) -> np.ndarray:
    """[B, 2] uint32: fold_in(key, hash of the id), whatever stands beside it."""
    hashes = np.array([question_hash(i) for i in ids], np.uint32)
    return np.asarray(fold_in(jnp.tile(key_data(key), (len(ids), 1)), hashes))


def _vocabulary(tokenizer: Any, vocab_size: int) -> tuple[bytes, ...]:
    return _cached_vocabulary(_Identity(tokenizer), vocab_size)


@dataclasses.dataclass(frozen=True)
class _Identity:
    """Hashes any tokenizer by identity, and keeps it alive while cached."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.value is self.value


@functools.lru_cache(maxsize=4)
def _cached_vocabulary(tokenizer: _Identity, vocab_size: int) -> tuple[bytes, ...]:
    return tuple(token_bytes(tokenizer.value, vocab_size))


@dataclasses.dataclass(frozen=True)
class _Run:
    records: list[Question]
    prompts: list[tuple[int, ...]]
    keys: list[tuple[int, int]]
    vocabulary: tuple[bytes, ...]
    trees: list[
        list[Tree]
    ]  # a question's trees; one, save where `generate` needs more rows than fit together


def _run(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    config: CatConfig,
    key: Any,
    strategy: str,
    samples: int | None,
    batch_size: int | None,
    progress: Progress | None,
    usage: Usage | None,
    decided: Callable[[Question, tuple[int, ...], Sequence[bytes], Tree], bool] | None = None,
    pad_to: tuple[int, int] = (0, 0),
) -> _Run:
    records = as_questions(questions)
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size={batch_size}: give 1 or more")
    shape, settings = model.config, config.sample
    prompts = [tuple(encode_prompt(tokenizer, record)) for record in records]
    for record, prompt in zip(records, prompts, strict=True):
        check_prompt_ids(prompt, shape, f"question {record.id!r}", settings.max_new_tokens)
    vocabulary = _vocabulary(tokenizer, shape.vocab_size)
    if not records:
        return _Run([], [], [], vocabulary, [])
    keys = [(int(a), int(b)) for a, b in question_keys(key, [record.id for record in records])]
    ends = () if settings.ignore_eos else eos_ids(shape, tokenizer)
    automaton = build_automaton(vocabulary, settings.step_delimiter, settings.stop, ends)
    fields = tuple(dict.fromkeys(("logprob", "entropy", *needed_fields(config.step_confidence))))
    repeats = 1
    if samples is not None:  # the branches of one tree, or a tree each where they are too many for the device
        longest = max(len(prompt) for prompt in prompts)
        most = batch_size or default_rows(model, longest + settings.max_new_tokens)
        repeats = samples if samples > most else 1
        config = dataclasses.replace(config, num_branches=samples // repeats)
    trees = grow_trees(
        model,
        [
            Unit(p, k, i * config.num_branches)
            for p, k in zip(prompts, keys, strict=True)
            for i in range(repeats)
        ],
        lambda decode, copy, load: make_policy(decode, copy, config, shape.vocab_size, strategy, load),
        Knobs.of(config),
        automaton,
        num_slots=config.num_branches,
        roots=config.roots,
        max_new_tokens=settings.max_new_tokens,
        fields=fields,
        batch_size=batch_size,
        progress=None if progress is None else lambda done, of: progress(done // repeats, of // repeats),
        usage=usage,
        split=samples is not None,
        decided=decided and (lambda i, tree: decided(records[i], prompts[i], vocabulary, tree)),
        pad_to=(pad_to[0] * repeats, pad_to[1]),
    )
    grouped = [list(itertools.chain(*trees[i : i + repeats])) for i in range(0, len(trees), repeats)]
    for record, found in zip(records, grouped, strict=True):
        if any(np.isnan(used).any() for tree in found for used in tree.used("entropy")):
            raise UserError(
                f"question {record.id!r}: the model's logits held no finite value or a NaN; check its weights"
            )
    return _Run(records, prompts, keys, vocabulary, grouped)


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
) -> list[Trace]:
    """Samples `config.num_samples` outputs a question.

    Every output is a path of the tree loop that never prunes and never forks; sample i of a question has node key
    fold_in(question key, i), so it is the path of branch i in `cat_search` until a rule of the search differs.

    Args:
      model: a Decoder.
      tokenizer: its tokenizer.
      questions: strings or Questions.
      config: how to sample and where outputs end.
      key: a threefry key; a question's key is fold_in(key, hash of its id).
      batch_size: outputs on the device at once (default: by memory).
      step_confidence: name of the confidence that the steps carry.
      path_confidence: name of the traces' confidence.
      progress: called with (questions done, questions in all).
      usage: counters of how well the slots were used, to which this call adds.
      pad_to: the most questions and the most prompt tokens of several calls: each is then run in batches made for these,
        so that they share what is compiled. Changes no trace.

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
    strategy = "greedy" if config.temperature == 0 else "sample"
    samples = config.num_samples
    search = CatConfig(
        num_branches=1,
        expand=1,
        step_confidence=step_confidence,
        path_confidence=path_confidence,
        sample=dataclasses.replace(config, num_samples=1),
    )
    run = _run(
        model,
        tokenizer,
        questions,
        search,
        key,
        "self_consistency",
        samples,
        batch_size,
        progress,
        usage,
        pad_to=pad_to,
    )
    traces = []
    for record, prompt, trees in zip(run.records, run.prompts, run.trees, strict=True):
        # In the order of their child ranks: paths finish in any order.
        paths = [
            (int(tree.rank[tree.path(node)[0]]), tree, node) for tree in trees for node in tree.finished()
        ]
        for _, tree, node in sorted(paths, key=lambda path: path[0]):
            traces.append(
                build_trace(tree, node, record, prompt, run.vocabulary, config.step_delimiter, strategy)
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
    equivalent: Equivalent = same_text,
    progress: Progress | None = None,
    usage: Usage | None = None,
    strategy: str = "cat",
) -> list[CatResult]:
    """Confidence-aware Thought: a tree of branches that are pruned and forked at step boundaries.

    Args:
      model: a Decoder.
      tokenizer: its tokenizer.
      questions: strings or Questions.
      config: the search.
      key: a threefry key; a question's key is fold_in(key, hash of its id).
      batch_size: slots on the device at once (default: by memory).
      extract: text -> answer or None, for the vote.
      equivalent: (answer, answer) -> bool, for the vote.
      progress: called with (questions done, questions in all).
      usage: counters of how well the slots were used, to which this call adds.
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

    def finished(
        record: Question, prompt: tuple[int, ...], vocabulary: Sequence[bytes], tree: Tree
    ) -> tuple[Trace, ...]:
        paths = [
            build_trace(tree, node, record, prompt, vocabulary, config.sample.step_delimiter, strategy)
            for node in tree.finished()
        ]
        return tuple(dataclasses.replace(path, answer=extract(path.text)) for path in paths)

    def decided(*found: Any) -> bool:
        return is_decided(found[-1], finished(*found), config, extract, equivalent)

    run = _run(
        model,
        tokenizer,
        questions,
        config,
        key,
        strategy,
        None,
        batch_size,
        progress,
        usage,
        decided if config.stop_decided else None,
    )
    results = []
    for record, prompt, seed, (tree,) in zip(run.records, run.prompts, run.keys, run.trees, strict=True):
        paths = finished(record, prompt, run.vocabulary, tree)
        answer, votes = vote(paths, config.vote, extract=extract, equivalent=equivalent, gamma=config.gamma)
        threshold = config.threshold if strategy == "cat" else None
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


def explore(
    model: Any, tokenizer: Any, questions: Questions, config: CatConfig, key: Any, **options: Any
) -> list[CatResult]:
    """The tree for training data: forks into siblings and never prunes, so siblings are candidates of one prefix.

    Set `config.root_branches` below `num_branches`: the slots that this leaves free are forked into. The threshold is
    not read. Arguments and result are those of `cat_search`.
    """
    return cat_search(model, tokenizer, questions, config, key, strategy="explore", **options)
