"""Answers on disk -> the table of strategies, the paired tests, and two runs compared. No model is needed."""

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
COMPARED_COLUMNS = {
    "benchmark": "benchmark",
    "strategy": "strategy",
    "size": "size",
    "questions": "questions",
    "only_a": "only A",
    "only_b": "only B",
    "a": "A",
    "b": "B",
    "difference": "B - A",
    "low": "low",
    "high": "high",
    "p_value": "p",
    "baseline_tokens": "tokens A",
    "tokens": "tokens B",
    "verdict": "B is",
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


def compare(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], draws: int = 1000
) -> list[dict[str, Any]]:
    """B minus A for every (benchmark, strategy, size) that both runs have, on the questions that both answered.

    `only_a` and `only_b` count the questions that the other run does not have, which are left out; so is a strategy and
    size without a question in common (see `left_out`).

    Raises:
      UserError: the runs have nothing in common, or one question with different gold answers.
    """
    first, second = by_key(a), by_key(b)
    shared = [key for key in second if key in first]
    if not shared:
        raise UserError(
            "the two runs share no benchmark, strategy and size: evaluate both with the same flags"
        )
    rows = []
    for key in shared:
        _check_golds(key[0], first[key], second[key])
        before, after = per_question(first[key]), per_question(second[key])
        common = [q for q in after if q in before]
        if not common:
            continue
        row = paired_row(second[key], first[key], draws)
        rows.append(
            dict(zip(("benchmark", "strategy", "size"), key))
            | {
                "only_a": len(before) - len(common),
                "only_b": len(after) - len(common),
                "a": float(np.mean([before[q] for q in common])),
                "b": float(np.mean([after[q] for q in common])),
            }
            | row
        )
    if not rows:
        raise UserError("the two runs have no question in common: evaluate both on the same questions")
    return rows


def left_out(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `compare` leaves out because the other run does not have those questions, in a sentence each; [] for nothing.

    Of a benchmark that one run lacks, all; of a strategy and size that one run lacks, nothing is said.
    """
    in_a, in_b = _questions_of(a), _questions_of(b)
    said = [
        f"{benchmark}: all {len(questions)} questions of {name} are left out, the other run does not have this benchmark"
        for name, mine, other in (("A", in_a, in_b), ("B", in_b, in_a))
        for benchmark, questions in mine.items()
        if benchmark not in other
    ]
    first, second = by_key(a), by_key(b)
    alike: dict[tuple[str, int, int, int, int], list[str]] = {}  # counts -> the strategies that have them
    for key in second:
        if key in first:
            before, after = ({r["question"] for r in run[key]} for run in (first, second))
            counts = (len(before - after), len(before), len(after - before), len(after))
            alike.setdefault((key[0], *counts), []).append(f"{key[1]} {key[2]}")
    for (benchmark, only_a, all_a, only_b, all_b), strategies in alike.items():
        if only_a or only_b:
            among = [names for found, names in alike.items() if found[0] == benchmark]
            where = benchmark if len(among) == 1 else f"{benchmark} ({', '.join(strategies)})"
            said.append(
                f"{where}: {only_a} of the {all_a} questions of A and {only_b} of the {all_b} of B are left out, "
                "the other run does not have them"
            )
    return said


def _questions_of(records: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Benchmark -> its questions."""
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record["benchmark"], set()).add(record["question"])
    return found


def _check_golds(
    benchmark: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> None:
    before, after = ({r["question"]: r.get("gold_hash") for r in run} for run in (first, second))
    for question, gold in after.items():
        if None not in (gold, before.get(question)) and gold != before[question]:
            raise UserError(
                f"{benchmark}: question {question!r} has another gold answer in the second run than in the first: "
                "these are not the same questions"
            )
