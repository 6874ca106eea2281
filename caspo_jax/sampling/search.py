"""Grows trees for many questions: slots refilled from a queue, or in batches whose finished work is taken out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from caspo_jax.models.cache import prefers_lanes
from caspo_jax.models.cache_rows import copy_rows, load_prompt
from caspo_jax.padding import multiple, width
from caspo_jax.sampling.automaton import Automaton
from caspo_jax.sampling.batch import Batch, cut_rows
from caspo_jax.sampling.knobs import Knobs
from caspo_jax.sampling.model_decode import ModelDecode, decode_params
from caspo_jax.sampling.policy import Policy
from caspo_jax.sampling.room import default_rows
from caspo_jax.sampling.stream import stream
from caspo_jax.sampling.tree import Tree
from caspo_jax.sampling.units import Unit, Usage, bucket
from caspo_jax.sharding import batch_ways, mesh_of
from caspo_jax.types import Progress

PROMPT_BUCKET = 16  # the least step of the width to which the longest prompt is padded

Decided = Callable[[int, Tree], bool]  # (unit, its tree so far) -> may its search end now?


def grow_trees(
    model: Any,
    units: Sequence[Unit],
    policy: Callable[[Callable, Callable, Callable], Policy],
    knobs: Knobs,
    automaton: Automaton,
    *,
    num_slots: int,
    roots: int,
    max_new_tokens: int,
    fields: tuple[str, ...],
    batch_size: int | None = None,
    progress: Progress | None = None,
    usage: Usage | None = None,
    split: bool = False,
    decided: Decided | None = None,
    pad_to: tuple[int, int] = (0, 0),
) -> list[list[Tree]]:
    """Grows one tree a unit and returns them in the units' order.

    Where there are more units than fit together, the slots of a unit that has ended go to the next one, inside the loop.
    On a mesh, in a cache of lanes, and where `decided` is asked, units go in batches instead.

    With `split`, branches do not wait for each other: where slots are refilled, each root is a tree of its own from the
    start, unless the prompt is so long that it had better be held once (`default_rows`); in batches, the few that outlive the
    others go on by themselves, and so do from the start all of a padded call that has few. Such a unit has several trees,
    and each of its branches is finished in one of them.

    Args:
      model: a Decoder.
      units: at least one token of prompt each.
      policy: makes the policy from the model's decode, copy_rows and load_prompt functions.
      knobs: the search's numbers.
      automaton: of the model's vocabulary.
      num_slots: K.
      roots: children of the root.
      max_new_tokens: limit of a path.
      fields: TokenStats fields to keep.
      batch_size: slots on the device at once (default: `default_rows`).
      progress: called with (units done, units in all).
      usage: counters to add to.
      split: whether branches may leave their tree; for a policy that never forks.
      decided: asked between two segments about each question with a finished path; goes without `split`.
      pad_to: (units, prompt tokens) that the batch is made for if there are fewer, so that calls share their programs.
    """
    graphdef, params = nnx.split(model)
    longest = max(pad_to[1], *(len(unit.prompt_ids) for unit in units))
    count = max(pad_to[0], len(units))
    columns = width(longest, PROMPT_BUCKET)
    rows, apart = default_rows(model, longest, max_new_tokens, num_slots, split, batch_size)
    ways = batch_ways(mesh_of(model))
    size = _even_size(count, max(1, rows // num_slots), ways)
    lanes = prefers_lanes(size * num_slots)
    cut = cut_rows(size * num_slots) if split and any(pad_to) else 0
    few = len(units) * roots <= cut
    limited = any(unit.max_new_tokens is not None for unit in units)
    alike = len({unit.threshold for unit in units}) == 1 and not limited  # what a queue takes
    many = count > size and not few
    refill = many and mesh_of(model) is None and not lanes and decided is None and alike
    wanted, shared = list(units), 1
    if split and num_slots > 1 and (few or (refill and apart)):
        wanted = [
            dataclasses.replace(unit, first_rank=unit.first_rank + i) for unit in units for i in range(roots)
        ]
        num_slots, roots, shared = 1, 1, roots
        size = _even_size(count * shared, max(1, rows), ways)
    if few:
        size = cut
    # Prompts of one length together; the order comes back at the end.
    order = sorted(range(len(wanted)), key=lambda i: len(wanted[i].prompt_ids))
    search = Batch(
        graphdef=graphdef,
        params=params,
        decode_params=decode_params(graphdef, params),
        policy=policy(ModelDecode(graphdef), copy_rows, load_prompt),
        knobs=knobs,
        automaton=automaton,
        num_slots=num_slots,
        roots=roots,
        prompt_columns=columns,
        max_new_tokens=max_new_tokens,
        fields=fields,
        lanes=lanes,
        shared_heads=model.config.num_heads // model.config.num_kv_heads,
        usage=Usage() if usage is None else usage,
        report=(lambda done: None) if progress is None else lambda done: progress(done // shared, len(units)),
        split=split,
        shared=shared,
        decided=None if decided is None else lambda unit, tree: decided(order[unit], tree),
        padded=any(pad_to),
    )
    ordered = [wanted[i] for i in order]
    found = stream(search, ordered, size, count * shared) if refill else _in_batches(search, ordered, size)
    trees: list[list[Tree]] = [[] for _ in units]
    for index, its in sorted(zip(order, found, strict=True)):
        trees[index // shared].extend(its)
    return trees


def _even_size(count: int, limit: int, ways: int) -> int:
    """Units of a batch: at most `limit`, batches of about one size, that the mesh splits evenly."""
    batches = math.ceil(count / limit)
    return multiple(min(bucket(math.ceil(count / batches)), limit), ways)


def _in_batches(search: Batch, units: list[Unit], size: int) -> list[list[Tree]]:
    trees: list[list[Tree]] = [[] for _ in units]
    for first in range(0, len(units), size):
        batch = units[first : first + size]
        where = np.full(size, -1)  # which unit each question of the state belongs to
        where[: len(batch)] = np.arange(first, first + len(batch))
        search.drain(search.start(batch, size), where, trees, first + len(batch))
    return trees
