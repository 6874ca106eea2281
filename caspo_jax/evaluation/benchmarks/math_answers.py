"""Mathematics with a final answer: MATH-500, Minerva, OlympiadBench, AMC, AIME, GSM8K.

An answer is the last balanced `\\boxed{}`, else what is marked as the answer; math-verify compares it with the gold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.base import BOXED, Benchmark, Row, identity, instructed, text, texts
from caspo_jax.evaluation.benchmarks.loading import Source
from caspo_jax.evaluation.execution import Sandbox
from caspo_jax.steps.answers import equivalent, extract_answer
from caspo_jax.steps.marked import marked_answer
from caspo_jax.types import Question


def _ask(question: Question) -> str:
    return instructed(question.question or "", BOXED)


def _judge(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    if question.gold is None:
        return None
    return equivalent(question.gold, answer)


def _judge_with_tolerance(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    """OlympiadBench states an absolute tolerance for a few answers in decimals."""
    right = _judge(answer, question, sandbox)
    tolerance = question.extra.get("tolerance")
    if right is not False or tolerance is None or question.gold is None:
        return right
    try:
        return abs(float(answer.rstrip("%\\ ")) - float(question.gold)) <= float(tolerance)
    except ValueError:
        return False


def _read(name: str, fields: tuple[str, ...], ids: tuple[str, ...], row: Row, number: str) -> Question:
    extra = {k: row[k] for k in ("level", "subject", "solution", "url", "year") if row.get(k) is not None}
    gold = text(row, "answer")
    return Question(identity(row, name, number, *ids), question=text(row, *fields), gold=gold, extra=extra)


def _read_olympiad(row: Row, number: str) -> Question:
    context = row.get("context")
    question = text(row, "question")
    return Question(
        identity(row, "olympiadbench", number, "id"),
        question=f"{context}\n\n{question}" if context else question,
        gold=", ".join(answer.strip() for answer in texts(row, "final_answer")),
        extra={
            "tolerance": text(row, "error") if row.get("error") else None,
            "unit": row.get("unit"),
            "subject": row.get("subfield"),
            "answer_type": row.get("answer_type"),
        },
    )


def _read_gsm8k(row: Row, number: str) -> Question:
    solution = text(row, "output" if isinstance(row.get("answer"), list) else "answer")  # two public layouts
    gold = marked_answer(solution) if "####" in solution else None
    if gold is None:
        raise UserError("field `answer` has no `#### N` at its end")
    return Question(
        identity(row, "gsm8k", number, "idx"),
        question=text(row, "question", "instruction"),
        gold=gold.replace(",", ""),
        extra={"solution": solution},
    )


def _benchmark(
    name: str, source: Source, size: int, read: Callable[[Row, str], Question], **options: Any
) -> Benchmark:
    defaults: dict[str, Any] = {"judge": _judge}
    return Benchmark(
        name=name,
        family="math",
        source=source,
        size=size,
        read=read,
        ask=_ask,
        answer=extract_answer,
        same=equivalent,
        **(defaults | options),
    )


def _plain(name: str, fields: tuple[str, ...], ids: tuple[str, ...]) -> Callable[[Row, str], Question]:
    return functools.partial(_read, name, fields, ids)


def _contest(name: str, source: Source, *, size: int, repeats: int) -> Benchmark:
    """So few problems that each is answered `repeats` times."""
    return _benchmark(
        name,
        source,
        size,
        _plain(name, ("problem", "question"), ("id",)),
        repeats=repeats,
        notes=f"{size} questions: report mean@k with an interval.",
    )


_MAA = "not stated; problems by the Mathematical Association of America"

MATH_BENCHMARKS = (
    _benchmark(
        "math500",
        Source("HuggingFaceH4/MATH-500", "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "MIT (MATH)"),
        500,
        _plain("math500", ("problem",), ("unique_id",)),
        notes="PRM800K's training half holds the other 4,500 test problems of MATH.",
    ),
    _benchmark(
        "minerva_math",
        Source(
            "math-ai/minervamath",
            "test",
            "ee46ddc498933b1977577953250ca5c66be64f96",
            "not stated; problems of MIT OpenCourseWare (CC BY-NC-SA 4.0)",
        ),
        272,
        _plain("minerva_math", ("question", "problem"), ("id",)),
        notes="Many answers are physical quantities; math-verify compares six decimal places, so rounding can cost.",
    ),
    _benchmark(
        "olympiadbench",
        Source(
            "math-ai/olympiadbench",
            "test",
            "4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84",
            "Apache-2.0 (OlympiadBench)",
        ),
        674,
        _read_olympiad,
        judge=_judge_with_tolerance,
        notes="Text only, English, open-ended competition mathematics.",
    ),
    _contest(
        "amc23",
        Source("math-ai/amc23", "test", "80815d37005feb82cd7f8fbc6901d5d3eff43057", _MAA),
        size=40,
        repeats=8,
    ),
    _contest(
        "aime24",
        Source("HuggingFaceH4/aime_2024", "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", _MAA),
        size=30,
        repeats=16,
    ),
    _contest(
        "aime25",
        Source("math-ai/aime25", "test", "563bb8404243c5f09de6ec262f2db674fe5bce9b", _MAA),
        size=30,
        repeats=16,
    ),
    _benchmark(
        "gsm8k",
        Source("openai/gsm8k", "test", "740312add88f781978c0658806c59bc2815b9866", "MIT", config="main"),
        1319,
        _read_gsm8k,
    ),
)
