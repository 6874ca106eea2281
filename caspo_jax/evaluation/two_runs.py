"""Two runs of `evaluate` compared on their stored answers. No model is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from caspo_jax.errors import UserError
from caspo_jax.evaluation.answer_records import Key, by_key
from caspo_jax.evaluation.results import paired_row, per_question

Groups = Mapping[Key, Sequence[Mapping[str, Any]]]  # as `by_key` makes them
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


class Comparison(NamedTuple):
    """Two runs compared."""

    rows: list[dict[str, Any]]  # B minus A for every (benchmark, strategy, size) that both have
    left_out: list[str]  # what is not compared because the other run does not have it, in a sentence each


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], draws: int = 1000) -> Comparison:
    """B minus A for every (benchmark, strategy, size) that both runs have, on the questions that both answered.

    `only_a` and `only_b` of a row count the questions that the other run does not have, which are left out; so are
    benchmarks, strategies and sizes that one run lacks, and a strategy and size without a question in common.

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
    lacking = [*_only_in("A", first, second), *_only_in("B", second, first)]
    return Comparison(rows, [*lacking, *_questions_left_out(first, second)])


def _only_in(name: str, mine: Groups, other: Groups) -> list[str]:
    """The benchmarks that the other run lacks, and the strategies and sizes of those that it has."""
    said = []
    benchmarks, strategies = {key[0] for key in other}, {key[:2] for key in other}
    for benchmark in dict.fromkeys(key[0] for key in mine):
        alone = [key for key in mine if key[0] == benchmark and key not in other]
        if benchmark not in benchmarks:
            questions = {record["question"] for key in alone for record in mine[key]}
            said.append(
                f"{benchmark}: all {len(questions)} questions of {name} are left out, the other run does not have this "
                "benchmark"
            )
        elif alone:
            # A strategy that is missing as a whole is named once, without its sizes.
            names = dict.fromkeys(f"{key[1]} {key[2]}" if key[:2] in strategies else key[1] for key in alone)
            verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
            said.append(
                f"{benchmark}: {', '.join(names)} of {name} {verb} left out, the other run does not have {them}"
            )
    return said


def _questions_left_out(first: Groups, second: Groups) -> list[str]:
    """The questions that one run lacks of what both have, those of strategies that lack as many in one sentence."""
    said = []
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
