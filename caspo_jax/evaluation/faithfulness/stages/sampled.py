"""The stage of prefix-conditioned sampling: continuations first, what contradicts second."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from caspo_jax.evaluation.faithfulness.contradiction import ContradictionJudge
from caspo_jax.evaluation.faithfulness.prefix import (
    Plan,
    PrefixConfig,
    State,
    continue_prefixes,
    judge_prefixes,
    plan_prefixes,
    state_id,
)
from caspo_jax.evaluation.faithfulness.stages.stage import Stage, finish, read_stage

# Continuations between two writes, and judged together, at most: fixed, so that a restart decodes the same ones together.
_ROWS = 2048


def prefix_stage(
    stage: Stage,
    model: Any,
    tokenizer: Any,
    judge: ContradictionJudge,
    config: PrefixConfig,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    **settings: Any,
) -> None:
    """Prefix-conditioned sampling in two files.

    `continuations.jsonl`, {"id", "texts": [k]}: what was sampled from each prefix, so that another judge needs no new
    samples. `prefix.jsonl`: for each trace `steps`, `confidence`, `contradicting`, `unparsed` as parallel lists, and the
    ids of the `prefixes`.
    """
    sampling = dataclasses.asdict(config) | {"seed": seed, "batch_size": batch_size}
    plan = plan_prefixes(stage.subjects, config, model.config.context, seed)
    states = plan.distinct()
    said = _continuations(stage, model, tokenizer, states, config, sampling)
    written = stage.open("prefix", judge=judge.name, **sampling, **settings)
    if written.complete:
        return
    size = max(1, _ROWS // (config.samples * config.max_steps))
    for start in range(0, len(stage.subjects), size):
        group = slice(start, start + size)
        subjects, part = stage.subjects[group], Plan(plan.steps[group], plan.prefixes[group])
        if {s.id for s in subjects} <= written.done:
            continue
        names = {state: state_id(state) for prefixes in part.prefixes for state in prefixes}
        texts = {state: said[name] for state, name in names.items()}
        found = judge_prefixes(subjects, part, texts, judge, config)
        written.append(
            [
                {"id": subject.id, **_lists(dataclasses.asdict(f)), "prefixes": [names[s] for s in prefixes]}
                for subject, f, prefixes in zip(subjects, found, part.prefixes, strict=True)
            ]
        )
    finish(written, len(stage.subjects))


def _continuations(
    stage: Stage,
    model: Any,
    tokenizer: Any,
    states: Sequence[State],
    config: PrefixConfig,
    sampling: Mapping[str, Any],
) -> dict[str, list[str]]:
    written = stage.open("continuations", **{k: v for k, v in sampling.items() if k != "unparsed"})
    if not written.complete:
        key = jax.random.key(int(sampling["seed"]))
        size = max(1, _ROWS // config.samples)
        for start in range(0, len(states), size):
            part = states[start : start + size]
            if not {state_id(s) for s in part} <= written.done:
                found = continue_prefixes(model, tokenizer, part, config, key, sampling["batch_size"])
                written.append([{"id": state_id(s), "texts": texts} for s, texts in zip(part, found)])
            stage.report(len(stage.subjects) * (start + len(part)) // len(states))
        finish(written, len(stage.subjects))
    return {name: record["texts"] for name, record in read_stage(written.path).items()}


def _lists(record: dict[str, Any]) -> dict[str, Any]:
    return {k: [list(v) if isinstance(v, tuple) else v for v in value] for k, value in record.items()}
