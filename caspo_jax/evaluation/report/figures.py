"""The page's pictures as inline SVG, drawn from a run's numbers: strategies, differences, reliability, entropy, training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caspo_jax.evaluation.formats import spoken
from caspo_jax.evaluation.report import evaluate_figures, faithfulness_figures
from caspo_jax.evaluation.report.folder import SAMPLES, Run, TraceFile
from caspo_jax.evaluation.report.svg import SERIES, WIDTH, Figure, Panel, hover, number, tag
from caspo_jax.evaluation.report.tables import strategies_of
from caspo_jax.evaluation.tables import ON_ONE_SCALE
from caspo_jax.metrics import reliability

_CURVES = (
    ("loss", "loss"),
    ("rewards/margin", "reward margin"),
    ("logps/chosen", "log-prob of the chosen step, nats"),
)


def run_figures(run: Run) -> list[Figure]:
    """Every picture that the run's files have numbers for."""
    policies = [p for p in run.summary.get("policies") or () if isinstance(p, Mapping)]
    found: list[Figure | None] = [*evaluate_figures.curves(run.summaries)]
    found += [strategies(policies, run.summary.get("questions")), differences(policies)]
    found += faithfulness_figures.faithfulness_figures(run)
    shown = sampled(run)
    found += [reliability_diagram(shown), *map(entropy_histogram, shown)]
    return [f for f in (*found, *curves(run.metrics)) if f is not None]


def sampled(run: Run) -> list[TraceFile]:
    """The files whose steps are drawn: held-out samples where the run has some, else all; only those with verdicts."""
    judged = [f for f in run.traces if len(_judged(f)[1])]
    return ([f for f in judged if f.name.startswith(SAMPLES)] or judged)[:SERIES]


def strategies(policies: Sequence[Mapping[str, Any]], questions: int | None) -> Figure | None:
    """Accuracy of each strategy, a mark a policy, with binomial 95 % intervals; decoded tokens at the right."""
    shown = [p for p in policies if strategies_of(p)][:SERIES]
    names = list(dict.fromkeys(name for p in shown for name in strategies_of(p)))
    if not names:
        return None
    points = [[strategies_of(p).get(name) for p in shown] for name in names]

    def error(accuracy: float) -> float:
        return 1.96 * math.sqrt(accuracy * (1 - accuracy) / questions) if questions else 0.0

    known = [entry["accuracy"] for row in points for entry in row if entry]
    low = max(0.0, min(a - error(a) for a in known) - 0.02)
    high = min(1.0, max(a + error(a) for a in known) + 0.02)
    row_height = 13.0 * len(shown) + 11
    panel = Panel(
        (low, high), (0, len(names)), left=104, right=52, height=42 + row_height * len(names), top=16
    )
    panel.add(tag("text", "tokens", x=WIDTH - 2.0, y=11.0, class_="tick end"))
    panel.grid("answer accuracy", "", y_ticks=0)
    for i, (name, row) in enumerate(zip(names, points, strict=True)):
        _, middle = panel.at(low, len(names) - i - 0.5)
        panel.add(tag("line", x1=panel.left, x2=panel.right, y1=middle, y2=middle, class_="grid"))
        panel.add(tag("text", spoken(name), x=panel.left - 8, y=middle + 4, class_="row end"))
        for k, entry in enumerate(row):
            if not entry:
                continue
            y = middle + 13.0 * (k - (len(shown) - 1) / 2)
            x, _ = panel.at(entry["accuracy"], 0)
            text = f"{shown[k]['name']}, {name}: {entry['accuracy']:.3f}"
            mark = ""
            if questions:
                half = error(entry["accuracy"])
                ends = [panel.at(min(high, max(low, entry["accuracy"] + e)), 0)[0] for e in (-half, half)]
                mark = tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_=f"whisker s{k}")
                text += f" ± {half:.3f}"
            mark += tag("circle", cx=x, cy=y, r=4, class_=f"fill s{k}")
            panel.add(hover(mark, text))
            tokens = entry.get("tokens_per_question")
            if tokens is not None:
                panel.add(tag("text", f"{tokens:,.0f}", x=WIDTH - 2.0, y=y + 3.5, class_=f"tick end t{k}"))
    note = f"95 % intervals over {questions:,} questions." if questions else ""
    legend = [(f"s{k}", str(p["name"])) for k, p in enumerate(shown)]
    return Figure("Accuracy by strategy", panel.render("Accuracy by strategy"), note, legend)


def differences(policies: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Paired differences to the base with their intervals, for the rates that share one scale."""
    shown = [p for p in policies if isinstance(p.get("paired_with_base"), Mapping) and p["paired_with_base"]][
        :SERIES
    ]
    rows = [
        (name, [p["paired_with_base"].get(name) for p in shown])
        for name in ON_ONE_SCALE
        if any((p["paired_with_base"].get(name) or {}).get("difference") is not None for p in shown)
    ]
    ends = [
        value
        for _, row in rows
        for entry in row
        if entry
        for value in (entry.get("low"), entry.get("high"), entry.get("difference"))
        if value is not None
    ]
    if not ends:
        return None
    pad = 0.06 * (max(*ends, 0.0) - min(*ends, 0.0)) or 0.01
    low, high = min(*ends, 0.0) - pad, max(*ends, 0.0) + pad
    row_height = 13.0 * len(shown) + 11
    panel = Panel((low, high), (0, len(rows)), left=128, right=12, height=42 + row_height * len(rows))
    panel.grid("difference to the base", "", y_ticks=0, x_ticks=4)
    zero, _ = panel.at(0.0, 0)
    panel.add(tag("line", x1=zero, x2=zero, y1=panel.top, y2=panel.bottom, class_="zero"))
    for i, (name, row) in enumerate(rows):
        _, middle = panel.at(low, len(rows) - i - 0.5)
        panel.add(tag("text", _title(name), x=panel.left - 8, y=middle + 4, class_="row end"))
        for k, entry in enumerate(row):
            if not entry or entry.get("difference") is None:
                continue
            y = middle + 13.0 * (k - (len(shown) - 1) / 2)
            x, _ = panel.at(entry["difference"], 0)
            mark, text = "", f"{shown[k]['name']}, {_title(name)}: {entry['difference']:+.3f}"
            if entry.get("low") is not None and entry.get("high") is not None:
                (a, _), (b, _) = panel.at(entry["low"], 0), panel.at(entry["high"], 0)
                mark = tag("line", x1=a, x2=b, y1=y, y2=y, class_=f"whisker s{k + 1}")
                text += f" [{entry['low']:+.3f}, {entry['high']:+.3f}]"
            panel.add(hover(mark + tag("circle", cx=x, cy=y, r=4, class_=f"fill s{k + 1}"), text))
    legend = [(f"s{k + 1}", str(p["name"])) for k, p in enumerate(shown)]
    note = (
        "Paired by question, 95 % bootstrap intervals. Within prefix: of the mean log-prob. "
        "Lower is better for flawed answers, ECE and Brier."
    )
    return Figure("Change against the base", panel.render("Paired differences to the base"), note, legend)


def _title(name: str) -> str:
    names = {
        "flawed_correct_rate": "flawed answers",
        "entropy_auroc": "entropy AUROC",
        "within_prefix_logprob_auroc": "AUROC within prefix",
        "ece": "ECE",
        "brier_scaled": "Brier, scaled",
    }
    return names.get(name, name.replace("_", " "))


def _judged(file: TraceFile) -> tuple[np.ndarray, np.ndarray]:
    """Entropy [S] in nats and verdict [S] of the steps that have both."""
    pairs = [
        (s.entropy, s.verdict == "correct")
        for trace in file.traces
        for s in trace.steps
        if s.verdict != "unknown" and s.entropy is not None
    ]
    values = np.array(pairs, np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def reliability_diagram(files: Sequence[TraceFile]) -> Figure | None:
    """Accuracy of steps against their confidence exp(-u) in ten bins, a line a file; larger marks hold more steps."""
    if not files:
        return None
    panel = Panel((0, 1), (0, 1))
    panel.grid("step confidence exp(-u)", "share right")
    panel.line([0, 1], [0, 1], "ideal")
    for series, file in enumerate(files):
        entropy, right = _judged(file)
        bins = reliability(np.exp(-entropy), right)
        filled = np.flatnonzero(bins.counts > 0)
        panel.line(bins.confidence[filled].tolist(), bins.accuracy[filled].tolist(), f"s{series}")
        for k in filled:
            x, y = panel.at(bins.confidence[k], bins.accuracy[k])
            size = 2.0 + 5.0 * math.sqrt(bins.counts[k] / bins.counts.sum())
            text = f"{short_name(file)}: confidence {bins.confidence[k]:.3f}, right {bins.accuracy[k]:.3f}, "
            text += f"{bins.counts[k]:,.0f} steps"
            panel.add(hover(tag("circle", cx=x, cy=y, r=size, class_=f"fill s{series}"), text))
    legend = [(f"s{k}", short_name(f)) for k, f in enumerate(files)] + [("ideal", "calibrated")]
    note = "Ten bins; a larger mark holds more steps."
    return Figure("Reliability of step confidence", panel.render("Reliability diagram"), note, legend)


def short_name(file: TraceFile) -> str:
    """The folder's name, where the file's own says nothing."""
    return file.name.removeprefix(SAMPLES).removesuffix("/annotated").removesuffix("/traces")


def entropy_histogram(file: TraceFile) -> Figure | None:
    """Mean token entropy of right and of wrong steps, as densities."""
    entropy, right = _judged(file)
    if len(right) == 0:
        return None
    top = float(np.quantile(entropy, 0.995)) or 1.0
    edges = np.linspace(0, top, 31)
    groups = [(0, "right", entropy[right == 1]), (1, "wrong", entropy[right == 0])]
    densities = [
        np.histogram(np.clip(values, 0, top), edges, density=True)[0] if len(values) else np.zeros(30)
        for *_, values in groups
    ]
    # The first bin of right steps towers over all others: a square root lets both shapes be seen.
    heights = [np.sqrt(d) for d in densities]
    panel = Panel((0, top), (0, 1.05 * float(max(h.max() for h in heights)) or 1.0), left=22)
    panel.grid("mean token entropy of the step, nats", "density (root scale)", y_ticks=0)
    for (k, _, values), height in zip(groups, heights, strict=True):
        xs = np.repeat(edges, 2)
        ys = np.concatenate([[0.0], np.repeat(height, 2), [0.0]])
        points = " ".join(",".join(map(number, panel.at(x, y))) for x, y in zip(xs, ys, strict=True))
        panel.add(tag("polygon", points=points, class_=f"area s{k}"))
        if len(values):
            x, _ = panel.at(min(top, float(values.mean())), 0)
            mean = tag("line", x1=x, x2=x, y1=panel.top, y2=panel.bottom, class_=f"mean s{k}")
            panel.add(hover(mean, f"mean {values.mean():.3f} nats"))
    legend = [(f"s{k}", f"{name} ({len(v):,})") for k, name, v in groups]
    note = "Upright lines: means."
    return Figure(
        f"Entropy of right and wrong steps: {short_name(file)}",
        panel.render("Entropy histogram"),
        note,
        legend,
    )


def curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    """Loss, margin and chosen log-prob over the updates, a line a training run."""
    runs = {name.removesuffix("/metrics"): records for name, records in list(metrics.items())[:SERIES]}
    figures = []
    for field, title in _CURVES:
        series = {
            name: [(r["step"], r[field]) for r in records if r.get(field) is not None and "step" in r]
            for name, records in runs.items()
        }
        points = [point for values in series.values() for point in values]
        if len(points) < 2:
            continue
        low, high = min(y for _, y in points), max(y for _, y in points)
        pad = 0.06 * (high - low) or 0.05
        last = max(x for x, _ in points)
        panel = Panel((1, max(2, last)), (low - pad, high + pad), left=46)
        panel.grid("update", "", whole=True)
        for k, (name, values) in enumerate(series.items()):
            panel.line([x for x, _ in values], [y for _, y in values], f"s{k}")
            if values:
                x, y = panel.at(*values[-1])
                mark = tag("circle", cx=x, cy=y, r=3, class_=f"fill s{k}")
                panel.add(hover(mark, f"{name}, update {values[-1][0]}: {values[-1][1]:.4f}"))
        legend = [(f"s{k}", name) for k, name in enumerate(series)]
        figures.append(Figure(f"Training: {title}", panel.render(title), "", legend))
    return figures
