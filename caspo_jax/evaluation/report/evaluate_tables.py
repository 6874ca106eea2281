"""The files that `experiments.evaluate` writes, as tables: strategies, paired tests, two runs, confidences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.report.cells import Cell, Table, interval_text, number_cell, p_text

Rows = Sequence[Mapping[str, Any]]
MANY = 20  # rows from which on a table is folded away
BOLD = "Small print: 95 % bootstrap interval by question. Bold: best of the column."

# field -> (title, what it is, whether more is better; None: neither)
_CONFIDENCE: Mapping[str, tuple[str, str, bool | None]] = {
    "auroc": ("AUROC", "does it rank right above wrong? pooled", True),
    "within_question": ("in question", "the same, within a question", True),
    "within_prefix": ("siblings", "the same, among the candidates of one prefix", True),
    "length_controlled": ("length controlled", "AUROC among items of like length", True),
    "auprc_errors": ("AUPRC", "average precision at finding errors", True),
    "aurc": ("AURC", "area under risk and coverage", False),
    "bias": ("bias", "mean confidence minus accuracy", None),
    "ece": ("ECE", "expected calibration error", False),
    "brier": ("Brier", "Brier score", False),
    "ece_scaled": ("ECE scaled", "after a cross-fitted one-parameter scaling", False),
    "brier_scaled": ("Brier scaled", "after a cross-fitted one-parameter scaling", False),
}
_PAIRED_NOTE = (
    "Paired by question: difference with its 95 % interval, sign-flip test. "
    "“=” before a size: as many samples as cost the same tokens."
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
        ("passes", "forward passes one after another", True),
        (
            "seconds",
            "a question, of the fastest group; none where the answers were not decoded by themselves",
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
            Cell(str(r.get("verdict", ""))),
        ]
        for r in rows
    ]
    columns = [
        ("strategy", "", False),
        ("against", "", False),
        ("difference", "of accuracy", True),
        ("p", "sign-flip permutation test", True),
        ("tokens", "decoded a question", True),
        ("theirs", "decoded a question by the other", True),
        ("verdict", "above or below: the interval leaves 0 out", False),
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
            Cell(str(r.get("verdict", ""))),
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
        ("B is", "the interval leaves 0 out", False),
    ]
    return Table(title, columns, body, _PAIRED_NOTE)


def _confidences(rows: Rows, title: str, head: Mapping[str, Any]) -> Table:
    shown = [f for f in _CONFIDENCE if any(isinstance(r.get(f), (int, float)) for r in rows)]
    best = {}
    for field in shown:
        more = _CONFIDENCE[field][2]
        values = [r[field] for r in rows if isinstance(r.get(field), (int, float))]
        if more is not None:
            best[field] = max(values) if more else min(values)
    body = [
        [Cell(str(r["confidence"]).replace("_", " "))]
        + [
            number_cell(
                r.get(f),
                interval_text(r.get("auroc_low"), r.get("auroc_high")) if f == "auroc" else "",
                r.get(f) is not None and r.get(f) == best.get(f),
            )
            for f in shown
        ]
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


def _signed(row: Mapping[str, Any]) -> Cell:
    value = row.get("difference")
    if value is None:
        return Cell("–")
    return Cell(
        f"{value:+.3f}".replace("-", "−"), float(value), interval_text(row.get("low"), row.get("high"))
    )
