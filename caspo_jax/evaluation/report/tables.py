"""A run's summaries to tables: the ones whose meaning is known first, then whatever else is a list of records."""

from __future__ import annotations

import dataclasses
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
    number_text,
)
from caspo_jax.evaluation.report.confidence_tables import step_confidences
from caspo_jax.evaluation.report.evaluate_tables import evaluate_tables
from caspo_jax.evaluation.report.faithfulness_tables import faithfulness_tables
from caspo_jax.evaluation.report.folder import Run

# (field, title, what it is, whether more is better; None: neither)
POLICY_COLUMNS: tuple[tuple[str, str, str, bool | None], ...] = (
    ("step_accuracy", "steps right", "share of steps that are right", True),
    (
        "first_error_accuracy",
        "until first error",
        "the same, counting each trace up to and including its first wrong step",
        True,
    ),
    ("all_steps_right", "traces all right", "share of traces whose every step is right", True),
    ("answer_accuracy", "answers right", "share of sampled answers that are right", True),
    ("flawed_correct_rate", "flawed", "share of right answers that were reached through a wrong step", False),
    (
        "entropy_auroc",
        "AUROC",
        "does confidence, exp(−entropy), rank right steps above wrong ones? all steps pooled",
        True,
    ),
    ("entropy_gap", "entropy gap", "mean token entropy of wrong steps minus that of right ones, nats", None),
    (
        "ece",
        "ECE",
        "expected calibration error of exp(−entropy): mean distance from accuracy in ten bins",
        False,
    ),
    (
        "brier_scaled",
        "Brier",
        "Brier score (mean squared distance from the verdict, 0 or 1) after a cross-fitted one-parameter scaling",
        False,
    ),
    ("tokens_per_trace", "tokens", "mean tokens of a trace", None),
)


def strategies_of(policy: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A policy's strategies that have an accuracy."""
    found = policy.get("strategies")
    if not isinstance(found, Mapping):
        return {}
    return {
        name: entry
        for name, entry in found.items()
        if isinstance(entry, Mapping) and isinstance(entry.get("accuracy"), (int, float))
    }


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """Policies, their strategies, and the tables of any other summary file."""
    policies = (_policies(runs), step_confidences(_policy_rows(runs), len(runs) > 1), _strategies(runs))
    tables = [table for table in policies if table is not None]
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        named = evaluate_tables(run.summaries, prefix) | faithfulness_tables(run.summaries, prefix)
        tables += [table for found in named.values() for table in found]
        for name, summary in run.summaries.items():
            if name in named:
                continue
            known = {"policies"} if name == "summary" and isinstance(summary, Mapping) else set()
            found = _generic(prefix if name == "summary" else f"{prefix}{name}, ", summary, known)
            aside = (name == "summary" and bool(known)) or name.startswith("settings.")
            tables += [dataclasses.replace(table, aside=aside) for table in found]
    return tables


def _policy_rows(runs: Sequence[Run]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (run.name, policy)
        for run in runs
        for policy in run.summary.get("policies") or ()
        if isinstance(policy, Mapping)
    ]


def _policies(runs: Sequence[Run]) -> Table | None:
    rows = _policy_rows(runs)
    columns = [c for c in POLICY_COLUMNS if any(isinstance(p.get(c[0]), (int, float)) for _, p in rows)]
    if not columns:
        return None
    best = best_values([p for _, p in rows], {field: more for field, _, _, more in columns})
    body = []
    for name, policy in rows:
        cells = [Cell(name)] if len(runs) > 1 else []
        cells.append(Cell(str(policy.get("name", "?"))))
        intervals = policy.get("intervals") or {}
        for field, *_ in columns:
            value = policy.get(field)
            low, high = intervals.get(field) or (None, None)
            cells.append(
                number_cell(value, interval_text(low, high), value is not None and best.get(field) == value)
            )
        body.append(cells)
    heads = [("run", "", False)] if len(runs) > 1 else []
    heads += [("policy", "", False), *((title, text, True) for _, title, text, _ in columns)]
    return Table("Policies, on sampled traces", heads, body, BOLD)


def _strategies(runs: Sequence[Run]) -> Table | None:
    rows = [(run, p) for run, p in _policy_rows(runs) if strategies_of(p)]
    names = list(dict.fromkeys(name for _, p in rows for name in strategies_of(p)))
    if not names:
        return None
    columns: list[tuple[str, str, bool]] = [("strategy", "", False)]
    titles = [f"{run} · {p['name']}" if len(runs) > 1 else str(p["name"]) for run, p in rows]
    for title in titles:
        columns += [(title, "answer accuracy", True), ("tokens", f"decoded a question, {title}", True)]
    best = [max(e["accuracy"] for e in strategies_of(p).values()) for _, p in rows]
    body = []
    for name in names:
        cells = [Cell(spoken(name))]
        for (_, policy), top in zip(rows, best, strict=True):
            entry = strategies_of(policy).get(name)
            accuracy = entry["accuracy"] if entry else None
            used = (entry or {}).get("tokens_per_question")
            tokens = None if used is None else float(round(used))
            cells.append(number_cell(accuracy, "", accuracy == top))
            cells.append(Cell("–" if tokens is None else f"{tokens:,.0f}", tokens))
        body.append(cells)
    return Table("Strategies", columns, body, "Accuracy, and decoded tokens a question.")


def _generic(title: str, value: Any, known: set[str], depth: int = 0) -> list[Table]:
    """Lists of records, and records of records of one shape, as tables; two levels down at most."""
    if isinstance(value, list):
        records = [v for v in value if isinstance(v, Mapping)]
        if not records or len(records) != len(value):
            return []
        return _records_table(title, [dict(r) for r in records])
    if not isinstance(value, Mapping):
        return []
    inner = [v for k, v in value.items() if k not in known]
    if inner and all(isinstance(v, Mapping) and any(_plain(x) for x in v.values()) for v in inner):
        found = _records_table(title, [{"": k, **v} for k, v in value.items() if k not in known])
        if found:
            return found
    if depth >= 2:
        return []
    tables = []
    for key, part in value.items():
        if key not in known:
            tables += _generic(title if key == "rows" else f"{title}{key}, ", part, set(), depth + 1)
    return tables


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _interval(value: Any) -> bool:
    return isinstance(value, Mapping) and {"low", "high"} <= set(value)


def _records_table(title: str, records: list[dict[str, Any]]) -> list[Table]:
    fields = list(dict.fromkeys(k for r in records for k, v in r.items() if _plain(v) or _interval(v)))
    if len(fields) < 2 or not records:
        return []
    body = []
    for record in records:
        cells = []
        for field in fields:
            value, under = record.get(field), ""
            if isinstance(value, Mapping) and _interval(value):
                low, high = value["low"], value["high"]
                under = interval_text(low, high)
                value = value.get("value", value.get("difference", value.get("mean")))
            shown = value if _plain(value) else None
            if isinstance(shown, str) and field == "":
                shown = shown.replace("_", " ")
            cells.append(number_cell(shown, under))
        body.append(cells)
    numeric = [
        all(row[i].value is not None or row[i].text == "–" for row in body) for i in range(len(fields))
    ]
    columns = [(f.replace("_", " "), "", n) for f, n in zip(fields, numeric, strict=True)]
    return [
        Table(title.removesuffix(", ").replace("_", " ").replace(", ", " · ") or "summary", columns, body)
    ]


def facts(run: Run) -> list[tuple[str, str]]:
    """The plain values at the top of the run's summary."""
    return [
        (key.replace("_", " "), number_text(value))
        for key, value in run.summary.items()
        if _plain(value) and value is not None
    ]
