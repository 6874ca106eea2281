"""From questions to the trees that are grown of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.confidence.step import needed_fields
from caspo_jax.errors import UserError
from caspo_jax.models.tokenizer import check_prompt_ids, encode_prompt, eos_ids, token_bytes
from caspo_jax.sampling.automaton import build_automaton
from caspo_jax.sampling.config import CatConfig
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sampling.policy import make_policy
from caspo_jax.sampling.questions import Questions, as_questions, question_keys
from caspo_jax.sampling.room import default_rows
from caspo_jax.sampling.search import grow_trees
from caspo_jax.sampling.tree import Tree
from caspo_jax.sampling.units import Unit, Usage
from caspo_jax.types import Progress, Question


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


def special_stops(tokenizer: Any, vocabulary: Sequence[bytes], stops: Sequence[str]) -> list[int]:
    """Ids of the special tokens among the stop strings: they have no bytes in which a stop string could be found."""
    if tokenizer is None:
        return []
    found = [tokenizer.backend_tokenizer.token_to_id(stop) for stop in stops]
    return [i for i in found if i is not None and i < len(vocabulary) and not vocabulary[i]]


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of the questions."""

    records: list[Question]
    prompts: list[tuple[int, ...]]
    keys: list[tuple[int, int]]
    vocabulary: tuple[bytes, ...]
    trees: list[list[Tree]]  # of each question; then of each with the next threshold, ...


def _check_on_host(model: Any, key: Any) -> None:
    probe = jnp.zeros(())  # traced itself under jit, though nothing that was given may be
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((probe, key, nnx.state(model)))):
        raise UserError(
            "generate and cat_search run on the host: call them outside of jit, vmap and grad; "
            "cat_decode is the search that can be called inside"
        )


def _check_limits(limits: Sequence[int], count: int, most: int) -> None:
    if len(limits) != count:
        raise UserError(f"limits has {len(limits)} values for {count} questions")
    for limit in limits:
        if not 1 <= limit <= most:
            raise UserError(f"limits holds {limit}: give 1 to {most} (max_new_tokens)")


def run(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    config: CatConfig,
    key: Any,
    *,
    strategy: str,
    samples: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    usage: Usage | None = None,
    decided: Callable[[int, Question, tuple[int, ...], Sequence[bytes], Tree], bool] | None = None,
    pad_to: tuple[int, int] = (0, 0),
    thresholds: Sequence[float | None] = (None,),
    limits: Sequence[int] | None = None,
) -> Run:
    """Prompts, keys and trees of the questions, for `generate` and the searches, whose arguments these are.

    A question has one tree, save where `samples`, the outputs that `generate` wants, need more rows than fit together.
    With `thresholds` each question is searched at each of them instead of the config's. `limits` are the most new tokens
    of each question, at most the config's, by which buffers are made.
    """
    _check_on_host(model, key)
    records = as_questions(questions)
    if limits is not None:
        _check_limits(limits, len(records), config.sample.max_new_tokens)
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise UserError(f"batch_size={batch_size!r}: give an integer of 1 or more")
    shape, settings = model.config, config.sample
    prompts = [tuple(encode_prompt(tokenizer, record)) for record in records]
    own = [None] * len(records) if limits is None else list(limits)
    for record, prompt, limit in zip(records, prompts, own, strict=True):
        check_prompt_ids(prompt, shape, record.name, limit or settings.max_new_tokens)
    vocabulary = _vocabulary(tokenizer, shape.vocab_size)
    if not records:
        return Run([], [], [], vocabulary, [])
    keys = [(int(a), int(b)) for a, b in question_keys(key, [record.id for record in records])]
    ends = [] if settings.ignore_eos else list(eos_ids(shape, tokenizer))
    ends += special_stops(tokenizer, vocabulary, settings.stop)
    automaton = build_automaton(vocabulary, settings.step_delimiter, settings.stop, ends)
    fields = tuple(dict.fromkeys(("logprob", "entropy", *needed_fields(config.step_confidence))))
    asked = list(zip(records, prompts, strict=True)) * len(thresholds)
    repeats = 1
    if samples is not None:  # the branches of one tree, or a tree each where they are too many for the device
        longest = max(len(prompt) for prompt in prompts)
        most = batch_size or default_rows(model, longest, settings.max_new_tokens, samples, split=True)[0]
        repeats = samples if samples > most else 1
        config = dataclasses.replace(config, num_branches=samples // repeats)
    trees = grow_trees(
        model,
        [
            Unit(p, k, i * config.num_branches, threshold, limit)
            for threshold in thresholds
            for p, k, limit in zip(prompts, keys, own, strict=True)
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
        decided=decided and (lambda i, tree: decided(i, *asked[i], vocabulary, tree)),
        pad_to=(pad_to[0] * repeats, pad_to[1]),
    )
    grouped = [list(itertools.chain(*trees[i : i + repeats])) for i in range(0, len(trees), repeats)]
    for (record, _), found in zip(asked, grouped, strict=True):
        if any(np.isnan(used).any() for tree in found for used in tree.used("entropy")):
            raise UserError(
                f"question {record.id!r}: the model's logits held no finite value or a NaN; check its weights"
            )
    return Run(records, prompts, keys, vocabulary, grouped)
