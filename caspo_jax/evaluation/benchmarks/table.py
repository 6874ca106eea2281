"""Questions about a table: TableBench, by its own exact-match rules."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

from caspo_jax.errors import UserError
from caspo_jax.evaluation.benchmarks.base import Benchmark, Row, identity, text
from caspo_jax.evaluation.benchmarks.loading import Source
from caspo_jax.evaluation.execution import Sandbox
from caspo_jax.steps.marked import marked_answer
from caspo_jax.types import Question

_TOLERANT = frozenset({"CorrelationAnalysis", "TrendForecasting", "StatisticalAnalysis"})
_EXACT_ANALYSIS = _TOLERANT | {"ImpactAnalysis"}  # the other analyses ask for prose
_ASK = (
    "Please reason step by step over the table, and end with one line of the form\n"
    "Final Answer: AnswerName1, AnswerName2, ...\n"
    "where each AnswerName is a number or an entity name, as short as possible, without explanation."
)
_ITEMS = re.compile(r",\s+|,(?!\d{3}(?!\d))")  # not between thousands


def _read(row: Row, number: str) -> Question | None:
    kind, subtype = text(row, "qtype"), str(row.get("qsubtype") or "")
    if row.get("instruction_type") not in (None, "DP"):
        return None  # the same question once more, with another instruction
    if kind == "Visualization" or (kind == "DataAnalysis" and subtype not in _EXACT_ANALYSIS):
        return None
    return Question(
        identity(row, "tablebench", number, "id"),
        question=text(row, "question"),
        gold=text(row, "answer"),
        extra={"table": _table(row), "qtype": kind, "qsubtype": subtype},
    )


def _table(row: Row) -> dict[str, Any]:
    table = row.get("table")
    if isinstance(table, str):
        try:
            table = json.loads(table)
        except json.JSONDecodeError as error:
            raise UserError(f"field `table` is not valid JSON ({error})") from error
    if not isinstance(table, Mapping) or not {"columns", "data"} <= set(table):
        raise UserError("field `table` must hold `columns` and `data`")
    if any(len(line) != len(table["columns"]) for line in table["data"]):
        raise UserError("field `table` has a line that is not as long as its columns")
    return {"columns": list(table["columns"]), "data": [list(line) for line in table["data"]]}


def _ask(question: Question) -> str:
    table = question.extra["table"]
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["data"]]
    shown = "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
    return f"{shown}\n\n{question.question}\n\n{_ASK}"


def _judge(answer: str, question: Question, sandbox: Sandbox | None) -> bool | None:
    if question.gold is None:
        return None
    return _same(question.gold, answer, tolerant=question.extra.get("qsubtype") in _TOLERANT)


def _same(gold: str, answer: str, *, tolerant: bool = False) -> bool:
    """Equal item by item: numbers rounded to the gold's places (or within 10 %), words without case and punctuation."""
    golds, answers = (_ITEMS.split(side.strip()) for side in (gold, answer))
    decimals = [-_exponent(n) for g in golds if (n := _number(g)) is not None and "%" not in g]
    places = min(decimals, default=0)
    return len(golds) == len(answers) and all(
        _same_item(g, a, places, tolerant) for g, a in zip(golds, answers)
    )


def _same_item(gold: str, answer: str, places: int, tolerant: bool) -> bool:
    a, b = _number(gold), _number(answer)
    if a is None or b is None:
        return _words(gold) == _words(answer)
    if tolerant:
        return abs(b - a) <= abs(a) / 10
    unit = Decimal(1).scaleb(-(4 if "%" in gold else places))
    return a.quantize(unit, rounding=ROUND_HALF_UP) == b.quantize(unit, rounding=ROUND_HALF_UP)


def _exponent(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return min(exponent, 0) if isinstance(exponent, int) else 0


def _number(item: str) -> Decimal | None:
    """A plain number; a percentage as a fraction of one."""
    plain = item.strip().replace(",", "").removeprefix("$")
    try:
        value = Decimal(plain.removesuffix("%").rstrip())
    except InvalidOperation:
        return None
    if not value.is_finite() or value.adjusted() > 15 or _exponent(value) < -12:
        return None  # beyond what exact arithmetic should be asked to round
    return value / 100 if plain.endswith("%") else value


def _words(item: str) -> str:
    bare = re.sub(r"[^\w\s]", "", item.casefold())
    return " ".join(word for word in bare.split() if word not in ("a", "an", "the"))


TABLE_BENCHMARKS = (
    Benchmark(
        name="tablebench",
        family="table",
        source=Source(
            "Multilingual-Multimodal-NLP/TableBench",
            "test",
            "a23c244f9ccae1ea238d614fe7620984707e411a",
            "Apache-2.0 (data card; its repository says CC BY-SA 4.0)",
            files=("TableBench.jsonl",),
        ),
        size=None,
        read=_read,
        ask=_ask,
        answer=marked_answer,
        judge=_judge,
        same=_same,
        notes="Only what exact match scores: fact checking, numerical reasoning and the analyses with short answers "
        "(three of them within 10 %). Charts and prose answers (ROUGE-L there) are left out.",
    ),
)
