"""The files that `experiments.evaluate` writes, as tables: strategies, paired tests, two runs, confidences."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.formats import said, spoken
from caspo_jax.evaluation.report.cells import (
    BOLD,
    Cell,
    Table,
    difference_cell,
    interval_text,
    number_cell,
    p_text,
)
from caspo_jax.evaluation.report.confidence_tables import answer_confidences, named_confidences

Rows = Sequence[Mapping[str, Any]]

_PAIRED_NOTE = (
    "Paired by question: difference with its 95 % bootstrap interval, and the p-value of a sign-flip permutation test. "
    "“= cat 4” as a size: as many samples as cost the tokens of CaT with 4 branches."
)


def evaluate_tables(summaries: Mapping[str, Any], prefix: str = "") -> dict[str, list[Table]]:
    """Name of a summary -> its tables, for those that `evaluate` writes."""
    found: dict[str, list[Table]] = {}
    for name, summary in sorted(summaries.items(), key=lambda item: _place(item[0])):
        rows = rows_of(summary)
        if not rows:
            continue
        if name == "table" and "strategy" in rows[0]:
            found[name] = _by_benchmark(rows, prefix, "Strategies", _strategies)
        elif name == "paired" and "baseline" in rows[0]:
            found[name] = _by_benchmark(rows, prefix, "CaT against the others", _paired)
        elif name == "calibration" and {"strategy", "auroc"} <= set(rows[0]):
            found[name] = _by_benchmark(rows, prefix, "Confidence in answers", answer_confidences)
        elif name == "compare" and {"a", "b", "difference"} <= set(rows[0]):
            make = functools.partial(_compared, left_out=summary.get("left_out") or ())
            title = f"{summary.get('b', 'B')} against {summary.get('a', 'A')}"
            found[name] = _by_benchmark(rows, prefix, title, make)
        elif name.startswith("confidences.") and {"auroc", "confidence"} <= set(rows[0]):
            kind = name.removeprefix("confidences.")
            head = summary.get("overview") or {}
            found[name] = [named_confidences(rows, f"{prefix}Confidences of {kind}", head)]
    return found


def _place(name: str) -> int:
    order = ("table", "paired", "calibration", "compare", "confidences.steps", "confidences.paths")
    return order.index(name) if name in order else len(order)


def rows_of(summary: Any) -> Rows:
    """The `rows` of a table's file, empty if it is something else."""
    rows = summary.get("rows") if isinstance(summary, Mapping) else None
    return rows if isinstance(rows, list) and all(isinstance(r, Mapping) for r in rows) else []


def _by_benchmark(rows: Rows, prefix: str, title: str, make: Any) -> list[Table]:
    names = list(dict.fromkeys(str(r.get("benchmark", "")) for r in rows))
    return [
        make(
            [r for r in rows if str(r.get("benchmark", "")) == name],
            f"{prefix}{title}" + (f": {name}" if name else ""),
        )
        for name in names
    ]


def _strategies(rows: Rows, title: str) -> Table:
    best = max((r["accuracy"] for r in rows if r.get("accuracy") is not None), default=None)
    body = [
        [
            Cell(spoken(r["strategy"])),
            Cell(str(r.get("size", ""))),
            number_cell(
                r.get("accuracy"), interval_text(r.get("low"), r.get("high")), r.get("accuracy") == best
            ),
            number_cell(r.get("tokens"), whole=True),
            number_cell(r.get("calls"), whole=True),
            number_cell(r.get("seconds")),
        ]
        for r in rows
    ]
    columns = [
        ("strategy", "", False),
        (
            "size",
            "what it may spend: samples, branches, beams; “= cat 4”: the tokens of CaT with 4 branches",
            False,
        ),
        ("accuracy", "share of right answers, mean over questions", True),
        ("tokens", "decoded tokens a question, over all branches", True),
        ("passes", "forward passes of the model, one after another, a question", True),
        (
            "seconds",
            "a question, timed on the fastest group of questions, which compiles nothing; – with a single group, and where "
            "the answers were taken from a larger run",
            True,
        ),
    ]
    count = rows[0].get("questions")
    return Table(title, columns, body, BOLD if count is None else f"{count:,} questions. {BOLD}")


def _paired(rows: Rows, title: str) -> Table:
    body = [
        [
            Cell(f"{spoken(r['strategy'])}, {r.get('size', '')}"),
            Cell(f"{spoken(r['baseline'])}, {r.get('baseline_size', '')}"),
            difference_cell(r),
            Cell(p_text(r.get("p_value")), r.get("p_value")),
            number_cell(r.get("tokens"), whole=True),
            number_cell(r.get("baseline_tokens"), whole=True),
            Cell(str(said("verdict", r.get("verdict", "")))),
        ]
        for r in rows
    ]
    columns = [
        ("strategy", "and its size", False),
        ("against", "what it is compared with, and its size", False),
        ("difference", "accuracy of the strategy minus that of the other", True),
        ("p", "sign-flip permutation test", True),
        ("tokens", "decoded a question", True),
        ("tokens of the other", "decoded a question by what it is compared with", True),
        (
            "verdict",
            "above or below where the interval leaves 0 out; else the two cannot be told apart, which proves nothing equal",
            False,
        ),
    ]
    return Table(title, columns, body, _PAIRED_NOTE)


def _compared(rows: Rows, title: str, left_out: Sequence[str]) -> Table:
    body = [
        [
            Cell(f"{spoken(r['strategy'])}, {r.get('size', '')}"),
            number_cell(r.get("a")),
            number_cell(r.get("b")),
            difference_cell(r),
            Cell(p_text(r.get("p_value")), r.get("p_value")),
            number_cell(r.get("baseline_tokens"), whole=True),
            number_cell(r.get("tokens"), whole=True),
            Cell(str(said("verdict", r.get("verdict", "")))),
        ]
        for r in rows
    ]
    columns = [
        ("strategy", "", False),
        ("A", "accuracy", True),
        ("B", "accuracy", True),
        ("B − A", "paired by question", True),
        ("p", "sign-flip permutation test", True),
        ("tokens A", "decoded a question", True),
        ("tokens B", "decoded a question", True),
        (
            "B is",
            "above or below A where the interval leaves 0 out; else the two cannot be told apart, which proves nothing equal",
            False,
        ),
    ]
    note = "".join(f"{sentence}. " for sentence in left_out)
    return Table(title, columns, body, note + _PAIRED_NOTE)
