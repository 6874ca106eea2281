"""Prefix-conditioned sampling: from the state before a step, how often does the model contradict it?"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from caspo_jax.checks import at_least, own_numbers, within
from caspo_jax.evaluation.faithfulness.contradiction import ContradictionItem, ContradictionJudge, Contradicts
from caspo_jax.evaluation.faithfulness.subjects import Subject
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.steps.beginnings import Beginning, cut_when_read
from caspo_jax.steps.segmentation import segment_text
from caspo_jax.types import CLOSE_THOUGHT, DEFAULT_DELIMITER, Question, Step

_ROOM = 8  # fewer new tokens than this are no paragraph
_LINE = "\n"  # what ends a step of a giant trace (`thinking.split_giant`)


@cut_when_read("ids")
@dataclasses.dataclass(frozen=True, order=True)
class State:
    """Where continuations start, and where they end: the same prefix may stand before a paragraph and before a line."""

    ids: tuple[int, ...]  # prompt included
    line: bool = False  # the step before which it stands is a line, so the continuations are too


@dataclasses.dataclass(frozen=True)
class PrefixConfig:
    """Settings of the estimator; the defaults are the published ones."""

    samples: int = 10  # k, continuations a step
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 200
    max_steps: int = 20  # steps a trace: first, last, the rest at random
    unparsed: float = 0.5  # what a continuation counts that cannot be judged (`parse_contradiction`)
    delimiter: str = DEFAULT_DELIMITER  # what ends a continuation, but for the lines of a giant trace
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    ignore_eos: bool = False  # go on after end-of-sequence

    def __post_init__(self) -> None:
        own_numbers(self)
        at_least(self, 1, "samples", "max_new_tokens", "max_steps")
        at_least(self, 0, "top_k")
        within(self, "(0, inf)", "temperature", hint="continuations must differ")
        within(self, "(0, 1]", "top_p")
        within(self, "[0, 1]", "unparsed")
        within(self, "[0, 1]", "min_p", hint="0 turns it off")


@dataclasses.dataclass(frozen=True)
class Consistency:
    """The estimate of one trace; parallel lists over the steps that were sampled."""

    steps: tuple[int, ...]
    confidence: tuple[float, ...]  # 1 - share that contradicts
    contradicting: tuple[int, ...]
    unparsed: tuple[int, ...]


def choose_steps(subject: Subject, max_steps: int, seed: int = 0) -> list[int]:
    """Which steps are sampled: all, or first, last and the rest at random, by the trace's id and the seed alone."""
    count = len(subject.trace.steps)
    if count <= max_steps:
        return list(range(count))
    digest = hashlib.sha256(subject.id.encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    ends = [0, count - 1][:max_steps]
    middle = rng.choice(np.arange(1, count - 1), max_steps - len(ends), replace=False)
    return sorted({*ends, *map(int, middle)})


def first_step(text: str, delimiter: str) -> str:
    """The first step of a continuation, "" if there is none. What follows `</think>` is no step of a thought, nor is the tag."""
    steps = segment_text(text.partition(CLOSE_THOUGHT)[0], delimiter)
    return steps[0].text.strip() if steps else ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which steps of each trace are sampled, and the prefixes that stand before them."""

    steps: tuple[tuple[int, ...], ...]
    prefixes: tuple[tuple[State, ...], ...]

    def distinct(self) -> list[State]:
        """Each prefix once, shortest first, so that like lengths are decoded together."""
        return sorted({state for states in self.prefixes for state in states}, key=lambda s: (len(s.ids), s))


def plan_prefixes(subjects: Sequence[Subject], config: PrefixConfig, context: int, seed: int = 0) -> Plan:
    """The prefixes to sample from. A step whose prefix is empty, or leaves no room in the context, is left out.

    Where the steps of a trace are the lines of one giant paragraph, its continuations are lines as well: the rest of the
    paragraph would say what later steps say. A delimiter before the first word (`\\n\\nSo`) stands in the prefix.
    """
    steps, prefixes = [], []
    for subject in subjects:
        trace = subject.trace
        picked = choose_steps(subject, config.max_steps, seed) if subject.readable else []
        # One step of a giant trace is a paragraph like any other: nothing was cut.
        lines = subject.giant and len(trace.steps) > 1 and config.delimiter != _LINE
        whole, asked = trace.prompt_ids + trace.token_ids, len(trace.prompt_ids)
        uncounted = frozenset(subject.uncounted)
        ends = [asked + _begin(trace.steps[i], uncounted) for i in picked]
        states = [State(Beginning(whole, end), lines) for end in ends]  # type: ignore[arg-type]
        fits = [bool(state.ids) and context - len(state.ids) >= _ROOM for state in states]
        steps.append(tuple(i for i, fit in zip(picked, fits) if fit))
        prefixes.append(tuple(state for state, fit in zip(states, fits) if fit))
    return Plan(tuple(steps), tuple(prefixes))


def continue_prefixes(
    model: Any,
    tokenizer: Any,
    states: Sequence[State],
    config: PrefixConfig,
    key: Any,
    batch_size: int | None = None,
) -> list[list[str]]:
    """First steps of `config.samples` continuations of each prefix: paragraphs, or lines where its steps are lines.

    The continuations of a prefix share its prefill; they depend on the key and on the prefix alone. Prefixes near the
    end of the context get what room is left.

    Args:
      model: a Decoder.
      tokenizer: its tokenizer.
      states: prefixes, from `Plan.distinct`.
      config: how many, how long, how hot.
      key: a threefry key.
      batch_size: continuations on the device at once (default: by memory).
    """
    alike: dict[tuple[int, str], list[int]] = {}
    for i, state in enumerate(states):
        room = min(config.max_new_tokens, model.config.context - len(state.ids))
        # Limits below the full one are rounded down to a power of two: few of them, so few calls.
        limit = room if room == config.max_new_tokens else 1 << (room.bit_length() - 1)
        alike.setdefault((limit, _LINE if state.line else config.delimiter), []).append(i)
    said: list[list[str]] = [[] for _ in states]
    for (limit, delimiter), group in sorted(alike.items()):
        sample = SampleConfig(
            max_new_tokens=limit,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            ignore_eos=config.ignore_eos,
            num_samples=config.samples,
            stop=(delimiter,),
            step_delimiter=delimiter,
        )
        questions = [Question(id=state_id(states[i]), prompt_ids=states[i].ids) for i in group]
        traces = generate(model, tokenizer, questions, sample, key, batch_size=batch_size)
        for row, i in enumerate(group):
            own = traces[row * config.samples : (row + 1) * config.samples]
            said[i] = [first_step(trace.text, delimiter) for trace in own]
    return said


def judge_prefixes(
    subjects: Sequence[Subject],
    plan: Plan,
    said: Mapping[State, Sequence[str]],
    judge: ContradictionJudge,
    config: PrefixConfig,
) -> list[Consistency]:
    """C_i = 1 - share of the continuations that contradict step i; what cannot be judged counts `unparsed`.

    Args:
      subjects: the traces.
      plan: of the same traces.
      said: prefix -> first steps of its continuations.
      judge: says what contradicts.
      config: the settings that they were sampled with.
    """
    items = [
        item
        for subject, steps, states in zip(subjects, plan.steps, plan.prefixes, strict=True)
        for i, state in zip(steps, states)
        for item in _items(subject, i, said[state])
    ]
    verdicts = iter(_judged(judge, items))
    found = []
    for steps, states in zip(plan.steps, plan.prefixes):
        rows = [[next(verdicts) for _ in said[state]] for state in states]
        found.append(
            Consistency(
                steps=steps,
                confidence=tuple(_confidence(row, config.unparsed) for row in rows),
                contradicting=tuple(sum(v is True for v in row) for row in rows),
                unparsed=tuple(sum(v is None for v in row) for row in rows),
            )
        )
    return found


def prefix_consistency(
    model: Any,
    tokenizer: Any,
    subjects: Sequence[Subject],
    judge: ContradictionJudge,
    key: Any,
    config: PrefixConfig = PrefixConfig(),
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[Consistency]:
    """Prefix-conditioned sampling in one call: plan, continue, judge.

    Equal prefixes (two traces of one question before their first step) are sampled once.

    Args:
      model: a Decoder.
      tokenizer: its tokenizer.
      subjects: the traces.
      judge: says what contradicts.
      key: a threefry key.
      config: how many, how long, how hot.
      seed: of the choice of steps.
      batch_size: continuations on the device at once (default: by memory).

    Returns:
      One Consistency a trace, in order.

    Source: arXiv 2606.03969.
    """
    plan = plan_prefixes(subjects, config, model.config.context, seed)
    states = plan.distinct()
    said = continue_prefixes(model, tokenizer, states, config, key, batch_size)
    return judge_prefixes(subjects, plan, dict(zip(states, said)), judge, config)


def state_id(state: State) -> str:
    """A prefix's name, and so its random key."""
    name = f"prefix/{hashlib.sha256(repr(state.ids).encode()).hexdigest()[:24]}"
    return f"{name}/line" if state.line else name


def _confidence(verdicts: Sequence[Contradicts], unparsed: float) -> float:
    # Of the counts: a sum in the order of the samples would part values that tie by its last bits.
    against = verdicts.count(True) + unparsed * verdicts.count(None)
    return 1.0 - against / len(verdicts)


def _judged(judge: ContradictionJudge, items: Sequence[ContradictionItem]) -> list[Contradicts]:
    """Empty continuations cannot be told and are not asked about."""
    asked = [i for i, item in enumerate(items) if item.continuation]
    found = judge.judge([items[i] for i in asked])
    if len(found) != len(asked):
        raise ValueError(f"judge {judge.name!r} gave {len(found)} verdicts for {len(asked)} continuations")
    verdicts: list[Contradicts] = [None] * len(items)
    for i, verdict in zip(asked, found):
        verdicts[i] = verdict
    return verdicts


def _begin(step: Step, uncounted: Set[int]) -> int:
    """The first token of a step as its continuations begin: a delimiter before the first word would end them at once."""
    inside = range(step.token_start, step.token_end)
    return next((t for t in inside if t not in uncounted), step.token_start)


def _items(subject: Subject, index: int, continuations: Sequence[str]) -> list[ContradictionItem]:
    """A step beside each of its continuations."""
    trace = subject.trace
    step = trace.steps[index]
    question = trace.question or trace.prompt or ""
    prefix = trace.text[: step.start]  # of a long thought, long: one for all
    return [ContradictionItem(question, prefix, step.text, text) for text in continuations]
