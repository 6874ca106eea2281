"""Accuracy against cost, from the table of `experiments.evaluate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from caspo_jax.evaluation.formats import spoken
from caspo_jax.evaluation.report.cells import interval_text
from caspo_jax.evaluation.report.evaluate_tables import rows_of
from caspo_jax.evaluation.report.svg import HEIGHT, SERIES, Figure, Panel, hover, number, tag

_SHAPES = ("disc", "square", "triangle")  # colours begin again with the next shape


def curves(summaries: Mapping[str, Any]) -> list[Figure]:
    """Accuracy against decoded tokens, a line a strategy through its sizes; a picture a benchmark."""
    rows = [
        r
        for r in rows_of(summaries.get("table"))
        if {"strategy", "accuracy", "tokens"} <= set(r) and not str(r.get("size", "")).startswith("=")
    ]
    names = list(dict.fromkeys(str(r["strategy"]) for r in rows))
    names.sort(key=lambda name: name != "cat")  # CaT has the first colour
    found = []
    for benchmark in dict.fromkeys(str(r.get("benchmark", "")) for r in rows):
        mine = [r for r in rows if str(r.get("benchmark", "")) == benchmark and (r["tokens"] or 0) > 0]
        if mine:
            found.append(_curve(mine, names, benchmark))
    return found


def _curve(rows: Sequence[Mapping[str, Any]], names: Sequence[str], benchmark: str) -> Figure:
    ends = [v for r in rows for v in (r.get("low"), r.get("high"), r["accuracy"]) if v is not None]
    low, high = max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02)
    places = [math.log10(r["tokens"]) for r in rows]
    pad = 0.05 * (max(places) - min(places)) or 0.1
    panel = Panel((min(places) - pad, max(places) + pad), (low, high), height=HEIGHT + 60)
    panel.grid("decoded tokens a question, log scale", "accuracy", x_ticks=0)
    for value in _round_numbers(min(r["tokens"] for r in rows), max(r["tokens"] for r in rows)):
        x, _ = panel.at(math.log10(value), low)
        panel.add(tag("line", x1=x, x2=x, y1=panel.bottom, y2=panel.bottom + 3, class_="axis"))
        panel.add(tag("text", f"{value:,}", x=x, y=panel.bottom + 14, class_="tick middle"))
    legend = []
    for k, name in enumerate(names):
        mine = sorted((r for r in rows if r["strategy"] == name), key=lambda r: r["tokens"])
        if not mine:
            continue
        colour, shape = f"s{k % SERIES}", _SHAPES[k // SERIES % len(_SHAPES)]
        legend.append((f"{colour} {shape}", spoken(name)))
        xs, ys = [math.log10(r["tokens"]) for r in mine], [r["accuracy"] for r in mine]
        panel.line(xs, ys, f"{colour}{' strong' if name == 'cat' else ''}")
        for x, y, row in zip(xs, ys, mine, strict=True):
            across, up = panel.at(x, y)
            mark = ""
            if row.get("low") is not None and row.get("high") is not None:
                (_, a), (_, b) = panel.at(x, row["low"]), panel.at(x, row["high"])
                mark = tag("line", x1=across, x2=across, y1=a, y2=b, class_=f"whisker thin {colour}")
            mark += _mark(shape, across, up, colour)
            text = f"{spoken(name)} ({row.get('size', '')}): {y:.3f} {interval_text(row.get('low'), row.get('high'))}"
            panel.add(hover(mark, f"{text}, {row['tokens']:,.0f} tokens"))
    title = "Accuracy against cost" + (f": {benchmark}" if benchmark else "")
    return Figure(title, panel.render(title), "95 % intervals by question.", legend)


def _mark(shape: str, x: float, y: float, colour: str) -> str:
    if shape == "square":
        return tag("rect", x=x - 3.5, y=y - 3.5, width=7.0, height=7.0, class_=f"fill {colour}")
    if shape == "triangle":
        points = " ".join(f"{number(x + a)},{number(y + b)}" for a, b in ((0, -4.5), (4.5, 3.5), (-4.5, 3.5)))
        return tag("polygon", points=points, class_=f"fill {colour}")
    return tag("circle", cx=x, cy=y, r=4, class_=f"fill {colour}")


def _round_numbers(low: float, high: float) -> list[int]:
    """1, 2, 5 times powers of ten between low and high; every 1, 2, 3, 5 where those are too few."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [
            round(s * 10**p) for p in range(0, 9) for s in steps if low * 0.95 <= s * 10**p <= high * 1.05
        ]
        if len(found) > 1:
            return found
    return [max(1, round(low))]
