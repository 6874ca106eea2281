"""The PNG plots of a report: decisiveness against confidence, traces step by step, agreement of the estimators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.evaluation.faithfulness.faithful import trajectory
from caspo_jax.evaluation.faithfulness.pairing import BINS, pair_up
from caspo_jax.evaluation.faithfulness.table import ESTIMATORS, Table
from caspo_jax.evaluation.plots import COLOURS, axes_of, save_figure
from caspo_jax.metrics import spearman
from caspo_jax.metrics.arrays import bin_of


def estimators_of(table: Table, scorer: str) -> list[str]:
    """Those that have a step in common with the scorer."""
    return [n for n in ESTIMATORS if n in table.confidence and pair_up(table, scorer, n).d.size]


def plot_decisiveness(table: Table, scorer: str, path: str | Path) -> Path:
    """Mean decisiveness in each tenth of confidence, and under it how many steps lie there; one panel an estimator.

    A bar through a mean spans the middle 80 % of the bin's steps.
    """
    names = estimators_of(table, scorer)
    figure, axes = axes_of(len(names), width=2.9, height=2.1, rows=2, heights=(4, 1))
    for column, name in enumerate(names):
        p = pair_up(table, scorer, name)
        index = bin_of(p.c, BINS, right_closed=False)
        count = np.bincount(index, minlength=BINS)
        filled = np.flatnonzero(count)
        c = np.array([p.c[index == k].mean() for k in filled])
        d = np.array([p.d[index == k].mean() for k in filled])
        spread = np.array([np.quantile(p.d[index == k], (0.1, 0.9)) for k in filled])
        upper, lower = axes[:, column]
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="faithful")
        upper.vlines(c, spread[:, 0], spread[:, 1], color=COLOURS[0], alpha=0.35, linewidth=3)
        upper.plot(c, d, marker="o", color=COLOURS[0], label="mean decisiveness")
        upper.set(title=name, xlim=(0, 1), ylim=(0, 1.05), xticklabels=[])
        lower.bar((np.arange(BINS) + 0.5) / BINS, count, width=0.092, color="0.78")
        for k in filled:
            at = ((k + 0.5) / BINS, count[k])
            lower.annotate(f"{count[k]:,}", at, ha="center", va="bottom", fontsize=6, color="0.3")
        lower.set(xlabel="internal confidence", xlim=(0, 1), ylim=(0, 1.25 * count.max()), yticks=[])
        lower.spines["left"].set_visible(False)
    axes[0, 0].set_ylabel(f"decisiveness ({scorer})")
    axes[1, 0].set_ylabel("steps")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    return save_figure(figure, path)


def plot_traces(table: Table, scorer: str, estimator: str, path: str | Path, count: int = 4) -> Path:
    """Decisiveness and confidence step by step: the mean over traces, and the longest traces; the gap is shaded."""
    p = pair_up(table, scorer, estimator)
    lengths = np.bincount(p.trace)
    longest = np.argsort(-lengths, kind="stable")[:count]
    figure, axes = axes_of(1 + len(longest), width=3.6, height=3.4)
    mean = trajectory(p)
    known = [k for k, n in enumerate(mean["steps"]) if n]
    x, d, c = (
        np.array([mean[n][k] for k in known], float) for n in ("position", "decisiveness", "confidence")
    )
    panels: list[tuple[str, str, Any, Any, Any]] = [("mean of all traces", "position in the trace", x, d, c)]
    for trace in longest:
        rows = p.trace == trace
        title = str(p.trace_group[trace])
        title = title if len(title) <= 36 else title[:33] + "..."
        panels.append((title, "step", p.index[rows] + 1, p.d[rows], p.c[rows]))
    for axis, (title, label, x, d, c) in zip(axes, panels):
        axis.fill_between(x, d, c, where=d >= c, color=COLOURS[1], alpha=0.18, interpolate=True)
        axis.fill_between(x, d, c, where=d <= c, color=COLOURS[0], alpha=0.18, interpolate=True)
        axis.plot(x, d, marker="o", markersize=3, color=COLOURS[1], label=f"decisiveness ({scorer})")
        axis.plot(x, c, marker="s", markersize=3, color=COLOURS[0], label=f"confidence ({estimator})")
        axis.set(xlabel=label, ylim=(0, 1.05))
        if label == "step":
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(title.replace("$", r"\$"), fontsize=8)
    axes[0].set(ylabel="decisiveness, confidence", xlim=(0, 1))
    axes[0].legend(frameon=False, fontsize=7, loc="lower left")
    return save_figure(figure, path)


def plot_agreement(table: Table, path: str | Path) -> Path:
    """Spearman's correlation of every two columns, scorers and estimators, over the steps that both have.

    A column that never varies has no correlation (`const.`).
    """
    named = {name: table.confidence[name] for name in ESTIMATORS if name in table.confidence}
    named = {**{f"words: {n}": v for n, v in table.decisiveness.items()}, **named}
    names = list(named)
    grid = np.full((len(names), len(names)), np.nan)
    for i, first in enumerate(named.values()):
        for j, second in enumerate(named.values()):
            both = ~(np.isnan(first) | np.isnan(second))
            grid[i, j] = spearman(first[both], second[both])
    size = 1.6 + 0.62 * len(names)
    figure, (axis,) = axes_of(1, width=size + 1.0, height=size)
    image = axis.imshow(grid, vmin=-1, vmax=1, cmap="PuOr")
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    for i, j in np.ndindex(grid.shape):
        value, dark = grid[i, j], abs(grid[i, j]) > 0.7
        text = f"{value:.2f}" if np.isfinite(value) else "const."
        colour = "w" if dark else "k" if np.isfinite(value) else "0.5"
        axis.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    divider = len(table.decisiveness) - 0.5
    axis.axhline(divider, color="k", linewidth=1)
    axis.axvline(divider, color="k", linewidth=1)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, label="Spearman, steps", shrink=0.8)
    return save_figure(figure, path)
