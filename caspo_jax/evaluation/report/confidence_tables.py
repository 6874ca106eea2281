"""Figures of confidences as tables: of named ones, of the answers of strategies, of the steps of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.formats import spoken
from caspo_jax.evaluation.report.cells import (
    BOLD,
    Cell,
    Table,
    best_values,
    interval_text,
    number_cell,
    within_cell,
)

Row = Mapping[str, Any]
MANY = 20  # rows from which on a table is folded away

# field -> (title, what it is, whether more is better; None: neither)
_FIGURES: Mapping[str, tuple[str, str, bool | None]] = {
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
_LEVELS = ("bias", "ece", "brier", "ece_scaled", "brier_scaled")
_GROUPED = {"within_question": "questions", "within_prefix": "prefixes"}
# Confidence -> field of `_FIGURES` -> field of a policy in a summary.
_POLICY: Mapping[str, Mapping[str, str]] = {
    "exp(−entropy)": {
        "auroc": "entropy_auroc",
        "within_question": "within_question_auroc",
        "within_prefix": "within_prefix_auroc",
        **{field: field for field in _LEVELS},
    },
    "exp(mean log-prob)": {
        "auroc": "logprob_auroc",
        "within_question": "within_question_logprob_auroc",
        "within_prefix": "within_prefix_logprob_auroc",
    },
    "exp(sum of log-probs)": {
        "auroc": "sum_logprob_auroc",
        "within_question": "within_question_sum_logprob_auroc",
        "within_prefix": "within_prefix_sum_logprob_auroc",
        **{field: f"sum_logprob_{field}" for field in _LEVELS},
    },
}


def named_confidences(rows: Sequence[Row], title: str, head: Row) -> Table:
    """`confidences.steps` and `confidences.paths`; `head` is what stands over them."""
    facts = [
        f"{head[k]:,} {word}"
        for k, word in (("items", "with a verdict"), ("questions", "questions"))
        if k in head
    ]
    if isinstance(head.get("accuracy"), float):
        facts.append(f"{head['accuracy']:.3f} right")
    note = ", ".join(facts) + f". {BOLD}" if facts else BOLD
    lead = [[Cell(str(r["confidence"]).replace("_", " "))] for r in rows]
    return _table(title, [("confidence", "", False)], lead, rows, note, aside=len(rows) > MANY)


def answer_confidences(rows: Sequence[Row], title: str) -> Table:
    """`calibration`: path confidences against the answers, a row a strategy and size."""
    heads = [
        ("strategy", "and its size", False),
        ("answers", "that carry a path confidence", True),
        ("right", "share of these answers", True),
    ]
    lead = [
        [
            Cell(f"{spoken(r['strategy'])}, {r.get('size', '')}"),
            number_cell(r.get("answers"), whole=True),
            number_cell(r.get("accuracy")),
        ]
        for r in rows
    ]
    note = "Confidence: that of the path that an answer was read from; of a search, the surest path with the answer."
    return _table(title, heads, lead, rows, f"{note} {BOLD}")


def step_confidences(policies: Sequence[tuple[str, Row]], several: bool) -> Table | None:
    """(run, policy of a summary) -> the confidences of their sampled steps, a row a policy and confidence."""
    lead, rows = [], []
    for run, policy in policies:
        intervals = policy.get("intervals") or {}
        for name, fields in _POLICY.items():
            row: dict[str, Any] = {f"{f}_groups": policy.get(f"{f}_groups") for f in _GROUPED}
            for field, source in fields.items():
                low, high = intervals.get(source) or (None, None)
                row |= {field: policy.get(source), f"{field}_low": low, f"{field}_high": high}
            if row["auroc"] is not None:
                rows.append(row)
                of_run = [Cell(run)] if several else []
                lead.append([*of_run, Cell(str(policy.get("name", "?"))), Cell(name)])
    if not rows:
        return None
    heads = [("run", "", False)] if several else []
    heads += [("policy", "", False), ("confidence", "of a step", False)]
    return _table("Confidence of steps, on sampled traces", heads, lead, rows, BOLD)


def _table(
    title: str,
    heads: Sequence[tuple[str, str, bool]],
    lead: Sequence[Sequence[Cell]],
    rows: Sequence[Row],
    note: str,
    aside: bool = False,
) -> Table:
    """The figures that a row has, behind its leading cells."""
    shown = [
        f
        for f in _FIGURES
        if any(isinstance(r.get(f), (int, float)) or r.get(f"{f}_groups") == 0 for r in rows)
    ]
    best = best_values(rows, {f: _FIGURES[f][2] for f in shown})
    body = [
        [*cells, *(_cell(r, f, r.get(f) is not None and r.get(f) == best.get(f)) for f in shown)]
        for cells, r in zip(lead, rows, strict=True)
    ]
    columns = [*heads, *((_FIGURES[f][0], _FIGURES[f][1], True) for f in shown)]
    return Table(title, columns, body, note, aside=aside)


def _cell(row: Row, field: str, best: bool) -> Cell:
    interval = interval_text(row.get(f"{field}_low"), row.get(f"{field}_high"))
    if field in _GROUPED:
        return within_cell(row.get(field), row.get(f"{field}_groups"), _GROUPED[field], interval, best)
    return number_cell(row.get(field), interval, best)
