"""What tables are made of: cells with a text and a number to sort by, and numbers as people read them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

# What stands under tables of figures.
INTERVALS = "Small print: 95 % bootstrap interval, questions resampled."
BOLD = f"{INTERVALS} Bold: best in its column."


@dataclasses.dataclass(frozen=True)
class Cell:
    """Text, the number to sort by (None: by text), a second line in small print, whether it is the best of its column."""

    text: str
    value: float | None = None
    under: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A sortable table; columns are (title, explanation, is a number)."""

    title: str
    columns: Sequence[tuple[str, str, bool]]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    aside: bool = False  # folded away under the others


def number_text(value: Any) -> str:
    """A number as people read it: whole numbers with separators, others to three places, to one from 10 on."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        if abs(value) < 1e-9:  # what is left of a difference of equal numbers
            return "0.000"
        if abs(value) < 0.0005:
            return f"{value:.1e}".replace("-", "−")
        digits = 0 if abs(value) >= 10_000 else 1 if abs(value) >= 10 else 3
        return f"{value:,.{digits}f}".replace("-", "−")
    return str(value)


def interval_text(low: float | None, high: float | None) -> str:
    """[low, high] without the zeros before the points, or nothing.

    >>> interval_text(-0.0123, 0.5)
    '[−.012, .500]'
    """
    if low is None or high is None:
        return ""

    def end(value: float) -> str:
        places = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
        text = f"{round(value, places) + 0.0:.{places}f}"  # + 0.0: no minus before a zero
        return (text.replace("0.", ".", 1) if abs(value) < 1 else text).replace("-", "−")

    return f"[{end(low)}, {end(high)}]"


def number_cell(value: Any, under: str = "", best: bool = False, *, whole: bool = False) -> Cell:
    """A cell that sorts by its number; `whole` rounds what is shown to a whole number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    text = f"{value:,.0f}" if number and whole else number_text(value)
    return Cell(text, float(value) if number else None, under, best)


def difference_cell(row: Mapping[str, Any]) -> Cell:
    """The `difference` of a record with its sign, its interval in small print."""
    value = row.get("difference")
    if value is None:
        return Cell("–")
    text = f"{value:+.3f}".replace("-", "−")
    return Cell(text, float(value), interval_text(row.get("low"), row.get("high")))


def best_values(rows: Sequence[Mapping[str, Any]], more: Mapping[str, bool | None]) -> dict[str, float]:
    """Field -> the best of the rows' values, if there are several; `more`: field -> is more better? None: neither."""
    best = {}
    for field, larger in more.items():
        values = [row[field] for row in rows if isinstance(row.get(field), (int, float))]
        if larger is not None and len(values) > 1:
            best[field] = max(values) if larger else min(values)
    return best


def within_cell(value: Any, groups: int | None, unit: str, interval: str = "", best: bool = False) -> Cell:
    """An AUROC averaged over groups, and how many of them have both verdicts; n/a where none has.

    `groups` is None in records that do not say.
    """
    counted = "" if groups is None else f"{groups:,} {unit}"
    if groups == 0:
        return Cell("n/a", None, counted)
    return number_cell(value, f"{interval} {counted}".strip(), best)


def p_text(value: float | None) -> str:
    """A p-value with the digits that it has."""
    if value is None:
        return "–"
    return "< .001" if value < 0.001 else f"{value:.3f}".replace("0.", ".", 1) if value < 1 else "1"
