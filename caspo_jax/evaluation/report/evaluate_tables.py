"""The files that `experiments.evaluate` writes, as tables: strategies, paired tests, two runs, confidences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.formats import said
from caspo_jax.evaluation.report.cells import (
    BOLD,
    Cell,
    Table,
    interval_text,
    number_cell,
    p_text,
    within_cell,
)

Rows = Sequence[Mapping[str, Any]]
MANY = 20  # rows from which on a table is folded away

# field -> (title, what it is, whether more is better; None: neither)
_CONFIDENCE: Mapping[str, tuple[str, str, bool | None]] = {
    "auroc": ("AUROC", "does it rank what is right above what is wrong? all pooled", True),
    "within_question": (
        "within question",
        "AUROC among the items of one question, mean over questions",
        True,
    ),
    "within_prefix": (
        "within prefix",
        "AUROC among the candidates for the next step after one prefix, mean over prefixes",
        True,
    ),
    "length_controlled": ("length controlled", "AUROC among items of like length", True),
    "auprc_errors": ("AUPRC, errors", "area under precision and recall at finding what is wrong", True),
    "aurc": ("AURC", "share wrong among the k surest, mean over all k", False),
    "bias": ("bias", "mean confidence minus accuracy", None),
    "ece": (
        "ECE",
        "expected calibration error: mean distance of confidence from accuracy in ten bins",
        False,
    ),
    "brier": ("Brier", "Brier score: mean squared distance of confidence from the verdict, 0 or 1", False),
    "ece_scaled": ("ECE scaled", "after a cross-fitted one-parameter scaling", False),
    "brier_scaled": ("Brier scaled", "after a cross-fitted one-parameter scaling", False),
}
_GROUPED = {"within_question": "questions", "within_prefix": "prefixes"}
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
        elif name == "compare" and {"a", "b", "difference"} <= set(rows[0]):
            found[name] = _by_benchmark(
                rows, prefix, f"{summary.get('b', 'B')} against {summary.get('a', 'A')}", _compared
            )
        elif name.startswith("confidences.") and {"auroc", "confidence"} <= set(rows[0]):
            kind = name.removeprefix("confidences.")
            head = summary.get("overview") or {}
            found[name] = [_confidences(rows, f"{prefix}Confidences of {kind}", head)]
    return found


def _place(name: str) -> int:
    order = ("table", "paired", "compare", "confidences.steps", "confidences.paths")
    return order.index(name) if name in order else len(order)


def rows_of(summary: Any) -> Rows:
    """The `rows` of a table's file, empty if it is something else."""
    rows = summary.get("rows") if isinstance(summary, Mapping) else None
    return rows if isinstance(rows, list) and all(isinstance(r, Mapping) for r in rows) else []


def spoken(name: Any) -> str:
    """A strategy's name as words: `cat` is CaT."""
    words = str(name).replace("_", " ")
    return {"cat": "CaT", "cat paper": "CaT as published"}.get(words, words)


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
            _signed(r),
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


def _compared(rows: Rows, title: str) -> Table:
    body = [
        [
            Cell(f"{spoken(r['strategy'])}, {r.get('size', '')}"),
            number_cell(r.get("a")),
            number_cell(r.get("b")),
            _signed(r),
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
    return Table(title, columns, body, _PAIRED_NOTE)


def _confidences(rows: Rows, title: str, head: Mapping[str, Any]) -> Table:
    shown = [
        f for f in _CONFIDENCE if any(isinstance(r.get(f), (int, float)) or f"{f}_groups" in r for r in rows)
    ]
    best = {}
    for field in shown:
        more = _CONFIDENCE[field][2]
        values = [r[field] for r in rows if isinstance(r.get(field), (int, float))]
        if more is not None and values:
            best[field] = max(values) if more else min(values)
    body = [
        [Cell(str(r["confidence"]).replace("_", " "))]
        + [_confidence_cell(r, f, r.get(f) is not None and r.get(f) == best.get(f)) for f in shown]
        for r in rows
    ]
    columns = [("confidence", "", False), *((_CONFIDENCE[f][0], _CONFIDENCE[f][1], True) for f in shown)]
    facts = [
        f"{head[k]:,} {word}"
        for k, word in (("items", "with a verdict"), ("questions", "questions"))
        if k in head
    ]
    if isinstance(head.get("accuracy"), float):
        facts.append(f"{head['accuracy']:.3f} right")
    note = ", ".join(facts) + f". {BOLD}" if facts else BOLD
    return Table(title, columns, body, note, aside=len(rows) > MANY)


def _confidence_cell(row: Mapping[str, Any], field: str, best: bool) -> Cell:
    if field == "auroc":
        return number_cell(row.get(field), interval_text(row.get("auroc_low"), row.get("auroc_high")), best)
    if field in _GROUPED:
        return within_cell(row.get(field), row.get(f"{field}_groups"), _GROUPED[field], best=best)
    return number_cell(row.get(field), "", best)


def _signed(row: Mapping[str, Any]) -> Cell:
    value = row.get("difference")
    if value is None:
        return Cell("–")
    return Cell(
        f"{value:+.3f}".replace("-", "−"), float(value), interval_text(row.get("low"), row.get("high"))
    )
