"""Answers on disk -> the table of strategies and the paired tests. No model is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.evaluation.answer_records import answer_record, by_key, sample_from_record
from caspo_jax.evaluation.strategies.at_budget import matched_counts
from caspo_jax.evaluation.strategies.base import Settings
from caspo_jax.evaluation.strategies.pool import VOTES, Sample, at_counts

COLUMNS = {
    "benchmark": "benchmark",
    "strategy": "strategy",
    "size": "size",
    "questions": "questions",
    "answers": "answers each",
    "accuracy": "accuracy",
    "low": "low",
    "high": "high",
    "tokens": "tokens",
    "calls": "calls",
    "seconds": "seconds",
}
PAIRED_COLUMNS = {
    "benchmark": "benchmark",
    "strategy": "strategy",
    "size": "size",
    "baseline": "against",
    "baseline_size": "size ",
    "difference": "difference",
    "low": "low",
    "high": "high",
    "p_value": "p",
    "tokens": "tokens",
    "baseline_tokens": "tokens ",
    "verdict": "verdict",
}


def table(records: Sequence[Mapping[str, Any]], draws: int = 1000) -> list[dict[str, Any]]:
    """One row a strategy and size: accuracy (mean@k over k answers a question) with its 95 % interval, and cost.

    `accuracy` is the mean over questions of the share of their answers that are right; its interval resamples
    questions. `tokens`, `calls` are means over answers; `seconds` a question: `seconds_without_compilation`.
    """
    rows = []
    for (benchmark, strategy, size), mine in by_key(records).items():
        shares = per_question(mine)  # a question with more answers than the others weighs no more
        interval = metrics.bootstrap_interval(
            metrics.mean_statistic(list(shares.values())), list(shares), draws
        )
        count = len(shares)
        rows.append(
            {
                "benchmark": benchmark,
                "strategy": strategy,
                "size": size,
                "questions": count,
                "answers": len(mine) // count,
                "accuracy": interval.value,
                "low": interval.low,
                "high": interval.high,
                "tokens": float(np.mean([r["tokens"] for r in mine])),
                "calls": float(np.mean([r["calls"] for r in mine])),
                "scored": float(np.mean([r.get("scored", 0) for r in mine])),
                "seconds": seconds_without_compilation(mine),
            }
        )
    return rows


def seconds_without_compilation(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds a question of the fastest group of questions: later groups find the programs that the first one compiles.

    None with fewer than two groups, whose one time is mostly compilation, and where nothing was decoded by itself. All
    answers of a group carry its time, so as many groups were timed as there are times.
    """
    groups = {r["seconds"] for r in records if r.get("seconds") is not None}
    return min(groups) if len(groups) > 1 else None


def per_question(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Question -> share of its answers that are right."""
    totals: dict[str, list[float]] = {}
    for record in records:
        totals.setdefault(record["question"], []).append(float(record["correct"]))
    return {question: float(np.mean(values)) for question, values in totals.items()}


def paired_row(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], draws: int = 1000
) -> dict[str, Any]:
    """Difference of two strategies on the questions that both answered, its interval, and the sign-flip p-value.

    The verdict is `above` or `below` where the interval leaves 0 out and p is at most .05: of few questions the bootstrap's
    interval is too short, and of five that all go one way p is 1/16. Else, and without an interval (a single question), it is
    `equal`: the two cannot be told apart, which does not prove them equal, and tables for people say `not told apart`.
    """
    first, second = per_question(a), per_question(b)
    common = [q for q in first if q in second]
    if not common:
        raise UserError("the two have no question in common")
    x, y = np.array([first[q] for q in common]), np.array([second[q] for q in common])
    interval = metrics.paired_difference(
        metrics.mean_statistic(x), metrics.mean_statistic(y), np.array(common, dtype=object), draws=draws
    )
    test = metrics.paired_permutation_test(x, y)
    side = "above" if interval.low > 0 else "below" if interval.high < 0 else "equal"
    return {
        "questions": len(common),
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p_value": test.p_value,
        "tokens": float(np.mean([r["tokens"] for r in a if r["question"] in second])),
        "baseline_tokens": float(np.mean([r["tokens"] for r in b if r["question"] in first])),
        "verdict": side if test.p_value <= 0.05 else "equal",
    }


def matched_votes(
    records: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    settings: Settings,
    same: Callable[[str, str], bool],
) -> list[dict[str, Any]]:
    """Answers of every recorded vote at the tokens of each size of CaT: as many samples as its tokens buy.

    The number of samples is the same for all questions, up to one, so that no vote is told which questions are hard;
    where CaT spends more than the whole pool there is no match.
    """
    found: list[dict[str, Any]] = []
    keyed = by_key(records)
    for benchmark in dict.fromkeys(r["benchmark"] for r in samples):
        pool: dict[str, list[Sample]] = {}
        for record in samples:
            if record["benchmark"] == benchmark:
                pool.setdefault(record["question"], []).append(sample_from_record(record))
        lengths = np.array([[s.tokens for s in group] for group in pool.values()])
        names = [n for n in VOTES if any(k[:2] == (benchmark, n) for k in keyed)]
        for key, mine in keyed.items():
            if key[:2] != (benchmark, "cat"):
                continue
            budget = float(np.mean([r["tokens"] for r in mine]))
            golds = {r["question"]: r.get("gold_hash") for r in mine}
            if budget > lengths.sum(axis=1).mean():
                continue
            counts = dict(zip(pool, matched_counts(lengths, budget).tolist()))
            for name in names:
                answers = at_counts(name, f"= cat {key[2]}", pool, counts, settings, same)
                found += [answer_record(a, benchmark, golds) for a in answers]
    return found


def paired_table(records: Sequence[Mapping[str, Any]], draws: int = 1000) -> list[dict[str, Any]]:
    """Each size of CaT against every other strategy: at its tokens where a match was made, else at the size
    whose tokens are nearest; both costs stand in the row."""
    keyed = by_key(records)
    rows = []
    for (benchmark, strategy, size), mine in keyed.items():
        if strategy != "cat":
            continue
        cost = np.mean([r["tokens"] for r in mine])
        others = dict.fromkeys(k[1] for k in keyed if k[0] == benchmark and k[1] != "cat")
        for other in others:
            choices = {k[2]: v for k, v in keyed.items() if k[:2] == (benchmark, other)}
            matched = f"= cat {size}"
            if matched not in choices:
                choices = {s: v for s, v in choices.items() if not s.startswith("=")}
                matched = min(choices, key=lambda s: abs(np.mean([r["tokens"] for r in choices[s]]) - cost))
            rows.append(
                {
                    "benchmark": benchmark,
                    "strategy": strategy,
                    "size": size,
                    "baseline": other,
                    "baseline_size": matched,
                }
                | paired_row(mine, choices[matched], draws)
            )
    return rows
