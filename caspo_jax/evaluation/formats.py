"""Rows of a table as Markdown, CSV and JSON, with the same figures in each."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.store import write_json, write_text

Row = Mapping[str, Any]
Field = str | tuple[str, str]  # of a row; two are the ends of an interval
Columns = Mapping[str, str] | Mapping[Field, str]  # field -> title, in order
# An interval that holds 0 leaves a difference open and proves nothing equal, whatever the files call it.
_SAID = {("verdict", "equal"): "not told apart"}


def said(field: str, value: Any) -> Any:
    """A field's value as people read it: the verdict `equal` of CSV and JSON is `not told apart`."""
    return _SAID.get((field, value), value) if isinstance(value, str) else value


def spoken(name: Any) -> str:
    """A strategy's name as words: `cat` is CaT."""
    words = str(name).replace("_", " ")
    return {"cat": "CaT", "cat paper": "CaT as published"}.get(words, words)


def cell(value: Any, digits: int = 3) -> str:
    """One figure as text: three decimals, `-` for what is undefined, no sign before a zero."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return " ".join(str(value).split()).replace("|", "\\|")  # a name must not end its cell or line
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:z.{digits}f}"


def markdown(rows: Sequence[Row], columns: Columns) -> str:
    """A Markdown table, padded so that it reads as plain text too."""
    texts = [[_shown(row, field) for field in columns] for row in rows]
    titles = list(columns.values())
    widths = [max([len(title), 3, *(len(t[i]) for t in texts)]) for i, title in enumerate(titles)]
    numeric = [isinstance(f, tuple) or all(_is_number(row.get(f)) for row in rows) for f in columns]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, numeric)]
    return "\n".join([line(titles), "| " + " | ".join(rule) + " |", *map(line, texts)])


def with_intervals(titles: Mapping[str, str]) -> dict[Field, str]:
    """Columns of these fields (field -> title), each followed by its 95 % interval, the fields `_low` and `_high`."""
    columns: dict[Field, str] = {}
    for field, title in titles.items():
        columns |= {field: title, (f"{field}_low", f"{field}_high"): "95 %"}
    return columns


def _shown(row: Row, field: Field) -> str:
    if isinstance(field, str):
        return cell(said(field, row.get(field)))
    ends = [cell(row.get(end)) for end in field]
    return "-" if "-" in ends else f"[{ends[0]}, {ends[1]}]"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def csv_text(rows: Sequence[Row]) -> str:
    """CSV with every field of every row, full precision, undefined figures empty."""
    fields = list(dict.fromkeys(field for row in rows for field in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in plain(row).items()} for row in rows)
    return out.getvalue()


def plain(value: Any) -> Any:
    """The value as JSON can hold it: tuples to lists, NumPy to Python, NaN and infinities to null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def write_table(
    path: str | Path,
    rows: Sequence[Row],
    columns: Columns | Sequence[Columns],
    **more: Any,
) -> None:
    """PATH.md, PATH.csv and PATH.json; `more` goes into the JSON beside `rows`."""
    path = Path(path)
    write_text(path.with_name(f"{path.name}.md"), tables(rows, columns) + "\n")
    write_text(path.with_name(f"{path.name}.csv"), csv_text(rows))
    write_json(path.with_name(f"{path.name}.json"), plain({**more, "rows": list(rows)}))


def tables(rows: Sequence[Row], columns: Columns | Sequence[Columns]) -> str:
    """The rows as one Markdown table, or as several below each other, each with columns of its own."""
    several = [columns] if isinstance(columns, Mapping) else columns
    return "\n\n".join(markdown(rows, each) for each in several)
