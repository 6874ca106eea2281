"""Accuracy against cost: all strategies in one picture, and CaT against each of the others in a picture of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo_jax.evaluation.formats import spoken
from caspo_jax.evaluation.plots import COLOURS, axes_of, save_figure

Rows = Sequence[Mapping[str, Any]]

CAT, OTHER = COLOURS[0], COLOURS[1]
# Colour says the kind of strategy, the marker which one of the kind it is.
_KINDS: Mapping[str, tuple[str, Sequence[str]]] = {
    CAT: ("CaT", ("cat", "cat_paper")),
    "#555555": ("one output", ("greedy", "sample", "cot_decoding")),
    OTHER: ("votes", ("self_consistency", "confidence_vote", "sequence_vote", "self_certainty", "deepconf")),
    COLOURS[3]: ("samples cut short", ("deepconf_online", "kappa")),
    COLOURS[2]: ("search by steps", ("beam", "mcts")),
}
_MARKERS = "osD^v"
_COLUMNS = 5


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Strategy -> colour, marker and line; unknown names come last."""
    styles = {}
    for colour, (_, members) in _KINDS.items():
        for name, marker in zip(members, _MARKERS):
            if name in names:
                styles[name] = {"color": colour, "marker": marker}
    for i, name in enumerate(n for n in names if n not in styles):
        styles[name] = {"color": COLOURS[6], "marker": "P*X"[i % 3]}
    return styles


def _of(rows: Rows, strategy: str) -> list[Mapping[str, Any]]:
    """The rows of a strategy at its own sizes, by tokens."""
    mine = [r for r in rows if r["strategy"] == strategy and not r["size"].startswith("=")]
    return sorted(mine, key=lambda row: row["tokens"])


def _line(axis: Any, rows: Rows, x: str, *, band: bool, **style: Any) -> None:
    at, low, high = ([row[f] for row in rows] for f in (x, "low", "high"))
    axis.plot(at, [row["accuracy"] for row in rows], markersize=4.5, **style)
    if not band:
        return
    if len(rows) > 1:
        axis.fill_between(at, low, high, color=style["color"], alpha=0.18, linewidth=0)
    else:
        axis.vlines(at, low, high, color=style["color"], linewidth=1.2)


def _logarithmic(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with ticks that read as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    few = len(values) > 0 and max(values) < 30 * min(values)
    axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if few else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def plot_curves(rows: Rows, path: str | Path) -> Path:
    """Accuracy against decoded tokens, and against seconds where they were taken: a row of panels a benchmark, a line a
    strategy, with the band of CaT and an interval on what has one size."""
    benchmarks = list(dict.fromkeys(row["benchmark"] for row in rows))
    styles = _styles(list(dict.fromkeys(row["strategy"] for row in rows)))
    figure, axes = axes_of(2, width=5.2, height=4.4, rows=len(benchmarks))
    for line, benchmark in zip(axes, benchmarks):
        here = [row for row in rows if row["benchmark"] == benchmark]
        for axis, x, label in zip(line, ("tokens", "seconds"), ("decoded tokens", "seconds")):
            seen: list[float] = []
            for name, style in styles.items():
                mine = [row for row in _of(here, name) if row.get(x) is not None]
                if not mine:
                    continue
                seen += [row[x] for row in mine]
                first = name in ("cat", "greedy")
                width, alpha = (2.4, 1.0) if name == "cat" else (1.0, 0.85)
                band = first or len(_of(here, name)) == 1
                _line(axis, mine, x, band=band, label=spoken(name), linewidth=width, alpha=alpha,
                      zorder=3 if first else 2, **style)  # fmt: skip
            if seen:
                _logarithmic(axis, seen)
            else:  # fewer than two groups of questions: the one time is mostly compilation
                axis.text(0.5, 0.5, "not timed without compilation", transform=axis.transAxes, ha="center")
                axis.set_xticks([])
            axis.set(title=benchmark, xlabel=f"{label} a question")
            axis.grid(axis="y", color="0.92", linewidth=0.8)
        line[1].sharey(line[0])
        line[0].set_ylabel("accuracy")
        line[1].legend(
            *line[0].get_legend_handles_labels(),
            frameon=False,
            fontsize=8,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )
    return save_figure(figure, path)


def plot_against(rows: Rows, benchmark: str, path: str | Path) -> Path:
    """One panel a strategy: its accuracy against tokens beside CaT's, both with 95 % bands; greedy as a line, all
    others in grey."""
    here = [row for row in rows if row["benchmark"] == benchmark]
    names = [n for n in _styles(list(dict.fromkeys(row["strategy"] for row in here))) if _of(here, n)]
    others = [n for n in names if n != "cat"]
    lines = -(-len(others) // _COLUMNS)
    columns = min(_COLUMNS, len(others))
    figure, axes = axes_of(columns, width=2.5, height=2.5, rows=lines, share=True)
    panels = axes.ravel()
    greedy = _of(here, "greedy")
    for axis, name in zip(panels, others):
        for rest in names:
            if rest not in (name, "cat"):
                _line(axis, _of(here, rest), "tokens", band=False, color="0.86", linewidth=1, marker="")
        if greedy and name != "greedy":
            axis.axhline(greedy[0]["accuracy"], color="0.35", linestyle=":", linewidth=1)
        _line(axis, _of(here, name), "tokens", band=True, color=OTHER, marker="s", linewidth=1.4)
        _line(axis, _of(here, "cat"), "tokens", band=True, color=CAT, marker="o", linewidth=1.8)
        axis.set_title(spoken(name), fontsize=10, color=OTHER, loc="left")
        _logarithmic(axis, [row["tokens"] for row in here])
    for axis in panels[len(others) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    for axis in panels[max(0, len(others) - columns) : len(others)]:
        axis.set_xlabel("decoded tokens a question")
        axis.tick_params(labelbottom=True)
    figure.suptitle(
        f"{benchmark}: CaT (blue) against each of the others (orange); dotted: greedy",
        fontsize=11,
    )
    return save_figure(figure, path)
