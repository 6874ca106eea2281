"""Continuations of prefixes at one compiled shape, for strategies that work step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caspo_jax.confidence import path_confidence
from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies.base import Context
from caspo_jax.models import encode_prompt, token_bytes
from caspo_jax.padding import groups, padded_rows
from caspo_jax.sampling import SampleConfig, first_stop, generate
from caspo_jax.sharding import batch_ways, mesh_of, to_host
from caspo_jax.steps import segment_trace
from caspo_jax.types import FinishReason, Question, Step, Trace

FIRST_ROOM = 64  # tokens that the next step is given at first; most steps are shorter
ROOM_GROWTH = 4  # where it was too little
MANY = 1 / 8  # share of prefixes for which it was, to begin with more the next time


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Continues prefixes of a fixed number of questions; calls have few shapes, so few programs serve all."""

    context: Context
    prompts: tuple[tuple[int, ...], ...]  # [Q]
    places: int  # most prefixes of a call
    columns: int  # tokens of the longest prefix
    most: int  # new tokens of an output, prefix and continuation together

    @functools.cached_property
    def spelled(self) -> list[bytes]:
        """The bytes of each token."""
        return token_bytes(self.context.tokenizer, self.context.model.config.vocab_size)

    @classmethod
    def of(cls, context: Context, config: SampleConfig, places: int) -> Prefixes:
        """For the context's questions; a prefix is at most a prompt and `max_new_tokens`."""
        prompts = tuple(tuple(encode_prompt(context.tokenizer, q)) for q in context.questions)
        longest = max(map(len, prompts))
        columns = longest + config.max_new_tokens
        if columns > context.model.config.context:
            raise UserError(
                f"max_new_tokens={config.max_new_tokens} leaves no room after prompts of {longest} tokens"
            )
        return cls(context, prompts, places, columns, config.max_new_tokens)

    def extend(
        self, wanted: Sequence[tuple[int, tuple[int, ...], str]], config: SampleConfig
    ) -> list[list[Trace]]:
        """`config.num_samples` continuations of each (question index, tokens after the prompt, name that seeds it).

        A prefix that is as long as an output may be gets none. Where the context does not hold `config.max_new_tokens`
        more, a continuation has those that are left to its output.
        """
        context, count = self.context, config.num_samples
        questions, kept, limits = [], [], []
        for i, (question, ids, name) in enumerate(wanted):
            if len(ids) < self.most:
                kept.append(i)
                limits.append(min(config.max_new_tokens, self.most - len(ids)))
                whole = (*self.prompts[question], *ids)
                questions.append(Question(id=f"{context.questions[question].id}/{name}", prompt_ids=whole))
        if not kept:
            return [[] for _ in wanted]
        longest = max(len(question.prompt_ids or ()) for question in questions)
        tight = longest + config.max_new_tokens > context.model.config.context
        flat = generate(
            context.model,
            context.tokenizer,
            questions,
            config,
            context.key,
            batch_size=context.batch_size,
            step_confidence="mean_logprob",
            pad_to=(self.places, self.columns),
            limits=limits if tight else None,
            progress=context.progress,
        )
        found: list[list[Trace]] = [[] for _ in wanted]
        for place, i in enumerate(kept):
            traces = flat[place * count : (place + 1) * count]
            found[i] = [self._ended(wanted[i][1], trace, limits[place], config) for trace in traces]
        return found

    def _ended(self, before: tuple[int, ...], trace: Trace, limit: int, config: SampleConfig) -> Trace:
        """The trace as far as its output goes: to a stop string that begins in the prefix, or to `limit` tokens.

        The sampler knows nothing of the prefix. A delimiter among the stop strings only ends steps: one that the prefix
        begins is a run.
        """
        stops = [stop for stop in config.stop if stop != config.step_delimiter]
        end = None
        if stops and before:
            end = first_stop(self.spelled, [*before, *trace.token_ids], stops, len(before))
        if end is not None and end - len(before) <= limit:
            return cut(trace, end - len(before), self.spelled, config.step_delimiter)
        if len(trace.token_ids) > limit:
            return cut(trace, limit, self.spelled, config.step_delimiter, "length")
        return trace

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
            short_of = [i for i in asked if len(wanted[i][1]) + room < self.most]
            asked = [i for i in short_of if any(trace.finish_reason == "length" for trace in found[i])]
            room *= ROOM_GROWTH
            if len(asked) > len(wanted) * MANY:
                first = room
        return found, first


def steps_of(
    token_ids: Sequence[int], logprobs: Sequence[float], spelled: Sequence[bytes], delimiter: str
) -> tuple[Step, ...]:
    """The steps of an output with exp(mean log-prob) as their confidence.

    Of the whole output, never of a continuation by itself: newlines that it begins with are still the delimiter of the
    step before it, and count in no confidence.
    """
    trace = Trace("", None, None, None, (), tuple(token_ids), "", "stop", logprob=tuple(logprobs))
    return segment_trace(trace, spelled, delimiter=delimiter, confidence="mean_logprob").steps


def sureness(steps: Sequence[Step]) -> float:
    """Geometric mean of the steps' confidences; 0 for an output without a step."""
    confidences = [step.confidence for step in steps if step.confidence is not None]
    return float(path_confidence("geometric", np.array(confidences))) if confidences else 0.0


def cut(
    trace: Trace, end: int, spelled: Sequence[bytes], delimiter: str, reason: FinishReason = "stop"
) -> Trace:
    """The first `end` tokens of a trace, which end it for this `reason`; its step confidences are exp(mean log-prob)."""
    shorter = dataclasses.replace(
        trace,
        token_ids=trace.token_ids[:end],
        finish_reason=reason,
        logprob=(trace.logprob or ())[:end],
        entropy=None if trace.entropy is None else trace.entropy[:end],
    )
    return segment_trace(shorter, spelled, delimiter=delimiter, confidence="mean_logprob")


def first_tokens(context: Context, prompts: Sequence[tuple[int, ...]], count: int) -> np.ndarray:
    """[Q, count] the most probable first tokens of each prompt, the best first."""
    return next_logits(
        context.model, prompts, lambda logits: np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    )


@functools.partial(jax.jit, static_argnames="graphdef")
def _last_logits(graphdef: Any, params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, params)
    last = jnp.sum(mask, axis=1) - 1
    # Of the last states alone: logits of all would take gigabytes.
    hidden = jnp.take_along_axis(model.hidden_states(ids, mask=mask), last[:, None, None], axis=1)
    return model.unembed(hidden)[:, 0]


def next_logits(
    model: Any, prompts: Sequence[Sequence[int]], read: Callable[[np.ndarray], np.ndarray], rows: int = 32
) -> np.ndarray:
    """What `read` keeps of the logits of the token after each prompt.

    Args:
      model: a Decoder.
      prompts: n of them.
      read: logits [r, V] float64 -> [r, ...]; those of all prompts would take a megabyte each.
      rows: prompts on the device at once, of long ones fewer.

    Returns:
      [n, ...].
    """
    graphdef, params = nnx.split(model)
    nothing = read(np.zeros((0, model.config.vocab_size)))
    found = np.zeros((len(prompts), *nothing.shape[1:]), nothing.dtype)
    for columns, most, part in groups(list(map(len, prompts)), 64, rows, batch_ways(mesh_of(model))):
        ids, mask = padded_rows([prompts[i] for i in part], columns, most)
        logits = np.asarray(to_host(_last_logits(graphdef, params, ids, mask)), np.float64)
        found[part] = read(logits[: len(part)])
    return found
