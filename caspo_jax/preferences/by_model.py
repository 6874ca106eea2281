"""Competitors made by the policy itself: the swap and the greedy continuation, batched on the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from caspo_jax.models import eos_ids, token_bytes
from caspo_jax.padding import groups, padded_rows
from caspo_jax.preferences.competitors import GreedyCompetitors
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.sharding import batch_ways, mesh_of, to_host
from caspo_jax.steps import Verifier
from caspo_jax.types import Question

_BUCKET = 32  # the least step of context lengths
_ROWS = 64  # of contexts that are only read, by default


@functools.partial(jax.jit, static_argnames="graphdef")
def _top_two(graphdef: Any, params: Any, token_ids: jax.Array, mask: jax.Array) -> jax.Array:
    logits, _ = nnx.merge(graphdef, params).prefill(token_ids, mask, 0)
    return jax.lax.top_k(logits, 2)[1]


def policy_competitors(
    model: Any,
    tokenizer: Any,
    verifier: Verifier,
    *,
    delimiter: str,
    max_new_tokens: int = 256,
    batch_size: int | None = None,
) -> GreedyCompetitors:
    """The competitor maker of `select_pairs` for a policy in memory.

    Args:
      model: a Decoder.
      tokenizer: its tokenizer.
      verifier: judges the competitors.
      delimiter: what ends a step.
      max_new_tokens: a continuation longer than this is no competitor.
      batch_size: rows on the device at once (default: by memory); of long contexts that are only read, fewer.
    """
    graphdef, params = nnx.split(model)
    ways = batch_ways(mesh_of(model))

    def other_token(contexts: Sequence[tuple[int, ...]], emitted: Sequence[int]) -> list[int]:
        found: list[int] = [0] * len(contexts)
        for columns, most, rows in groups(list(map(len, contexts)), _BUCKET, batch_size or _ROWS, ways):
            token_ids, mask = padded_rows([contexts[i] for i in rows], columns, most)
            top = to_host(_top_two(graphdef, params, jnp.asarray(token_ids), jnp.asarray(mask)))
            for row, i in enumerate(rows):
                first, second = (int(t) for t in top[row])
                found[i] = first if first != emitted[i] else second
        return found

    limit = model.config.context

    def complete(contexts: Sequence[tuple[int, ...]]) -> list[tuple[Sequence[int], bool]]:
        found: list[tuple[Sequence[int], bool]] = [((), False)] * len(contexts)
        rooms = [min(max_new_tokens, limit - len(context)) for context in contexts]
        config = SampleConfig(
            max_new_tokens=max_new_tokens, temperature=0.0, stop=(delimiter,), step_delimiter=delimiter
        )
        roomy = [i for i, room in enumerate(rooms) if room == max_new_tokens]
        tight = [i for i, room in enumerate(rooms) if 0 < room < max_new_tokens]
        # Apart, for slots are not refilled under limits. What meets the end of the context is unfinished.
        for rows in (roomy, tight):
            if not rows:
                continue
            questions = [Question(id=str(i), prompt_ids=contexts[i]) for i in rows]
            traces = generate(
                model,
                tokenizer,
                questions,
                config,
                jax.random.key(0),
                batch_size=batch_size,
                limits=[rooms[i] for i in rows] if rows is tight else None,
            )
            for i, trace in zip(rows, traces, strict=True):
                found[i] = (trace.token_ids, trace.finish_reason in ("eos", "stop"))
        return found

    return GreedyCompetitors(
        token_bytes=token_bytes(tokenizer, model.config.vocab_size),
        eos_ids=frozenset(eos_ids(model.config, tokenizer)),
        other_token=other_token,
        complete=complete,
        verifier=verifier,
        delimiter=delimiter,
    )
