"""Words against confidence as inline SVG, from the steps of a faithfulness report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from caspo_jax.evaluation.report.faithfulness_tables import is_faithfulness
from caspo_jax.evaluation.report.folder import Run, TraceFile
from caspo_jax.evaluation.report.svg import SERIES, Figure, Panel, hover, tag
from caspo_jax.metrics.arrays import bin_of

BINS = 10
SHOWN = ("entropy", "prefix", "hidden", "probe", "token", "hidden_running")  # in this order, SERIES at most


def faithfulness_figures(run: Run) -> list[Figure]:
    """Decisiveness by confidence, and both along the trace."""
    found = [by_confidence(file) for file in run.traces]
    found += [along_traces(s) for s in run.summaries.values() if is_faithfulness(s) and "calibration" in s]
    return [figure for figure in found if figure is not None]


def by_confidence(file: TraceFile) -> Figure | None:
    """Mean decisiveness in each tenth of confidence, a line an estimator; larger marks hold more steps."""
    pairs = {name: _pairs(file, name) for name in SHOWN}
    shown = {name: both for name, both in pairs.items() if len(both)}
    if not shown:
        return None
    panel = Panel((0, 1), (0, 1))
    panel.grid("internal confidence", "decisiveness")
    panel.line([0, 1], [0, 1], "ideal")
    for k, (name, both) in enumerate(list(shown.items())[:SERIES]):
        index = bin_of(both[:, 1], BINS, right_closed=False)
        count = np.bincount(index, minlength=BINS)
        filled = np.flatnonzero(count)
        said, sure = (np.bincount(index, both[:, i], BINS)[filled] / count[filled] for i in (0, 1))
        panel.line(sure.tolist(), said.tolist(), f"s{k}")
        for x, y, n in zip(sure, said, count[filled], strict=True):
            across, up = panel.at(x, y)
            size = 2.0 + 5.0 * float(np.sqrt(n / count.sum()))
            mark = tag("circle", cx=across, cy=up, r=size, class_=f"fill s{k}")
            panel.add(hover(mark, f"{_words(name)}: confidence {x:.3f}, words {y:.3f}, {n:,} steps"))
    legend = [(f"s{k}", _words(name)) for k, name in enumerate(list(shown)[:SERIES])]
    note = "Mean decisiveness in each tenth of confidence; above the line the text sounds surer than the model is."
    return Figure(
        "Words against confidence",
        panel.render("Words against confidence"),
        note,
        [*legend, ("ideal", "faithful")],
    )


def along_traces(report: Mapping[str, Any]) -> Figure | None:
    """Mean decisiveness, and mean confidence by each estimator, over ten parts of the trace."""
    blocks: Mapping[str, Any] = next(iter(report["faithfulness"].values()), {})
    paths = {n: blocks[n]["trajectory"] for n in SHOWN if (blocks.get(n) or {}).get("trajectory")}
    if not paths:
        return None
    first = next(iter(paths.values()))
    lines = {"words": (first["position"], first["decisiveness"])}
    lines |= {
        _words(n): (path["position"], path["confidence"]) for n, path in list(paths.items())[: SERIES - 1]
    }
    panel = Panel((0, 1), (0, 1))
    panel.grid("place in the trace", "mean", x_ticks=5)
    legend = []
    for k, (name, (xs, ys)) in enumerate(lines.items()):
        colour = f"s{(k + 1) % SERIES}"
        known = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
        panel.line(
            [x for x, _ in known], [y for _, y in known], f"{colour}{' strong' if name == 'words' else ''}"
        )
        for x, y in known:
            across, up = panel.at(x, y)
            panel.add(
                hover(tag("circle", cx=across, cy=up, r=3, class_=f"fill {colour}"), f"{name}: {y:.3f}")
            )
        legend.append((colour, name))
    return Figure(
        "Along the trace", panel.render("Words and confidence along the trace"), "Thick: the words.", legend
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _pairs(file: TraceFile, estimator: str) -> np.ndarray:
    """[n, 2]: decisiveness and confidence of the steps that have both."""
    found = [
        (said, sure)
        for beside in file.beside
        for said, sure in zip(beside.decisiveness, beside.estimates.get(estimator, ()))
        if said is not None and sure is not None and 0 <= sure <= 1
    ]
    return np.array(found, np.float64).reshape(-1, 2)
