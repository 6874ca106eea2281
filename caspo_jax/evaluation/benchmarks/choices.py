"""Multiple choice and yes/no: MMLU-Pro (STEM), RACE, StrategyQA."""

from __future__ import annotations

import functools
import string
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.base import Benchmark, Row, identity, text, texts
from caspo_jax.evaluation.benchmarks.loading import Source
from caspo_jax.evaluation.execution import Sandbox
from caspo_jax.steps.answers import AnswerKind, equivalent, extract_answer
from caspo_jax.types import Question

STEM = frozenset({"math", "physics", "chemistry", "biology", "computer science", "engineering"})

_LETTER = (
    "Please reason step by step, and put the letter of your final answer, and nothing else, within \\boxed{}."
)
_YES_NO = 'Please reason step by step, and put your final answer, "yes" or "no", within \\boxed{}.'


def _ask_letter(question: Question) -> str:
    passage = question.extra.get("passage")
    options = zip(string.ascii_uppercase, question.extra["options"])
    parts = [passage] if passage else []
    parts += [question.question, "\n".join(f"({letter}) {option}" for letter, option in options), _LETTER]
    return "\n\n".join(parts)


def _ask_yes_no(question: Question) -> str:
    return f"{question.question}\n{_YES_NO}"


def _judge(kind: AnswerKind, answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    return None if question.gold is None else equivalent(question.gold, answer, kind)


def _letter_of(row: Row, options: list[str]) -> str:
    letter = text(row, "answer").strip().upper()
    if letter not in tuple(string.ascii_uppercase[: len(options)]):
        raise UserError(f"field `answer` is {letter!r}, no letter of {len(options)} options")
    return letter


def _read_mmlu_pro(row: Row, number: str) -> Question | None:
    if text(row, "category").lower() not in STEM:
        return None
    options = texts(row, "options")
    return Question(
        identity(row, "mmlu_pro_stem", number, "question_id"),
        question=text(row, "question"),
        gold=_letter_of(row, options),
        extra={"options": options, "category": row["category"]},
    )


def _read_race(row: Row, number: str) -> Question:
    options = texts(row, "options")
    return Question(
        f"race/{number}",  # `example_id` names the passage, which several questions share
        question=text(row, "question"),
        gold=_letter_of(row, options),
        extra={"options": options, "passage": text(row, "article"), "example_id": row.get("example_id")},
    )


def _read_strategyqa(row: Row, number: str) -> Question:
    answer = row.get("answer")
    if not isinstance(answer, bool):
        raise UserError(f"field `answer` must be true or false, found {answer!r}")
    return Question(
        identity(row, "strategyqa", number, "qid"),
        question=text(row, "question"),
        gold="yes" if answer else "no",
        extra={"facts": row.get("facts")},
    )


def _benchmark(name: str, kind: AnswerKind, **options: Any) -> Benchmark:
    return Benchmark(
        name=name,
        family="choice",
        ask=_ask_letter if kind is AnswerKind.LETTER else _ask_yes_no,
        answer=functools.partial(extract_answer, kind=kind),
        judge=functools.partial(_judge, kind),
        same=functools.partial(equivalent, kind=kind),
        **options,
    )


CHOICE_BENCHMARKS = (
    _benchmark(
        "mmlu_pro_stem",
        AnswerKind.LETTER,
        source=Source("TIGER-Lab/MMLU-Pro", "test", "b189ec765aa7ed75c8acfea42df31fdae71f97be", "MIT"),
        size=5878,
        read=_read_mmlu_pro,
        notes=f"The categories {', '.join(sorted(STEM))}; ten options at most.",
    ),
    _benchmark(
        "race",
        AnswerKind.LETTER,
        source=Source(
            "ehovy/race",
            "test",
            "2fec9fd81f1dc971569a9b729c43f2f0e6436637",
            "non-commercial research (RACE)",
            config="all",
        ),
        size=4934,
        read=_read_race,
        notes="Middle and high school together.",
    ),
    _benchmark(
        "strategyqa",
        AnswerKind.YES_NO,
        source=Source("ChilleD/StrategyQA", "test", "705562638fe1d8ca6bb98c66fc8f94d45fda8c83", "MIT"),
        size=687,
        read=_read_strategyqa,
        notes="The supporting facts are kept in `extra`, not shown to the model.",
    ),
)
