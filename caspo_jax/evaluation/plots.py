"""Pictures of a comparison: reliability, entropy of right and wrong steps, strategies, pruning, noisy verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo_jax.distributed import is_writer
from caspo_jax.evaluation.strategies import Outcome
from caspo_jax.evaluation.tables import Tables
from caspo_jax.metrics import reliability
from caspo_jax.store import replacing

# Okabe-Ito: told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"


def axes_of(
    columns: int,
    width: float = 4.6,
    height: float = 3.8,
    rows: int | None = None,
    share: bool = False,
    heights: Sequence[float] | None = None,
) -> tuple[Any, Any]:
    """A figure without a display, and its panels: a row of them [columns], or with `rows` a grid [rows, columns].

    Args:
      columns: panels beside each other.
      width: of a panel, inches.
      height: of a panel, inches; with `heights` the mean of a column.
      rows: panels below each other.
      share: one scale on both axes for all panels.
      heights: of the rows, in proportion; default: all alike.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows or 1,
        columns,
        figsize=(width * columns, height * (rows or 1)),
        squeeze=False,
        layout="constrained",
        sharex=share,
        sharey=share,
        height_ratios=heights,
    )
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes if rows else axes[0]


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all, and free it."""
    import matplotlib.pyplot as plt

    path = Path(path)
    if is_writer():
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130)
    plt.close(figure)
    return path


def plot_reliability(policies: Mapping[str, Tables], path: str | Path) -> Path:
    """Accuracy of steps against their confidence exp(-u), in ten bins, one panel a policy; bars show where steps lie."""
    figure, axes = axes_of(len(policies))
    for axis, (name, tables), colour in zip(axes, policies.items(), COLOURS):
        bins = reliability(tables.confidence, tables.right)
        filled = bins.counts > 0
        share = bins.counts / max(bins.counts.sum(), 1)
        axis.bar(
            (np.arange(len(share)) + 0.5) / len(share),
            share,
            width=0.09,
            color="0.88",
            label="share of steps",
        )
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
        axis.plot(bins.confidence[filled], bins.accuracy[filled], marker="o", color=colour, label="accuracy")
        axis.set(
            title=name, xlabel="step confidence exp(-u)", ylabel="step accuracy", xlim=(0, 1), ylim=(0, 1.02)
        )
        axis.legend(frameon=False, loc="upper left", fontsize=8)
    return save_figure(figure, path)


def plot_entropy(policies: Mapping[str, Tables], path: str | Path) -> Path:
    """Mean token entropy of right and of wrong steps, one panel a policy, densities."""
    figure, axes = axes_of(len(policies))
    top = max(float(np.quantile(t.entropy, 0.995)) for t in policies.values()) or 1.0
    edges = np.linspace(0, top, 41)
    for axis, (name, tables) in zip(axes, policies.items()):
        for label, mask, colour in (
            ("right", tables.right == 1, COLOURS[0]),
            ("wrong", tables.right == 0, COLOURS[1]),
        ):
            if mask.any():
                values = np.clip(tables.entropy[mask], 0, top)
                axis.hist(
                    values,
                    edges,
                    density=True,
                    alpha=0.55,
                    color=colour,
                    label=f"{label} ({mask.sum():,} steps)",
                )
                axis.axvline(values.mean(), color=colour, linewidth=1.5)
        axis.set(title=name, xlabel="mean token entropy of the step (nats)", ylabel="density", xlim=(0, top))
        axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def plot_strategies(policies: Mapping[str, Mapping[str, Outcome]], path: str | Path) -> Path:
    """Accuracy against decoded tokens a question for every strategy, 95 % intervals over questions; a panel a
    policy that has strategies."""
    policies = {name: outcomes for name, outcomes in policies.items() if outcomes}
    figure, axes = axes_of(max(1, len(policies)), width=5.4, height=4.2)
    for axis, (name, outcomes) in zip(axes, policies.items()):
        for i, (strategy, outcome) in enumerate(outcomes.items()):
            mean = outcome.correct.mean()
            error = 1.96 * outcome.correct.std() / np.sqrt(len(outcome.correct))
            axis.errorbar(
                outcome.tokens.mean(),
                mean,
                yerr=error,
                marker=MARKERS[i % len(MARKERS)],
                color=COLOURS[i % len(COLOURS)],
                linestyle="none",
                capsize=2,
                label=strategy.replace("_", " "),
            )
        axis.set(title=name, xlabel="decoded tokens a question", ylabel="answer accuracy")
        axis.set_xlim(left=0)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    low = min(axis.get_ylim()[0] for axis in axes)
    high = max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        axis.set_ylim(low, high)
    return save_figure(figure, path)


def plot_audit(
    sweep: Sequence[Mapping[str, Any]],
    depths: Sequence[Mapping[str, Any]],
    oracle: Mapping[str, float],
    threshold: float,
    path: str | Path,
) -> Path:
    """What pruning costs: accuracy by threshold between never pruning and the oracle, and who is pruned at which depth."""
    figure, (left, right) = axes_of(2)
    x = [row["threshold"] for row in sweep]
    left.plot(
        x, [row["accuracy"] for row in sweep], marker="o", markersize=3, color=COLOURS[0], label="accuracy"
    )
    left.fill_between(
        x,
        [row["accuracy_low"] for row in sweep],
        [row["accuracy_high"] for row in sweep],
        color=COLOURS[0],
        alpha=0.2,
        linewidth=0,
    )
    left.plot(
        x,
        [row["lost"] for row in sweep],
        marker="s",
        markersize=3,
        color=COLOURS[1],
        label="lost every right path",
    )
    left.axhline(oracle["accuracy"], color="0.5", linestyle="--", linewidth=1, label="oracle pruning")
    left.axvline(threshold, color="0.5", linestyle=":", linewidth=1, label="this threshold")
    left.set(xlabel="threshold", ylabel="share of questions", ylim=(0, 1.02))
    left.legend(frameon=False, fontsize=8)
    at = [row["depth"] for row in depths]
    for field, colour, label in (
        ("false_prunes", COLOURS[1], "right paths"),
        ("true_prunes", COLOURS[2], "wrong paths"),
    ):
        right.plot(at, [row[field] for row in depths], marker="o", color=colour, label=label)
    right.set(xlabel="depth (steps closed)", ylabel="share pruned there", ylim=(0, None))
    right.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def plot_noise(rows: Sequence[Mapping[str, Any]], base: Mapping[str, float], path: str | Path) -> Path:
    """Each final metric against the share of flipped verdicts, with its 95 % band and the base as a line."""
    names = list(dict.fromkeys(row["metric"] for row in rows))
    figure, axes = axes_of(len(names), width=3.0, height=3.0)
    for axis, name in zip(axes, names):
        mine = [row for row in rows if row["metric"] == name]
        x = [row["noise"] for row in mine]
        axis.plot(x, [row["value"] for row in mine], marker="o", color=COLOURS[0], label="trained")
        axis.fill_between(
            x,
            [row["low"] for row in mine],
            [row["high"] for row in mine],
            color=COLOURS[0],
            alpha=0.2,
            linewidth=0,
        )
        axis.axhline(base[name], color="0.5", linestyle="--", linewidth=1, label="base")
        axis.set(title=name.replace("_", " "), xlabel="share of flipped verdicts")
    axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
