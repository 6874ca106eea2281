"""Answers on disk -> the table of strategies, the paired tests, and two runs held together. No model is needed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax import metrics
from caspo_jax.errors import UserError
from caspo_jax.evaluation.strategies.at_budget import matched_counts
from caspo_jax.evaluation.strategies.base import Answer, Settings
from caspo_jax.evaluation.strategies.pool import VOTES, Sample, at_counts
from caspo_jax.records import schema
from caspo_jax.store import load_records

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
Key = tuple[str, str, str]  # benchmark, strategy, size


def answer_record(answer: Answer, benchmark: str, golds: Mapping[str, str | None]) -> dict[str, Any]:
    """The JSON form of an answer; `golds`: `gold_hash` of each question's gold answer."""
    fields = dataclasses.asdict(answer)
    name = f"{benchmark}/{answer.strategy}/{answer.size}/{answer.question}/{answer.index}"
    return {
        "schema": schema("answer"),
        "id": name,
        "benchmark": benchmark,
        **fields,
        "gold_hash": golds.get(answer.question),
    }


def gold_hash(gold: str | None) -> str | None:
    """Tells gold answers apart, which may be long or not for everyone; None where a question has none."""
    return None if gold is None else hashlib.sha256(gold.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sample_record(sample: Sample, benchmark: str) -> dict[str, Any]:
    """The JSON form of one sample of a pool."""
    name = f"{benchmark}/{sample.question}/{sample.index}"
    return {
        "schema": schema("sample"),
        "id": name,
        "benchmark": benchmark,
        **dataclasses.asdict(sample),
    }


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """Answer records of a file, or of `answers.jsonl` in a folder.

    Raises:
      UserError: a record without a field that the table needs; names file:line.
    """
    path = Path(path)
    file = path / "answers.jsonl" if path.is_dir() else path
    if not file.exists() and (unfinished := file.with_name(f"{file.name}.partial")).exists():
        raise UserError(f"{unfinished}: that run has not ended; start it again and it goes on")

    def parse(record: dict[str, Any]) -> dict[str, Any]:
        missing = {"benchmark", "strategy", "size", "question", "correct", "tokens", "calls"} - set(record)
        if missing:
            raise UserError(f"an answer lacks {', '.join(sorted(missing))}")
        for field, wanted, valid in _VALID:
            if not valid(record[field]):
                raise UserError(f"`{field}` of an answer must be {wanted}, found {record[field]!r:.40}")
        return record

    found = load_records(file, parse)
    if not found:
        raise UserError(f"{file}: no answers in it")
    return found


def _is_cost(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < np.inf


_VALID: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    *(
        (field, "text", lambda v: isinstance(v, str))
        for field in ("benchmark", "strategy", "size", "question")
    ),
    ("correct", "true or false", lambda v: isinstance(v, bool)),
    *((field, "a number, 0 or more", _is_cost) for field in ("tokens", "calls")),
)


def by_key(records: Sequence[Mapping[str, Any]]) -> dict[Key, list[Mapping[str, Any]]]:
    """Records of each (benchmark, strategy, size), in the order of the file."""
    found: dict[Key, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault((record["benchmark"], record["strategy"], record["size"]), []).append(record)
    return found


def table(records: Sequence[Mapping[str, Any]], draws: int = 1000) -> list[dict[str, Any]]:
    """One row a strategy and size: accuracy (mean@k over k answers a question) with its 95 % interval, and cost.

    `accuracy` is the mean over questions of the share of their answers that are right; its interval resamples
    questions. `tokens`, `calls` are means over answers; `seconds` a question is that of the fastest group of questions,
    so that compilation does not count (None where the answers were not decoded by themselves).
    """
    rows = []
    for (benchmark, strategy, size), mine in by_key(records).items():
        right = np.array([r["correct"] for r in mine], np.float64)
        questions = np.array([r["question"] for r in mine], dtype=object)
        interval = metrics.bootstrap_interval(metrics.mean_statistic(right), questions, draws)
        seconds = [r["seconds"] for r in mine if r.get("seconds") is not None]
        count = len(set(questions.tolist()))
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
                "seconds": min(seconds) if seconds else None,
            }
        )
    return rows


def per_question(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Question -> share of its answers that are right."""
    totals: dict[str, list[float]] = {}
    for record in records:
        totals.setdefault(record["question"], []).append(float(record["correct"]))
    return {question: float(np.mean(values)) for question, values in totals.items()}


def paired_row(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], draws: int = 1000
) -> dict[str, Any]:
    """Difference of two strategies on the questions that both answered, its interval, and the sign-flip p-value."""
    first, second = per_question(a), per_question(b)
    common = [q for q in first if q in second]
    if not common:
        raise UserError("the two have no question in common")
    x, y = np.array([first[q] for q in common]), np.array([second[q] for q in common])
    interval = metrics.paired_difference(
        metrics.mean_statistic(x), metrics.mean_statistic(y), np.array(common, dtype=object), draws=draws
    )
    test = metrics.paired_permutation_test(x, y)
    return {
        "questions": len(common),
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p_value": test.p_value,
        "tokens": float(np.mean([r["tokens"] for r in a if r["question"] in second])),
        "baseline_tokens": float(np.mean([r["tokens"] for r in b if r["question"] in first])),
        "verdict": "above" if interval.low > 0 else "below" if interval.high < 0 else "equal",
    }


def matched_votes(
    records: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    settings: Settings,
    same: Callable[[str, str], bool],
    reference: str = "cat",
) -> list[dict[str, Any]]:
    """Answers of every recorded vote at the tokens of each size of `reference`: as many samples as its tokens buy.

    The number of samples is the same for all questions, up to one, so that no vote is told which questions are hard;
    where the reference spends more than the whole pool there is no match.
    """
    found: list[dict[str, Any]] = []
    keyed = by_key(records)
    for benchmark in dict.fromkeys(r["benchmark"] for r in samples):
        pool: dict[str, list[Sample]] = {}
        for record in samples:
            if record["benchmark"] == benchmark:
                fields = {f.name: record[f.name] for f in dataclasses.fields(Sample)}
                pool.setdefault(record["question"], []).append(Sample(**fields))
        lengths = np.array([[s.tokens for s in group] for group in pool.values()])
        names = [n for n in VOTES if any(k[:2] == (benchmark, n) for k in keyed)]
        for key, mine in keyed.items():
            if key[:2] != (benchmark, reference):
                continue
            budget = float(np.mean([r["tokens"] for r in mine]))
            golds = {r["question"]: r.get("gold_hash") for r in mine}
            if budget > lengths.sum(axis=1).mean():
                continue
            counts = dict(zip(pool, matched_counts(lengths, budget).tolist()))
            for name in names:
                answers = at_counts(name, f"= {reference} {key[2]}", pool, counts, settings, same)
                found += [answer_record(a, benchmark, golds) for a in answers]
    return found


def paired_table(
    records: Sequence[Mapping[str, Any]], reference: str = "cat", draws: int = 1000
) -> list[dict[str, Any]]:
    """Each size of the reference against every other strategy: at its tokens where a match was made, else at the size
    whose tokens are nearest; both costs stand in the row."""
    keyed = by_key(records)
    rows = []
    for (benchmark, strategy, size), mine in keyed.items():
        if strategy != reference:
            continue
        cost = np.mean([r["tokens"] for r in mine])
        others = dict.fromkeys(k[1] for k in keyed if k[0] == benchmark and k[1] != reference)
        for other in others:
            choices = {k[2]: v for k, v in keyed.items() if k[:2] == (benchmark, other)}
            matched = f"= {reference} {size}"
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
        row = paired_row(second[key], first[key], draws)
        before, after = per_question(first[key]), per_question(second[key])
        common = [q for q in after if q in before]
        rows.append(
            dict(zip(("benchmark", "strategy", "size"), key))
            | {
                "a": float(np.mean([before[q] for q in common])),
                "b": float(np.mean([after[q] for q in common])),
            }
            | row
        )
    return rows


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


COMPARED_COLUMNS = {
    "benchmark": "benchmark",
    "strategy": "strategy",
    "size": "size",
    "questions": "questions",
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
