"""CoT-decoding: greedy continuations of the most probable first tokens, weighed by how sure their answers are."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from caspo_jax.evaluation.rescoring import token_statistics
from caspo_jax.evaluation.strategies.base import Answer, Context, Settings, elected_index
from caspo_jax.evaluation.strategies.prefixes import first_tokens
from caspo_jax.models import encode_prompt, eos_ids, token_bytes
from caspo_jax.sampling import first_stop, generate
from caspo_jax.sampling.run import special_stops
from caspo_jax.types import Question, Trace


def cot_decoding(context: Context, settings: Settings) -> list[Answer]:
    """For each of the k best first tokens one greedy output; the answer with the largest sum of mean(p1 - p2) over it.

    The mean is over the tokens that spell the answer's last occurrence (the whole output where it is not spelled).

    Source: Wang and Zhou 2024.
    """
    started = time.monotonic()
    prompts = [tuple(encode_prompt(context.tokenizer, q)) for q in context.questions]
    count = min(settings.first_tokens, context.model.config.vocab_size)
    best = first_tokens(context, prompts, count)
    spelled = token_bytes(context.tokenizer, context.model.config.vocab_size)
    stops = settings.sample.stop
    ends = set() if settings.sample.ignore_eos else set(eos_ids(context.model.config, context.tokenizer))
    ends.update(special_stops(context.tokenizer, spelled, stops))
    limit = settings.sample.max_new_tokens
    config = dataclasses.replace(settings.sample.greedy(), max_new_tokens=max(1, limit - 1))
    starts = [
        Question(id=f"{q.id}/first{i}", prompt_ids=(*prompt, int(token)))
        for q, prompt, tokens in zip(context.questions, prompts, best)
        for i, token in enumerate(tokens)
    ]
    found = generate(
        context.model,
        context.tokenizer,
        starts,
        config,
        context.key,
        batch_size=context.batch_size,
        progress=context.progress,
    )
    seconds = (time.monotonic() - started) / len(context.questions)
    outputs = []
    for start, rest in zip(starts, found, strict=True):
        prompt, first = (start.prompt_ids or ())[:-1], (start.prompt_ids or ())[-1]
        ids = (first,) if first in ends else (first, *rest.token_ids)[:limit]
        ids = ids[: first_stop(spelled, ids, stops)]  # which may begin in the first token
        data = b"".join(spelled[i] for i in ids)
        outputs.append(
            dataclasses.replace(rest, prompt_ids=prompt, token_ids=ids, text=data.decode("utf-8", "replace"))
        )
    stats = token_statistics(context.model, outputs, ("top1_logprob", "top2_logprob"))
    margins = [np.exp(np.asarray(s.top1_logprob)) - np.exp(np.asarray(s.top2_logprob)) for s in stats]
    answers = []
    for q, question in enumerate(context.questions):
        mine = slice(q * count, (q + 1) * count)
        texts = [context.extract(t.text) for t in outputs[mine]]
        sure = [
            float(m[answer_tokens(t, a, spelled)].mean())
            for t, a, m in zip(outputs[mine], texts, margins[mine])
        ]
        lengths = [len(t.token_ids) for t in outputs[mine]]
        for size in settings.vote_sizes(count):
            winner = elected_index(texts[:size], sure[:size], context.same)
            answer = None if winner is None else texts[winner]
            spent = sum(lengths[:size])
            took = seconds if size == count else None
            calls = 1 + max(lengths[:size])
            answers.append(
                Answer("cot_decoding", str(size), question.id, answer, None, spent, calls, seconds=took)
            )
    return answers


def answer_tokens(trace: Trace, answer: str | None, spelled: list[bytes]) -> np.ndarray:
    """[T] bool, tokens that hold a byte of the answer's last occurrence; all of them where it is not spelled."""
    pieces = [spelled[i] for i in trace.token_ids]
    ends = np.cumsum([len(p) for p in pieces])
    at = b"".join(pieces).rfind(answer.encode()) if answer else -1
    inside = (ends > at) & (ends - [len(p) for p in pieces] < at + len((answer or "").encode()))
    inside &= np.array([len(p) > 0 for p in pieces])
    return inside if at >= 0 and inside.any() else np.ones(len(pieces), bool)
