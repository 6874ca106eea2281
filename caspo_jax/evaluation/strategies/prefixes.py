"""Continuations of prefixes at one compiled shape, for strategies that work step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies.base import Context
from caspo_jax.models import encode_prompt
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.sharding import to_host
from caspo_jax.types import Question, Trace

FIRST_ROOM = 64  # tokens that the next step is given at first; most steps are shorter
ROOM_GROWTH = 4  # where it was too little
MANY = 1 / 8  # share of prefixes for which it was, to begin with more the next time


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Continues prefixes of a fixed number of questions; calls have few shapes, so few programs serve all."""

    context: Context
    prompts: tuple[tuple[int, ...], ...]  # [Q]
    places: int  # most prefixes of a call
    columns: int  # tokens of the longest prefix that is allowed

    @classmethod
    def of(cls, context: Context, config: SampleConfig, places: int) -> Prefixes:
        """For the context's questions; a prefix is at most a prompt and `max_new_tokens`, as far as the context goes."""
        prompts = tuple(tuple(encode_prompt(context.tokenizer, q)) for q in context.questions)
        longest = max(map(len, prompts))
        limit = context.model.config.context - config.max_new_tokens
        columns = min(longest + config.max_new_tokens, limit)
        if columns < longest:
            raise UserError(
                f"max_new_tokens={config.max_new_tokens} leaves no room after prompts of {longest} tokens"
            )
        return cls(context, prompts, places, columns)

    def extend(
        self, wanted: Sequence[tuple[int, tuple[int, ...], str]], config: SampleConfig
    ) -> list[list[Trace]]:
        """`config.num_samples` continuations of each (question index, tokens after the prompt, name that seeds it).

        A prefix that has outgrown `columns` gets none.
        """
        questions, kept = [], []
        for i, (question, ids, name) in enumerate(wanted):
            whole = (*self.prompts[question], *ids)
            if len(whole) <= self.columns:
                kept.append(i)
                questions.append(
                    Question(id=f"{self.context.questions[question].id}/{name}", prompt_ids=whole)
                )
        if not kept:
            return [[] for _ in wanted]
        context, count = self.context, config.num_samples
        flat = generate(
            context.model,
            context.tokenizer,
            questions,
            config,
            context.key,
            batch_size=context.batch_size,
            step_confidence="mean_logprob",
            pad_to=(self.places, self.columns),
        )
        found: list[list[Trace]] = [[] for _ in wanted]
        for place, i in enumerate(kept):
            found[i] = flat[place * count : (place + 1) * count]
        return found

    def extend_by_steps(
        self, wanted: Sequence[tuple[int, tuple[int, ...], str]], config: SampleConfig, room: int
    ) -> tuple[list[list[Trace]], int]:
        """The same traces as `extend`, for a `config` that ends them after a step.

        They are given `room` tokens at first, so that the buffers, which take time to make and to cut, are as small as
        most steps allow. A prefix with a continuation that is longer is asked again with four times the room, and so on:
        its tokens depend on its name alone, so the new traces begin with the old ones.

        Returns:
          The traces, and the room to begin with next time: more where many prefixes were asked again.
        """
        found: list[list[Trace]] = [[] for _ in wanted]
        asked, first = list(range(len(wanted))), room
        while asked:
            room = min(room, config.max_new_tokens)
            short = dataclasses.replace(config, max_new_tokens=room)
            for i, traces in zip(asked, self.extend([wanted[i] for i in asked], short)):
                found[i] = traces
            if room == config.max_new_tokens:
                break
            asked = [i for i in asked if any(trace.finish_reason == "length" for trace in found[i])]
            room *= ROOM_GROWTH
            if len(asked) > len(wanted) * MANY:
                first = room
        return found, first


def first_tokens(context: Context, prompts: Sequence[tuple[int, ...]], count: int) -> np.ndarray:
    """[Q, count] the most probable first tokens of each prompt, the best first."""
    return np.argsort(-next_logits(context.model, prompts), axis=-1, kind="stable")[:, :count]


@functools.partial(jax.jit, static_argnames="graphdef")
def _last_logits(graphdef: Any, params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    logits = nnx.merge(graphdef, params)(ids, mask=mask)
    last = jnp.sum(mask, axis=1) - 1
    return jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]


def next_logits(model: Any, prompts: Sequence[Sequence[int]], rows: int = 32) -> np.ndarray:
    """[n, V] float64 logits of the token after each prompt; `rows` prompts on the device at once."""
    graphdef, params = nnx.split(model)
    width = -(-max(map(len, prompts), default=1) // 64) * 64
    found = [np.zeros((0, model.config.vocab_size))]
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        ids, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool)
        mask[:, 0] = True  # rows that only fill up the batch
        for row, prompt in enumerate(part):
            ids[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = True
        found.append(np.asarray(to_host(_last_logits(graphdef, params, ids, mask)), np.float64)[: len(part)])
    return np.concatenate(found)
